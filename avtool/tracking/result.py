"""From a fit to a Track, and the Track with its mattes onto the disk."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..artifacts.files import atomic_write, refuse_existing
from ..artifacts.track import Frame, Track, data_directory
from ..capture.video import VideoWriter
from . import so3
from .bust import BustPose, BustSolver
from .fit_state import Fit
from .landmark_model import LandmarkModel
from .observe import Observed

logger = logging.getLogger("avtool")


@dataclass(frozen=True)
class TrackResult(Track):
    """A Track that still holds its mattes (PNG bytes, one for each frame) in memory; ``save_track`` stores them."""

    matte_images: tuple[bytes | None, ...] = ()

    def select(self, indices: Sequence[int]) -> TrackResult:
        """The track of some of its frames, with their mattes."""
        held = tuple(self.matte_images[i] for i in indices) if self.matte_images else ()
        return replace(self, frames=[self.frames[i] for i in indices], mattes_video=None, matte_images=held)


def make_frame(
    model: LandmarkModel,
    observed: Observed,
    fit: Fit,
    k: int,
    camera: int,
    solver: BustSolver,
    pose: BustPose,
    image: str | None = None,
    frame_idx: int | None = None,
    timestamp: float | None = None,
) -> Frame:
    """One frame of the track from frame ``k`` of a fit and the bust's pose."""
    focal, (width, height) = float(fit.focals[camera]), observed.size
    rotation = fit.rotations[k]
    turned = (pose.bust @ pose.neck).T @ rotation
    eyes = np.stack([so3.log(so3.gaze_matrix(*fit.gaze[k, side])[0]) for side in (0, 1)])
    return Frame(
        image=image,
        frame_idx=frame_idx,
        width=width,
        height=height,
        K=np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]]),
        viewmat=solver.viewmat(pose, rotation, fit.translations[k]),
        expression=model.full_expression(fit.expression[k]),
        neck=so3.log(pose.neck),
        head=so3.log(turned),
        jaw=np.array([fit.jaw[k], 0.0, 0.0]),
        eyes=eyes,
        landmarks=observed.points,
        crop=observed.crop,
        residual=float(fit.errors[k]),
        timestamp=timestamp,
    )


def save_track(track: Track, path: str | Path, force: bool = False) -> None:
    """Writes a track and, beside it in ``<stem>.data``, the mattes that it holds: PNGs for photos, a gray video for a video.

    Args:
        track: a TrackResult, or any Track, which is saved as it is.
        path: the .json file.
        force: overwrite.
    """
    path = Path(path)
    refuse_existing(path, force)
    mattes = getattr(track, "matte_images", ())
    if not any(mattes):
        track.save(path, force)
        return
    directory = data_directory(path)
    existed = directory.exists()
    directory.mkdir(exist_ok=True)
    try:
        stored = _store_mattes(track, directory)
        replace(stored, base=path.parent).save(path, force)
    except BaseException:
        # Also on Ctrl-C: what this call made must not look like a track.
        if not existed:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def resize_matte(matte: np.ndarray, side: int) -> np.ndarray:
    """A matte uint8 (s, s) at another size."""
    method = Image.Resampling.BOX if matte.shape[0] >= side else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(matte).resize((side, side), method))


def _store_mattes(track: TrackResult, directory: Path) -> TrackResult:
    here = track.rebased(directory.parent)
    if track.video is None:
        frames = []
        for index, (frame, matte) in enumerate(zip(here.frames, track.matte_images)):
            name = f"matte_{index:04d}.png"
            with atomic_write(directory / name) as temporary:
                temporary.write_bytes(matte)
            frames.append(replace(frame, matte=f"{directory.name}/{name}"))
        return replace(here, frames=frames)
    decoded = [np.asarray(Image.open(io.BytesIO(matte))) for matte in track.matte_images]
    side = decoded[0].shape[0]
    with VideoWriter(directory / "mattes.mp4", track.fps or 25.0, (side, side), gray=True, quality=20) as writer:
        for matte in decoded:
            writer.write(matte)
    return replace(here, mattes_video=f"{directory.name}/mattes.mp4")
