"""Photos of one person to a Track."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..artifacts.track import Track
from ..capture.images import LoadedImage, load_image
from ..errors import AvtoolError
from ..head import HeadModel
from . import so3
from .bust import MIN_CORRELATION, BustPose, BustSolver, BustView, align, assumed_pose, make_reference, with_shared_neck
from .fit_state import Fit, Observation
from .observe import Observed, Observer, Progress
from .options import TrackingOptions
from .person import KnownPerson, known_person
from .refinement import refine_person
from .result import TrackResult, make_frame
from .staged import LandmarkFitter, group_cameras

logger = logging.getLogger("avtool")

MAX_SWING = np.radians(10.0)
"""How far an aligned bust may lie from where it is expected."""


@dataclass(frozen=True)
class Photo:
    """A photo with a face: its path as given, its EXIF focal length in pixels, and what the networks saw."""

    path: Path
    focal: float | None
    observed: Observed


def track_photos(
    paths: Sequence[str | Path],
    head: HeadModel,
    *,
    focal: float | None = None,
    photometric: bool = True,
    identity: Track | np.ndarray | None = None,
    options: TrackingOptions | None = None,
    progress: Progress | None = None,
) -> TrackResult:
    """Fits one head to all photos.

    Args:
        paths: image files of one person. Unreadable ones and ones without a face are skipped with a warning.
        head: the head model.
        focal: focal length in pixels; None takes EXIF, else finds it.
        photometric: refine shape and bust by rendering; not of a known person.
        identity: of a known person, a Track or coefficients (I,); then shape is not fitted, and with a Track its focal
            length holds for pictures of the same size, and shoulders are placed as its picture shows them.
        options: more settings; ``focal`` and ``photometric`` above go first.
        progress: called with (done, total, message).

    Raises:
        AvtoolError: no photo shows a face.
    """
    options = options or TrackingOptions()
    options = replace(options, focal=focal or options.focal, photometric=photometric and options.photometric)
    say = progress or (lambda done, total, message: None)
    photos = _observe([Path(path) for path in paths], options, say)
    fitter = LandmarkFitter.build(head)
    sizes = [photo.observed.size for photo in photos]
    person = known_person(identity)
    fixed = [options.focal_pixels(*size) or (person.focals.get(size) if person else None) for size in sizes]
    cameras, index = group_cameras(sizes, [photo.focal for photo in photos], fixed)
    observations = [Observation(p.observed.points, p.observed.center, c) for p, c in zip(photos, index)]
    used = None if person is None else person.identity[: fitter.model.identity_basis.shape[-1]]
    joint = fitter.fit_person(observations, cameras, used)
    fit = fitter.complete(observations, joint)
    offsets = None if person is None else person.offsets
    observed = [photo.observed for photo in photos]
    solver = BustSolver(head, fitter.model.full_identity(fit.identity) if person is None else person.identity, offsets)
    poses, stage = pose_busts(solver, observed, fit, index, person), {}
    if options.photometric and options.mattes and person is None:
        say(len(paths), len(paths), "refining the shape")
        result = refine_person(head, fitter, observed, observations, joint, poses)
        fit, poses, stage = fitter.complete(observations, result.joint), result.poses, {"photometric": result.summary}
        solver = BustSolver(head, fitter.model.full_identity(fit.identity))
    full = fitter.model.full_identity(fit.identity) if person is None else person.identity
    frames = [
        make_frame(fitter.model, photo.observed, fit, k, index[k], solver, poses[k], image=photo.path.as_posix())
        for k, photo in enumerate(photos)
    ]
    say(len(paths), len(paths), "done")
    return TrackResult(
        head_model=head.model_id,
        identity=full,
        frames=frames,
        offsets=offsets,
        seed=options.seed,
        metadata={**describe(fit, [cameras[c].known for c in index]), **stage},
        matte_images=tuple(photo.observed.matte for photo in photos),
    )


def describe(fit: Fit, known: list[bool]) -> dict:
    """The fit in figures, for the track's metadata."""
    return {
        "landmark_error": float(fit.errors.mean()),
        "landmark_error_unit": "mean distance over 478 landmarks / distance of the outer eye corners",
        "focal_px": [round(float(f), 2) for f in fit.focals],
        "focal_known": bool(all(known)),
    }


def pose_busts(
    solver: BustSolver, observed: list[Observed], fit: Fit, cameras: list[int], person: KnownPerson | None = None
) -> list[BustPose]:
    """Bust and neck of every photo: measured against the known person's picture, or against the most frontal photo, where
    they are assumed; assumed where the clothes do not match."""
    views = [bust_view(o, fit, k, cameras[k]) for k, o in enumerate(observed)]
    assumed = [assumed_pose(view.rotation) for view in views]
    known = None if person is None else person.reference(solver)
    if known is None and len(views) == 1:
        return assumed
    frontal = int(np.argmax(-fit.rotations[:, 2, 2]))
    view, start = known or (views[frontal], assumed[frontal])
    reference = make_reference(solver, view, start)
    poses = []
    for k, view in enumerate(views):
        if known is None and k == frontal:
            poses.append(assumed[k])
            continue
        still = with_shared_neck(start.bust, view.rotation)
        pose, correlation = align(solver, reference, view, [still, assumed[k]])
        # Plain clothes correlate with themselves anywhere: a bust far from both expectations has slid along them.
        swing = min(_angle(pose.bust, guess.bust) for guess in (still, assumed[k]))
        logger.debug("photo %d: the bust's correlation with the reference is %.2f, its swing %.2f rad", k, correlation, swing)
        poses.append(pose if correlation >= MIN_CORRELATION and swing <= MAX_SWING else assumed[k])
    return poses


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Radians between two rotations (3, 3)."""
    return float(np.linalg.norm(so3.log(a @ b.T)))


def bust_view(observed: Observed, fit: Fit, k: int, camera: int) -> BustView:
    """Frame ``k`` of a fit for the bust's alignment."""
    gray = observed.window / 255.0
    return BustView(gray, observed.square, float(fit.focals[camera]), observed.center, fit.rotations[k], fit.translations[k])


def _observe(paths: list[Path], options: TrackingOptions, say: Progress) -> list[Photo]:
    if not paths:
        raise AvtoolError("no photos to track", "name image files or a directory of them")
    observer = Observer(options.device, options.mattes, one_face=options.one_face)
    photos, problems = [], []
    for number, path in enumerate(paths):
        say(number, len(paths), path.name)
        try:
            photo = _observe_one(path, observer)
        except AvtoolError as error:
            if len(paths) == 1:
                raise
            problems.append(str(error))
            logger.warning("%s: skipped", error)
            continue
        photos.append(photo)
    if not photos:
        names = f"{paths[0]}" if len(paths) == 1 else f"{len(paths)} photos, the first {paths[0]}"
        raise AvtoolError(f"{names}: none can be used; {problems[0]}", "use photos that show one face clearly")
    return photos


def _observe_one(path: Path, observer: Observer) -> Photo:
    loaded: LoadedImage = load_image(path)
    observed = observer(loaded.pixels, name=str(path))
    if observed is None:
        height, width = loaded.pixels.shape[:2]
        raise AvtoolError(
            f"{path}: expected a face, found none that is large enough in {width} x {height} pixels",
            "use a sharp, larger photo of the face",
        )
    name = path if path.is_absolute() else Path(os.path.normpath(path))
    return Photo(name, loaded.focal_px, observed)
