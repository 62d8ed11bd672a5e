"""What is kept of a picture once the networks have seen it: landmarks, crop, matte and a small window for the bust."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..capture import FaceTracker, Landmarks, Roi
from ..capture.matte import HeadMatte, head_crop
from ..capture.samples import crop_square
from .bust import WINDOW, bust_window

Progress = Callable[[int, int, str], None]
PICTURE_SIDE = 128
"""What the photometric stage renders at."""


@dataclass(frozen=True)
class Observed:
    """One picture with a face.

    Attributes:
        points: (478, 2) px. crop: x0, y0, size of the head crop. matte: PNG of that square, or None.
        window: (WINDOW, WINDOW) uint8 gray of the bust; square: where it lies in the image.
        picture: (PICTURE_SIDE, PICTURE_SIDE, 3) uint8, the head crop; None where there is no matte.
        size: width, height. roi: where to look in the next frame.
    """

    points: np.ndarray
    crop: tuple[float, float, float]
    matte: bytes | None
    window: np.ndarray
    square: tuple[float, float, float]
    size: tuple[int, int]
    roi: Roi
    picture: np.ndarray | None = None

    @property
    def center(self) -> np.ndarray:
        """Principal point (2,): the middle of the image."""
        return np.array(self.size, np.float64) / 2.0

    def matte_pixels(self) -> np.ndarray | None:
        """The matte as uint8 (s, s)."""
        return None if self.matte is None else np.asarray(Image.open(io.BytesIO(self.matte)))


class Observer:
    """The networks of a tracking run.

    Args:
        device: where they run.
        mattes: whether mattes are wanted.
        matte_side: side of the stored mattes; None follows the crop.
        one_face: as for FaceTracker.
    """

    def __init__(
        self, device: str = "cpu", mattes: bool = True, matte_side: int | None = None, one_face: bool = False
    ) -> None:
        self.faces = FaceTracker(device, one_face)
        self.cutter = HeadMatte(device) if mattes else None
        self.matte_side = matte_side

    def __call__(self, image: np.ndarray, roi: Roi | None = None, name: str = "image") -> Observed | None:
        """Looks at one picture, uint8 (H, W, 3); None when there is no usable face in it."""
        landmarks = self.faces(image, roi, name)
        if landmarks is None:
            return None
        points = landmarks.points[:, :2].astype(np.float64)
        square = bust_window(points)
        crop = head_crop(landmarks)
        return Observed(
            points=points,
            crop=crop,
            matte=self._matte(image, landmarks),
            window=np.round(crop_square(image, square, WINDOW).mean(-1)).astype(np.uint8),
            square=square,
            size=(image.shape[1], image.shape[0]),
            roi=landmarks.roi,
            picture=None if self.cutter is None else crop_square(image, crop, PICTURE_SIDE),
        )

    def _matte(self, image: np.ndarray, landmarks: Landmarks) -> bytes | None:
        if self.cutter is None:
            return None
        alpha = self.cutter(image, landmarks, side=self.matte_side).alpha
        return encode_matte(np.round(alpha * 255).astype(np.uint8))


def encode_matte(matte: np.ndarray) -> bytes:
    """uint8 (s, s) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(matte).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
