"""The photometric stage within a tracking run: which pictures it sees, and whether its result is taken.

It is taken when the pictures are met better and the landmarks, laid anew, hardly worse; else the landmark fit stays as it
is, so that the stage never makes a track worse.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from ..errors import AvtoolError
from ..head import HeadModel
from . import so3
from .bust import BustPose
from .fit_state import Fit, Observation
from .landmark_fit import landmark_information
from .observe import PICTURE_SIDE, Observed
from .photometric import Evidence, PhotometricOptions, Pictures, Refined, Start, refine
from .result import resize_matte
from .staged import JointFit, LandmarkFitter, concatenate

logger = logging.getLogger("avtool")

MAX_PICTURES = 4
"""Pictures the stage renders; its cost is proportional to them."""
MAX_LANDMARK_GROWTH = 1.15
REFINED_HOLD = 32.0
"""As IDENTITY_HOLD, for the stage's identity, which is worth more: with less of a hold laying the landmarks anew undoes
most of what the stage has gained on renders."""


@dataclass(frozen=True)
class Refinement:
    """What a run takes from the stage.

    Attributes:
        joint: the joint fit, refined, or as it was when the stage was not taken.
        poses: bust and neck of every frame.
        bust_shift: (3,) turn of the bust in the camera, mean over the pictures.
        summary: figures for the track's metadata.
    """

    joint: JointFit
    poses: list[BustPose]
    bust_shift: np.ndarray
    summary: dict


def refine_person(
    head: HeadModel,
    fitter: LandmarkFitter,
    observed: list[Observed],
    observations: list[Observation],
    joint: JointFit,
    poses: list[BustPose],
    options: PhotometricOptions = PhotometricOptions(),
) -> Refinement:
    """Runs the stage on some frames of a joint fit and lays the landmarks of all its frames anew.

    Args:
        head: the head model.
        fitter: its landmark fit.
        observed, observations, poses: of all frames, which ``joint.indices`` counts.
        options: of the stage.
    """
    kept = Refinement(joint, poses, np.zeros(3), {"taken": False})
    chosen = _pictures_for([observed[k] for k in joint.indices], joint.laid)
    if not chosen:
        return replace(kept, summary={"taken": False, "reason": "no mattes"})
    frames = [joint.indices[k] for k in chosen]
    pick = [observations[k] for k in frames]
    identity = fitter.model.full_identity(joint.laid.identity)
    start = Start(fitter.model, _frames(joint.laid, chosen), [poses[k] for k in frames], identity)
    posed = _frames(joint.posed, chosen)
    information = landmark_information(fitter.model, fitter.correlated, pick, posed, joint.options)
    evidence = Evidence(posed.identity, posed.rotations, posed.translations, information)
    try:
        refined = refine(head, start, _pictures([observed[k] for k in frames], pick, joint.laid), evidence, options)
    except AvtoolError as error:
        logger.warning("the photometric stage is left out: %s", error)
        return replace(kept, summary={"taken": False, "reason": "not finite"})
    return _judge(fitter, [observations[k] for k in joint.indices], kept, frames, refined)


def _judge(
    fitter: LandmarkFitter, observations: list[Observation], kept: Refinement, frames: list[int], refined: Refined
) -> Refinement:
    """Lays the landmarks anew with the stage's identity; takes the result when it is better."""
    joint = kept.joint
    laid = _lay_anew(fitter, observations, joint, refined.identity)
    before, after = float(joint.laid.errors.mean()), float(laid.errors.mean())
    summary = {
        "pictures": len(frames),
        "image_error": _rounded(refined.before, refined.after),
        "silhouette_iou_above_chin": _rounded(*refined.overlap),
        "mesh_outside_matte": _rounded(*refined.spill),
        "landmark_error": _rounded(before, after),
    }
    # Written so that NaN is no improvement.
    taken = refined.after < refined.before and after <= MAX_LANDMARK_GROWTH * before
    logger.debug("photometric stage: %s %s", "taken" if taken else "left out", summary)
    if not taken:
        return replace(kept, summary={"taken": False, "reason": "no better", **summary})
    poses = list(kept.poses)
    turns = []
    for k, pose in zip(frames, refined.poses):
        turns.append(so3.log(pose.bust @ poses[k].bust.T))
        poses[k] = pose
    return Refinement(replace(joint, laid=laid), poses, np.mean(turns, 0), {"taken": True, **summary})


def _lay_anew(fitter: LandmarkFitter, observations: list[Observation], joint: JointFit, identity: np.ndarray) -> Fit:
    """Both stages of the landmark fit with another identity. Poses come from landmarks again, as they do in frames that
    the photometric stage does not see: a driver's must mean the same."""
    focals = joint.laid.focals
    posed = concatenate(
        [fitter.pose_frame(o, identity, focals, joint.laid.frame(k)) for k, o in enumerate(observations)]
    )
    return fitter.lay_person(observations, replace(joint.options, fix_focal=True), posed, REFINED_HOLD)


def _rounded(*values: float) -> list[float]:
    return [round(value, 5) for value in values]


def _frames(fit: Fit, indices: list[int]) -> Fit:
    """Some frames of a fit."""
    names = ("rotations", "translations", "expression", "gaze", "jaw", "errors")
    return replace(fit, **{name: getattr(fit, name)[indices] for name in names})


def _pictures_for(observed: list[Observed], fit: Fit) -> list[int]:
    """At most MAX_PICTURES frames with mattes whose heads are turned most differently, the most frontal one first."""
    pool = [k for k, one in enumerate(observed) if one.matte is not None and one.picture is not None]
    if not pool:
        return []
    turns = so3.log(so3.FRONTAL.T @ fit.rotations[pool])
    chosen = [int(np.linalg.norm(turns, axis=1).argmin())]
    distance = np.linalg.norm(turns - turns[chosen[0]], axis=1)
    while len(chosen) < min(MAX_PICTURES, len(pool)):
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(turns - turns[chosen[-1]], axis=1))
    return sorted(pool[k] for k in chosen)


def _pictures(observed: list[Observed], observations: list[Observation], fit: Fit) -> Pictures:
    Ks = np.zeros((len(observed), 3, 3))
    for K, one, observation in zip(Ks, observed, observations):
        K[:] = np.diag([fit.focals[observation.camera], fit.focals[observation.camera], 1.0])
        K[:2, 2] = one.center
    return Pictures.build(
        np.stack([one.picture for one in observed]),
        np.stack([resize_matte(one.matte_pixels(), PICTURE_SIDE) for one in observed]),
        np.array([one.crop for one in observed], np.float64),
        np.array([one.size for one in observed], np.float64),
        np.stack([one.points for one in observed]),
        Ks,
    )
