"""Cuts the head out of its background.

The person segmentation network spills on whole photos but is crisp on a head crop, so it always sees one. Its 256 x 256
answer is sharpened by a guided filter (He et al., "Guided Image Filtering", PAMI 2013) and cleaned of whatever does not
hang together with the face.

Shape legend: S side of the crop in pixels; alpha (S, S) in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from .landmarker import NUM_MESH, Landmarks
from .models import load_model
from .regions import Roi, sample_roi

# The head crop is this many times the landmarks' longer extent; its center lies this much of the extent below theirs.
# Looked at on people with much hair and with long necks: hair is inside, and the shoulders begin.
CROP_SCALE = 2.2
CROP_SHIFT = 0.03
MAX_SIDE = 512
# Guided filter: radius in network pixels, and the variance that counts as an edge.
GUIDE_RADIUS = 3
GUIDE_EPSILON = 1e-3
# Width of the seam between the head's view and the wider one, as a fraction of the head's view.
SEAM = 0.06


@dataclass(frozen=True)
class Matte:
    """What belongs to the person.

    Attributes:
        alpha: (S, S) float32 in [0, 1]; zero outside the image.
        crop: x0, y0, size: the square of the full image that ``alpha`` covers, in pixels.
    """

    alpha: np.ndarray
    crop: tuple[float, float, float]


def head_crop(landmarks: Landmarks | np.ndarray, scale: float = CROP_SCALE) -> tuple[float, float, float]:
    """The one rule for head crops: hair, neck and the beginning of the shoulders.

    Args:
        landmarks: of one face, or their points (478, 2 or 3) in pixels.
        scale: side over the landmarks' longer extent.

    Returns:
        x0, y0, size in pixels of the full image; whole numbers; may reach outside of it.
    """
    points = landmarks.points if isinstance(landmarks, Landmarks) else np.asarray(landmarks)
    mesh = points[:NUM_MESH, :2]
    low, high = mesh.min(0), mesh.max(0)
    extent = float((high - low).max())
    size = max(round(scale * extent), 2)
    center = (low + high) / 2 + (0.0, CROP_SHIFT * extent)
    x0, y0 = (float(round(value - size / 2)) for value in center)
    return x0, y0, float(size)


class HeadMatte:
    """The segmentation network and its clean-up.

    Args:
        device: where the network runs.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_model("selfie_segmentation", device)

    def __call__(
        self,
        image: np.ndarray,
        landmarks: Landmarks,
        crop: tuple[float, float, float] | None = None,
        side: int | None = None,
    ) -> Matte:
        """The matte of one head.

        Args:
            image: uint8 (H, W, 3).
            landmarks: of the face in it.
            crop: x0, y0, size of the square that the matte must cover; the head crop when None.
            side: S; the crop's size up to 512 when None.
        """
        crop = crop if crop is not None else head_crop(landmarks)
        side = side or min(math.ceil(crop[2]), MAX_SIDE)
        turn = _quarter_turn(landmarks.roi.angle)
        view = _square(head_crop(landmarks), turn)
        alpha = _resample(self._segment(image, view), view, crop, side)
        if not _covers(view, crop):
            # Where the wanted crop is larger than the head's view, a second, wider look fills in.
            wide = _square(_union(crop, head_crop(landmarks)), turn)
            weight = _resample(_seam_weight(self.network.input_shape[1]), view, crop, side)
            alpha = weight * alpha + (1 - weight) * _resample(self._segment(image, wide), wide, crop, side)
        faces = (landmarks.points[:NUM_MESH, :2] - crop[:2]) / crop[2]
        alpha = alpha * face_component(alpha, faces) * _coverage(image.shape, crop, side)
        return Matte(np.ascontiguousarray(alpha, dtype=np.float32), crop)

    def _segment(self, image: np.ndarray, view: Roi) -> np.ndarray:
        """Alpha (256, 256) of one view, its edges drawn along the picture's."""
        pixels = sample_roi(image, view, self.network.input_shape[1])
        coarse = self.network(pixels.to(self.device))[0][..., 0].cpu()
        return guided_filter(pixels[0].mean(-1).numpy(), coarse[0].numpy())


def guided_filter(
    guide: np.ndarray, value: np.ndarray, radius: int = GUIDE_RADIUS, epsilon: float = GUIDE_EPSILON
) -> np.ndarray:
    """Locally linear in the guide: value follows the guide's edges (He et al. 2013, equations 5 to 8).

    Args:
        guide, value: (H, W) in [0, 1].
        radius: of the square windows, in pixels.
        epsilon: guide variance below which a window counts as flat.

    Returns:
        (H, W) float32 in [0, 1].
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, 2 * radius + 1, mode="nearest")

    guide, value = guide.astype(np.float32), value.astype(np.float32)
    guide_mean, value_mean = mean(guide), mean(value)
    slope = (mean(guide * value) - guide_mean * value_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    offset = value_mean - slope * guide_mean
    return np.clip(mean(slope) * guide + mean(offset), 0.0, 1.0)


def face_component(alpha: np.ndarray, face: np.ndarray) -> np.ndarray:
    """What hangs together with the face.

    Args:
        alpha: (S, S) in [0, 1].
        face: (L, 2) landmarks in unit coordinates of the square.

    Returns:
        float32 (S, S): one on the components of alpha > 0.5 that landmarks touch and on their soft rims, else zero.
    """
    side = alpha.shape[0]
    # Opened a little, so that a blob that touches the head by a thread falls off.
    thread = max(1, side // 128)
    solid = ndimage.binary_opening(alpha > 0.5, iterations=thread)
    labels, _ = ndimage.label(solid)
    pixels = np.floor(face * side).astype(int)
    pixels = pixels[((pixels >= 0) & (pixels < side)).all(1)]
    touched = np.unique(labels[pixels[:, 1], pixels[:, 0]])
    kept = np.isin(labels, touched[touched > 0])
    if not kept.any():
        return np.ones_like(alpha, dtype=np.float32)
    rim = max(2, side // 32)
    return (ndimage.distance_transform_cdt(~kept, "chessboard") <= rim).astype(np.float32) * _nearest(kept, solid)


def _nearest(kept: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """One where the nearest solid pixel is a kept one, so that a dropped blob's rim goes with it."""
    rows, columns = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)
    return kept[rows, columns].astype(np.float32)


def _quarter_turn(angle: float) -> float:
    """The nearest quarter of a circle: mattes of turned photos are made upright, and without blurring."""
    return round(angle / (math.pi / 2)) * math.pi / 2


def _square(crop: tuple[float, float, float], angle: float) -> Roi:
    return Roi(crop[0] + crop[2] / 2, crop[1] + crop[2] / 2, crop[2], angle)


def _union(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float, float]:
    """The smallest square around both, with the first one's center."""
    center = np.array(first[:2]) + first[2] / 2
    corners = np.array([second[:2], np.array(second[:2]) + second[2]])
    size = max(first[2], 2 * float(np.abs(corners - center).max()))
    return float(center[0] - size / 2), float(center[1] - size / 2), size


def _covers(view: Roi, crop: tuple[float, float, float]) -> bool:
    inside = view.from_image(np.array([crop[:2], np.array(crop[:2]) + crop[2]]))
    return bool(((inside > -1e-6) & (inside < 1 + 1e-6)).all())


def _seam_weight(side: int) -> np.ndarray:
    """One inside the head's view, falling to zero at its border, where the wider view takes over."""
    unit = (np.arange(side) + 0.5) / side
    edge = np.minimum(unit, 1 - unit)
    return np.clip(np.minimum(edge[:, None], edge) / SEAM, 0.0, 1.0).astype(np.float32)


def _resample(values: np.ndarray, view: Roi, crop: tuple[float, float, float], side: int) -> np.ndarray:
    """Values (s, s) on a view's grid to the (side, side) grid of a crop; zero outside the view."""
    unit = (np.arange(side) + 0.5) / side
    pixels = np.stack(np.meshgrid(unit, unit), -1) * crop[2] + crop[:2]
    inside = view.from_image(pixels)
    grid = torch.from_numpy((inside * 2 - 1).astype(np.float32))[None]
    source = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    sampled = F.grid_sample(source, grid, padding_mode="border", align_corners=False)[0, 0].numpy()
    return sampled * ((inside >= 0) & (inside <= 1)).all(-1)


def _coverage(shape: tuple[int, ...], crop: tuple[float, float, float], side: int) -> np.ndarray:
    """Fraction of each crop pixel that lies in the image, (side, side)."""

    def axis(start: float, extent: int) -> np.ndarray:
        edges = start + np.arange(side + 1) * crop[2] / side
        return np.diff(np.clip(edges, 0, extent)) * side / crop[2]

    return axis(crop[1], shape[0])[:, None] * axis(crop[0], shape[1])
