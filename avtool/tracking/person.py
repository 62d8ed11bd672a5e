"""A known person: what an earlier track tells of them, so that new pictures of the same scene agree with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from ..artifacts.track import Frame, Track
from ..capture.images import load_image
from ..capture.samples import crop_square
from ..capture.video import read_frames
from ..errors import AvtoolError
from . import so3
from .bust import WINDOW, BustPose, BustSolver, BustView, bust_window

logger = logging.getLogger("avtool")


@dataclass(frozen=True)
class KnownPerson:
    """Shape of a person, and how they sat before the camera.

    Attributes:
        identity: (I,). offsets: (V, 3) metres, or None.
        focals: focal length in pixels by (width, height) of the pictures.
        frame, gray: the most frontal picture with landmarks, and its bust window; None when none can be read.
    """

    identity: np.ndarray
    offsets: np.ndarray | None = None
    focals: dict[tuple[int, int], float] = field(default_factory=dict)
    frame: Frame | None = None
    gray: np.ndarray | None = None

    def reference(self, solver: BustSolver) -> tuple[BustView, BustPose] | None:
        """The bust in the known picture, to align others to."""
        if self.frame is None or self.gray is None:
            return None
        frame = self.frame
        bust = np.asarray(frame.viewmat)[:3, :3]
        pose = BustPose(bust, so3.exp(np.asarray(frame.neck, np.float64)))
        rotation = bust @ pose.neck @ so3.exp(np.asarray(frame.head, np.float64))
        # The head's own rigid motion, from the bust's: the inverse of BustSolver.translation.
        translation = np.asarray(frame.viewmat)[:3, 3] - solver.translation(pose, rotation, np.zeros(3))
        K = np.asarray(frame.K)
        view = BustView(self.gray, bust_window(np.asarray(frame.landmarks)), float(K[0, 0]), K[:2, 2], rotation, translation)
        return view, pose


def known_person(identity: Track | np.ndarray | None) -> KnownPerson | None:
    """From a track, or from coefficients (I,) alone."""
    if identity is None:
        return None
    if not isinstance(identity, Track):
        return KnownPerson(np.asarray(identity, np.float64))
    focals = {(frame.width, frame.height): float(np.asarray(frame.K)[0, 0]) for frame in identity.frames}
    frame, gray = _frontal(identity)
    return KnownPerson(np.asarray(identity.identity, np.float64), identity.offsets, focals, frame, gray)


def _frontal(track: Track) -> tuple[Frame | None, np.ndarray | None]:
    """The most frontal frame that has landmarks, and its bust window."""
    seen = [frame for frame in track.frames if frame.landmarks is not None]
    if not seen:
        return None, None
    frame = min(seen, key=_turn)
    try:
        if frame.image is not None:
            pixels = load_image(track.resolve(frame.image)).pixels
        else:
            pixels = next(read_frames(track.resolve(track.video), [frame.frame_idx]))[1]
    except (AvtoolError, OSError, StopIteration) as error:
        logger.warning("the known person's picture cannot be read (%s): shoulders are placed without it", error)
        return None, None
    gray = crop_square(pixels, bust_window(np.asarray(frame.landmarks)), WINDOW).astype(np.float32).mean(-1) / 255.0
    return frame, gray


def _turn(frame: Frame) -> float:
    rotation = np.asarray(frame.viewmat)[:3, :3] @ so3.exp(np.asarray(frame.neck, np.float64)) @ so3.exp(np.asarray(frame.head, np.float64))
    return float(np.linalg.norm(so3.log(so3.FRONTAL.T @ rotation)))
