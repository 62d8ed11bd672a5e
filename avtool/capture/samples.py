"""A track's pictures as training samples: head crops at one size, with their mattes and cameras.

Shape legend: B samples, S side in pixels. Crops are resampled by area where they shrink and bilinearly where they grow,
so that pixel centers stay at +0.5 and the intrinsics of the crop are exact.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..artifacts.track import Frame, Track
from ..cameras import crop_intrinsics
from ..errors import AvtoolError
from .images import load_gray, load_image
from .landmarker import FaceTracker
from .matte import HeadMatte
from .video import read_frames

if TYPE_CHECKING:
    from ..head import HeadParams

logger = logging.getLogger("avtool")

Crop = tuple[float, float, float]
AHEAD = 16  # photos that are decoded before the first of them is asked for


@dataclass(frozen=True)
class Samples:
    """Head crops of some frames.

    Attributes:
        images: (B, S, S, 3) float32 in [0, 1], white outside the photo; the background is still in them.
        mattes: (B, S, S, 1) float32 in [0, 1], zero outside the photo; None when not asked for.
        Ks: (B, 3, 3) intrinsics of the S x S crops.
        viewmats: (B, 4, 4) world to camera.
        params: HeadParams with a batch of B.
    """

    images: Tensor
    mattes: Tensor | None
    Ks: Tensor
    viewmats: Tensor
    params: HeadParams


def load_samples(track: Track, indices: Sequence[int] | None, size: int, with_matte: bool = True) -> Samples:
    """Reads the head crops of some of a track's frames.

    Args:
        track: photos or a video; a video is decoded once, in order.
        indices: which frames, in any order, repeats allowed; None for all.
        size: S.
        with_matte: whether mattes are wanted; a track without any gets them made here.

    Raises:
        AvtoolError: a picture or matte that the track names is missing, with the file's name.
    """
    chosen = list(range(len(track.frames))) if indices is None else [int(idx) for idx in indices]
    if not chosen:
        raise ValueError("load_samples: expected at least one frame index")
    pictures = dict(read_crops(track, sorted(set(chosen)), size, with_matte))
    return _samples(track, chosen, [pictures[idx] for idx in chosen], size, with_matte)


def stream_samples(track: Track, indices: Sequence[int], size: int, count: int) -> Iterator[tuple[list[int], Samples]]:
    """Head crops with mattes of some of a track's frames, ``count`` at a time, each frame once, with their indices.

    A video is decoded once, and no more than a few pictures are held whatever the number of frames. Errors are those of
    ``load_samples``.
    """
    pictures = read_crops(track, sorted({int(idx) for idx in indices}), size, with_matte=True)
    while part := list(itertools.islice(pictures, count)):
        chosen, stacked = zip(*part)
        yield list(chosen), _samples(track, list(chosen), stacked, size, with_matte=True)


def _samples(track: Track, chosen: list[int], pictures: Sequence[np.ndarray], size: int, with_matte: bool) -> Samples:
    """Crops with their mattes uint8 (S, S, 3 or 4) as samples."""
    stacked = np.stack(pictures)
    images = torch.from_numpy(stacked[..., :3]).float() / 255.0
    mattes = torch.from_numpy(stacked[..., 3:]).float() / 255.0 if with_matte else None
    crops = torch.tensor([track.frames[idx].crop for idx in chosen], dtype=torch.float32)
    Ks = crop_intrinsics(track.Ks(chosen), crops, size)
    return Samples(images, mattes, Ks, track.viewmats(chosen), track.params(chosen))


def crop_square(pixels: np.ndarray, crop: Crop, size: int, fill: int = 255) -> np.ndarray:
    """A square crop, resampled.

    Args:
        pixels: uint8 (H, W, 3) or (H, W).
        crop: x0, y0, size in pixels; may reach outside the image.
        size: S.
        fill: what lies outside.

    Returns:
        uint8 (S, S, 3) or (S, S).
    """
    x0, y0, extent = (float(value) for value in crop)
    if not extent > 0:
        raise ValueError(f"crop_square: expected a positive size, found {extent}")
    # One pixel more than needed on each side, as bilinear sampling looks there.
    low = np.floor([y0, x0]).astype(int) - 1
    high = np.ceil([y0 + extent, x0 + extent]).astype(int) + 1
    window = np.full((*(high - low), *pixels.shape[2:]), fill, np.uint8)
    start = np.clip(low, 0, pixels.shape[:2])
    stop = np.clip(high, start, pixels.shape[:2])
    into = start - low
    part = pixels[start[0] : stop[0], start[1] : stop[1]]
    window[into[0] : into[0] + part.shape[0], into[1] : into[1] + part.shape[1]] = part
    box = (x0 - low[1], y0 - low[0], x0 - low[1] + extent, y0 - low[0] + extent)
    method = Image.Resampling.BOX if extent >= size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(window).resize((size, size), method, box=box))


def read_crops(track: Track, indices: Sequence[int], size: int, with_matte: bool = True) -> Iterator[tuple[int, np.ndarray]]:
    """Frame index and head crop of some of a track's frames, as load_samples has them, one after the other.

    The crop is (S, S, 3) uint8, or (S, S, 4) with its matte as the fourth channel; ``indices`` ascend.
    """
    photos = [idx for idx in indices if track.frames[idx].image is not None]
    stills = [idx for idx in indices if track.frames[idx].image is None]
    stored = _StoredMattes(track, indices if with_matte else [])
    maker = _MatteMaker()

    def join(idx: int, pixels: np.ndarray, matte: np.ndarray | None) -> np.ndarray:
        frame = track.frames[idx]
        scale = pixels.shape[1] / frame.width
        crop = tuple(float(value) * scale for value in frame.crop)
        image = crop_square(pixels, crop, size)
        if not with_matte:
            return image
        if matte is not None:
            matte = _resize(matte, size)
        elif frame.matte is not None:
            matte = _read_matte(track, frame, size)
        else:
            matte = maker(pixels, crop, size)
        return np.concatenate([image, matte[..., None]], -1)

    def photo(idx: int, matte: np.ndarray | None) -> tuple[int, np.ndarray]:
        return idx, join(idx, load_image(track.resolve(track.frames[idx].image)).pixels, matte)

    # Decoding runs outside Python's lock; a few threads are enough, and bound the memory of large photos.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for part in (photos[start : start + AHEAD] for start in range(0, len(photos), AHEAD)):
            yield from pool.map(photo, part, [stored.take(idx) for idx in part])
    by_frame: dict[int, list[int]] = {}
    for idx in stills:
        by_frame.setdefault(int(track.frames[idx].frame_idx), []).append(idx)
    if by_frame:
        for frame_idx, pixels in read_frames(track.resolve(track.video), by_frame):
            for idx in by_frame[frame_idx]:
                yield idx, join(idx, pixels, stored.take(idx))


def _resize(matte: np.ndarray, size: int) -> np.ndarray:
    """A whole matte (s, s) at another size."""
    method = Image.Resampling.BOX if matte.shape[0] >= size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(matte).resize((size, size), method))


class _StoredMattes:
    """Mattes (s, s) uint8 that a fresh TrackResult still holds, or out of the track's matte video; either has one for each frame.

    The video is read as far as is asked for: in ascending order, nothing but the matte that is taken is ever held.
    """

    def __init__(self, track: Track, indices: Sequence[int]) -> None:
        self._frames: Iterator[tuple[int, np.ndarray]] | None = None
        self._passed: dict[int, np.ndarray] = {}
        self._held: tuple[bytes | None, ...] = getattr(track, "matte_images", ()) if indices else ()
        if any(self._held) or track.mattes_video is None or not indices:
            return
        path = track.resolve(track.mattes_video)
        if not path.exists():
            raise AvtoolError(f"{path}: missing", "copy a track together with the .data directory beside it")
        self._frames = read_frames(path, indices)

    def take(self, idx: int) -> np.ndarray | None:
        """The matte of one of the indices, once; None when nothing is stored."""
        if any(self._held):
            held = self._held[idx]
            return None if held is None else np.asarray(Image.open(io.BytesIO(held)))
        if self._frames is None:
            return None
        while idx not in self._passed:
            found, frame = next(self._frames)
            self._passed[found] = np.ascontiguousarray(frame[..., 1])
        return self._passed.pop(idx)


def _read_matte(track: Track, frame: Frame, size: int) -> np.ndarray:
    """A stored matte: square ones cover the crop, others (masks of other programs) the whole image."""
    path = track.resolve(frame.matte)
    matte = np.round(load_gray(path) * 255).astype(np.uint8)
    height, width = matte.shape
    if height == width:
        return _resize(matte, size)
    if abs(height * frame.width - width * frame.height) > max(frame.width, frame.height):
        hint = "run `avtool track` again"
        raise AvtoolError(f"{path}: expected a square matte or one of the image's shape, found {width} x {height}", hint)
    scale = width / frame.width
    return crop_square(matte, tuple(float(value) * scale for value in frame.crop), size, 0)


class _MatteMaker:
    """Mattes for tracks that bring none; its networks are loaded at the first use."""

    def __init__(self) -> None:
        self._networks: tuple[FaceTracker, HeadMatte] | None = None

    def __call__(self, pixels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
        if self._networks is None:
            logger.info("the track has no mattes: making them")
            self._networks = FaceTracker(), HeadMatte()
        tracker, matte = self._networks
        landmarks = tracker(pixels)
        if landmarks is None:
            raise AvtoolError("a frame of the track has no matte and no face to make one from", "add mattes to the track")
        return np.round(matte(pixels, landmarks, crop, size).alpha * 255).astype(np.uint8)
