"""A video of one person to a Track: key frames jointly, then every frame in turn, then smoothing without lag."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..artifacts.track import Track
from ..capture.video import probe_video, read_video
from ..errors import AvtoolError
from ..head import HeadModel
from . import so3
from .affine_start import initial_fit
from .bust import MIN_CORRELATION, NECK_SHARE, BustPose, BustSolver, BustView, align, make_reference, with_shared_neck
from .fit_state import Fit, Observation
from .landmark_fit import interocular, landmark_errors
from .observe import Observed, Observer, Progress
from .options import TrackingOptions
from .person import KnownPerson, known_person
from .photos import bust_view, describe
from .refinement import Refinement, refine_person
from .result import TrackResult, make_frame
from .smoothing import BUST_SECONDS, gaussian, smooth_pose, smooth_rest, smooth_rotations
from .staged import Camera, JointFit, LandmarkFitter, concatenate, group_cameras

logger = logging.getLogger("avtool")

KEY_FRAMES = 8
MATTE_SIDE = 256
HOLD = 0.3
"""How much a frame holds on to the expression of the one before, in units of the expression's prior."""
MAX_GAP = 3
"""Frames without a face that a run may bridge before smoothing starts anew."""
STEADY_FRACTION = 0.6
"""Part of the clip's median head turn that the bust takes."""


@dataclass(frozen=True)
class Clip:
    """The frames of a video that show a face: their indices and what the networks saw."""

    path: Path
    fps: float
    indices: list[int]
    observed: list[Observed]
    missed: int


def track_video(
    path: str | Path,
    head: HeadModel,
    *,
    identity: Track | np.ndarray | None = None,
    focal: float | None = None,
    photometric: bool = True,
    mattes: bool = True,
    options: TrackingOptions | None = None,
    progress: Progress | None = None,
) -> TrackResult:
    """Fits one head to a video.

    Args:
        path: the video.
        head: the head model.
        identity: of a known person, a Track or coefficients (I,).
        focal: focal length in pixels; None finds it.
        photometric: refine shape and bust by rendering key frames.
        mattes: cut out the head in every frame; a driver needs none, and without them nothing is rendered.
        options: more settings; the arguments above go first.
        progress: called with (done, total, message).

    Raises:
        AvtoolError: no frame shows a face.
    """
    options = options or TrackingOptions()
    options = replace(
        options,
        focal=focal or options.focal,
        photometric=photometric and options.photometric,
        mattes=mattes and options.mattes,
    )
    say = progress or (lambda done, total, message: None)
    clip = observe_clip(Path(path), options, say)
    fitter = LandmarkFitter.build(head)
    size = clip.observed[0].size
    known = known_person(identity)
    focal = options.focal_pixels(*size) or (known.focals.get(size) if known else None)
    cameras, _ = group_cameras([size], [None], [focal])
    observations = [Observation(o.points, o.center) for o in clip.observed]
    used = None if known is None else known.identity[: fitter.model.identity_basis.shape[-1]]
    keys = key_frames(fitter, observations, cameras)
    joint = fitter.fit_person([observations[k] for k in keys], cameras, used)
    shift, stage = np.zeros(3), {}
    if options.photometric and options.mattes and known is None:
        say(0, len(observations), "refining the shape")
        result = _refine(head, fitter, clip, observations, keys, joint)
        joint, shift, stage = result.joint, result.bust_shift, {"photometric": result.summary}
    fit = _fit_all(fitter, observations, joint.laid, clip, head, say)
    full = fitter.model.full_identity(joint.laid.identity) if known is None else known.identity
    offsets = None if known is None else known.offsets
    solver = BustSolver(head, full, offsets)
    poses = pose_bust_clip(solver, clip, fit, known, shift)
    name = Path(path) if Path(path).is_absolute() else Path(os.path.normpath(path))
    frames = [
        make_frame(fitter.model, clip.observed[k], fit, k, 0, solver, poses[k], frame_idx=i, timestamp=i / clip.fps)
        for k, i in enumerate(clip.indices)
    ]
    return TrackResult(
        head_model=head.model_id,
        identity=full,
        frames=frames,
        video=name.as_posix(),
        fps=clip.fps / options.stride,
        offsets=offsets,
        seed=options.seed,
        metadata={**describe(fit, [cameras[0].known]), "frames_without_face": clip.missed, **stage},
        matte_images=tuple(o.matte for o in clip.observed) if options.mattes else (),
    )


def _refine(
    head: HeadModel, fitter: LandmarkFitter, clip: Clip, observations: list[Observation], keys: list[int], joint: JointFit
) -> Refinement:
    """The photometric stage on the key frames, all of which are in the joint fit."""
    solver = BustSolver(head, fitter.model.full_identity(joint.laid.identity))
    frames = [keys[k] for k in joint.indices]
    views = [bust_view(clip.observed[k], joint.laid, j, 0) for j, k in enumerate(frames)]
    poses = _pose_busts(solver, views, joint.laid, None, np.zeros(3))
    joint = replace(joint, indices=list(range(len(frames))))
    return refine_person(
        head, fitter, [clip.observed[k] for k in frames], [observations[k] for k in frames], joint, poses
    )


def observe_clip(path: Path, options: TrackingOptions, say: Progress) -> Clip:
    """Runs the networks on every chosen frame of a video."""
    info = probe_video(path)
    total = -(-info.num_frames // options.stride)
    stop = None
    if options.max_frames is not None and options.max_frames < total:
        total = options.max_frames
        stop = (total - 1) * options.stride + 1
    observer = Observer(options.device, options.mattes, MATTE_SIDE)
    indices, observed, roi, missed = [], [], None, 0
    for number, image in enumerate(read_video(path, 0, stop, options.stride)):
        found = observer(image, roi, f"{path}, frame {number * options.stride}")
        roi = found.roi if found else None
        if found is None:
            missed += 1
        else:
            indices.append(number * options.stride)
            observed.append(found)
        say(number + 1, total, "finding the face")
    if not observed:
        raise AvtoolError(f"{path}: expected a face, found none in {missed} frames", "use a video that shows one face")
    if missed:
        logger.warning("%s: %d of %d frames show no usable face and are left out", path, missed, missed + len(observed))
    return Clip(path, info.fps, indices, observed, missed)


def key_frames(fitter: LandmarkFitter, observations: list[Observation], cameras: list[Camera]) -> list[int]:
    """Frames that differ most in pose and expression, by farthest-point sampling, in order."""
    stride = max(1, len(observations) // 200)
    pool = list(range(0, len(observations), stride))
    start = initial_fit(fitter.model, [observations[k] for k in pool], np.array([cameras[0].focal]))
    turns = so3.log(np.einsum("ij,njk->nik", so3.FRONTAL.T, start.rotations))
    features = np.concatenate([turns / 0.25, _opening([observations[k] for k in pool]) / 0.15], 1)
    chosen = [int(np.argmin(((features - np.median(features, 0)) ** 2).sum(1)))]
    distance = ((features - features[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(KEY_FRAMES, len(pool)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((features - features[chosen[-1]]) ** 2).sum(1))
    return sorted(pool[c] for c in set(chosen))


def _opening(observations: Sequence[Observation]) -> np.ndarray:
    """(n, 3) opening of mouth, right and left eye over the inter-ocular distance."""
    pairs = ((13, 14), (159, 145), (386, 374))
    rows = [[np.linalg.norm(o.landmarks[a] - o.landmarks[b]) / interocular(o.landmarks) for a, b in pairs]
            for o in observations]  # fmt: skip
    return np.array(rows)


def _fit_all(
    fitter: LandmarkFitter, observations: list[Observation], person: Fit, clip: Clip, head: HeadModel, say: Progress
) -> Fit:
    """Every frame with the person's identity and focal: pose from one frame to the next, smoothed, then laid onto the
    picture by itself, so that smoothing costs no accuracy there."""
    fits: list[Fit] = []
    for k, observation in enumerate(observations):
        follows = k > 0 and clip.indices[k] - clip.indices[k - 1] <= MAX_GAP * _step(clip)
        start = fits[-1] if follows else None
        fits.append(fitter.pose_frame(observation, person.identity, person.focals, start, HOLD if follows else 0.0))
        say(k + 1, 2 * len(observations), "fitting the head")
    rate, runs = clip.fps / _step(clip), runs_of(clip)
    posed = concatenate(fits)
    posed = replace(posed, rotations=smooth_pose(posed.rotations, runs, rate))
    laid = []
    for k, observation in enumerate(observations):
        laid.append(fitter.lay_frame(observation, posed.frame(k)))
        say(len(observations) + k + 1, 2 * len(observations), "fitting the head")
    fit = smooth_rest(concatenate(laid), fitter.model, list(head.expression_names), runs, rate)
    return replace(fit, errors=landmark_errors(fitter.model, fitter.independent, observations, fit))


def _step(clip: Clip) -> int:
    """Frames of the video from one tracked frame to the next."""
    return int(np.diff(clip.indices).min()) if len(clip.indices) > 1 else 1


def runs_of(clip: Clip) -> list[slice]:
    """Contiguous runs of tracked frames."""
    breaks = np.flatnonzero(np.diff(clip.indices) > MAX_GAP * _step(clip)) + 1
    edges = [0, *breaks.tolist(), len(clip.indices)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:])]


def pose_bust_clip(
    solver: BustSolver, clip: Clip, fit: Fit, person: KnownPerson | None, shift: np.ndarray
) -> list[BustPose]:
    """Bust and neck of every frame: steady for the clip, and measured against the known person's picture when it shows
    the same clothes, else against the clip's most typical frame.

    Args:
        shift: (3,) turn of the bust in the camera that the photometric stage found.
    """
    poses = _pose_busts(solver, [bust_view(o, fit, k, 0) for k, o in enumerate(clip.observed)], fit, person, shift)
    busts, necks = np.stack([p.bust for p in poses]), np.stack([p.neck for p in poses])
    rate = clip.fps / _step(clip)
    for run in runs_of(clip):
        busts[run] = smooth_rotations(busts[run], lambda x: gaussian(x, BUST_SECONDS, rate))
        necks[run] = smooth_rotations(necks[run], lambda x: gaussian(x, BUST_SECONDS / 2, rate))
    return [BustPose(b, n) for b, n in zip(busts, necks)]


def _pose_busts(
    solver: BustSolver, views: list[BustView], fit: Fit, person: KnownPerson | None, shift: np.ndarray
) -> list[BustPose]:
    turns = so3.log(np.einsum("ij,njk->nik", so3.FRONTAL.T, fit.rotations))
    median = np.median(turns, 0)
    typical = int(np.argmin(((turns - median) ** 2).sum(1)))
    steady = so3.exp(shift) @ so3.FRONTAL @ so3.exp(STEADY_FRACTION * median)
    reference = make_reference(solver, views[typical], with_shared_neck(steady, views[typical].rotation))
    known = None if person is None else person.reference(solver)
    if known is not None:
        candidate = make_reference(solver, *known)
        start = with_shared_neck(known[1].bust, views[typical].rotation)
        if align(solver, candidate, views[typical], [start])[1] >= MIN_CORRELATION:
            steady, reference = known[1].bust, candidate
    poses: list[BustPose] = []
    for view in views:
        prior = with_shared_neck(steady, view.rotation)
        starts = [prior, _carried(poses[-1], view.rotation)] if poses else [prior]
        pose, correlation = align(solver, reference, view, starts)
        poses.append(pose if correlation >= MIN_CORRELATION else prior)
    return poses


def _carried(pose: BustPose, rotation: np.ndarray) -> BustPose:
    """The bust of the frame before, its neck turned along with the head."""
    return BustPose(pose.bust, so3.scaled(pose.bust.T @ rotation, NECK_SHARE))
