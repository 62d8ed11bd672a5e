"""What drives a person: a video, photos or a track, read into a Track; its framing; its pictures for a comparison.

Shapes: T frames; crops (T, 3) x0, y0, size in pixels of the full image; pictures (S, S, 3) uint8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from avtool.artifacts.track import Track
from avtool.cameras import crop_intrinsics
from avtool.capture.samples import crop_square
from avtool.errors import AvtoolError
from avtool.head import HeadModel
from avtool.prior.motion import Motion

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
Progress = Callable[[int, int, str], None]

FOLLOW_ABOVE = 1.5  # a driver who needs this many times one frame's crop is followed instead of framed once
FOLLOW_SECONDS = 0.6


@dataclass(frozen=True)
class Driver:
    """A driver's track; `tracking_seconds` is None when the track was made beforehand."""

    track: Track
    tracking_seconds: float | None
    name: str

    @property
    def is_clip(self) -> bool:
        return self.track.video is not None

    @property
    def video(self) -> Path | None:
        return self.track.resolve(self.track.video) if self.track.video else None


def load_driver(
    sources: Sequence[str],
    head: HeadModel,
    *,
    seed: int = 0,
    max_frames: int | None = None,
    progress: Progress | None = None,
    looks: bool = False,
    stride: int = 1,
    person: Track | None = None,
) -> Driver:
    """Reads or tracks the driver.

    Args:
        sources: one video, one track.json, one directory of photos, "-" (a track on standard input), or photos.
        head: the head model of who is driven; a track of another one is refused.
        seed: of the tracker.
        max_frames: of a video; None tracks all of it.
        progress: called with (done, total, message) while tracking.
        looks: cut out mattes and fit shape and bust to the pictures, too: for who is learned from, not for who only drives.
        stride: take every n-th frame of a video.
        person: who it is known to be; the shape is theirs, then.
    """
    first = Path(sources[0])
    if len(sources) == 1 and (sources[0] == "-" or first.suffix.lower() == ".json" or _holds_track(first)):
        track = Track.load(sources[0], head)
        check_head_model(track, head.model_id, sources[0])
        return Driver(track, None, sources[0])
    check_driver(sources)
    started = time.perf_counter()
    if len(sources) == 1 and first.is_file() and first.suffix.lower() not in PHOTO_SUFFIXES:
        from avtool.tracking import TrackingOptions, track_video

        # A driver is not rendered from: without mattes nothing is fitted to its looks, which is most of tracking's time.
        options = TrackingOptions(mattes=looks, photometric=looks, max_frames=max_frames, stride=stride, seed=seed)
        track = track_video(first, head, identity=person, options=options, progress=progress)
    else:
        from avtool.tracking import TrackingOptions, track_photos

        options = TrackingOptions(mattes=looks, photometric=looks, seed=seed)
        track = track_photos(_photos(sources), head, identity=person, options=options, progress=progress)
    return Driver(track, time.perf_counter() - started, sources[0])


def check_driver(sources: Sequence[str]) -> None:
    """Refuses a driver that is not there."""
    for source in sources:
        if source != "-" and not Path(source).exists():
            raise AvtoolError(f"{source}: no such file", "name a video, photos, a directory of photos or a track.json")


def check_head_model(track: Track, model_id: str, name: str) -> None:
    """Refuses a track whose coefficients mean something else than those of who is driven."""
    if track.head_model != model_id:
        raise AvtoolError(
            f"{name}: made with head model {track.head_model}, {model_id} is needed",
            "track again with that head model",
        )


def steady_crops(track: Track) -> NDArray[np.float64]:
    """(T, 3) crops that frame the clip without shaking with the detector.

    One square holds the whole clip, if that keeps the head at a sensible size; a driver who wanders is followed by a heavily
    smoothed square. Photos keep their own crops.
    """
    crops = np.array([frame.crop for frame in track.frames], np.float64)
    if track.video is None or len(crops) < 2:
        return crops
    low = np.percentile(crops[:, :2], 2, axis=0)
    high = np.percentile(crops[:, :2] + crops[:, 2:], 98, axis=0)
    size = float((high - low).max())
    median = float(np.median(crops[:, 2]))
    if size <= FOLLOW_ABOVE * median:
        return np.tile([*((low + high - size) / 2), size], (len(crops), 1))
    centers = crops[:, :2] + crops[:, 2:] / 2
    course = np.concatenate([centers, np.log(crops[:, 2:])], axis=1)
    course = gaussian_filter1d(course, FOLLOW_SECONDS * (track.fps or 25.0), axis=0, mode="nearest")
    sizes = np.exp(course[:, 2:])
    return np.concatenate([course[:, :2] - sizes / 2, sizes], axis=1)


def driver_motion(track: Track, crops: NDArray[np.float64], size: int) -> Motion:
    """The track's parameters as a Motion whose cameras look through `crops` (T, 3) at `size` pixels."""
    params = track.params()
    Ks = crop_intrinsics(track.Ks(), torch.from_numpy(crops).float(), size)
    fps = track.fps if track.video is not None else None
    return Motion(params.expression, params.neck, params.head, params.jaw, params.eyes, track.viewmats(), Ks, fps)


def driver_pictures(track: Track, crops: NDArray[np.float64], indices: Sequence[int], size: int) -> Iterator[NDArray[np.uint8]]:
    """The driver's own pictures (size, size, 3) for ascending frame indices (repeats allowed), read as they are needed."""
    if track.video is None:
        from avtool.capture.images import load_image

        for index in indices:
            pixels = load_image(track.resolve(track.frames[index].image)).pixels
            yield crop_square(pixels, tuple(crops[index]), size)
        return
    from avtool.capture.video import read_frames

    wanted = [int(track.frames[index].frame_idx) for index in indices]
    frames = read_frames(track.resolve(track.video), wanted)
    position, pixels = -1, None
    for index, frame_idx in zip(indices, wanted):
        while position < frame_idx:
            position, pixels = next(frames)
        yield crop_square(pixels, tuple(crops[index]), size)


def _holds_track(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("transforms.json", "track.json"))


def _photos(sources: Sequence[str]) -> list[Path]:
    from avtool.capture.images import list_images

    paths = []
    for source in map(Path, sources):
        paths += list_images(source) if source.is_dir() else [source]
    return paths
