"""The landmark fit in two stages, for a person and for a single frame.

First the residuals are whitened by the detector's full covariance, which gives the most truthful pose and shape. Then,
with the rotation held, every landmark is trusted by itself, which lays the mesh onto the picture (landmark error about
half) without giving up the pose: on renders the second stage alone doubles the error of the pose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..head import HeadModel
from .affine_start import initial_fit
from .fit_state import Fit, FitOptions, Observation
from .landmark_fit import fit_landmarks
from .landmark_model import LandmarkModel, build_landmark_model
from .noise import LandmarkNoise, load_noise

MAX_JOINT = 8
"""Faces fitted jointly for the identity; more add little and cost the cube of their number."""
FOCAL_PRIOR = 1.2
"""Focal length over the longer side of the image: what phones and webcams have, roughly."""
KNOWN_FOCAL_SIGMA = 0.02
FREE_FOCAL_SIGMA = 0.15
ROTATION_HOLD = np.radians(0.4)
"""How firmly the second stage holds the rotation of the first; tight, because it counts every landmark as independent."""
LAY_WEIGHT = 0.3
"""Weight of the expression's prior in the second stage."""
IDENTITY_HOLD = 4.0
"""Weight of the first stage's identity in the second one, in units of the prior: laying the mesh onto the picture may bend
the face only a little, for on renders a looser hold gives a falser shape."""


@dataclass(frozen=True)
class Camera:
    """One camera: focal length in pixels and how well it is known."""

    focal: float
    known: bool


@dataclass(frozen=True)
class JointFit:
    """Frames fitted jointly: their indices, how they were fitted, and both stages' results."""

    indices: list[int]
    options: FitOptions
    posed: Fit
    laid: Fit


@dataclass(frozen=True)
class LandmarkFitter:
    """A head model with its calibrated noise, correlated and independent."""

    model: LandmarkModel
    correlated: LandmarkNoise
    independent: LandmarkNoise

    @staticmethod
    def build(head: HeadModel) -> LandmarkFitter:
        model = build_landmark_model(head)
        ids = tuple(int(i) for i in model.landmark_ids)
        return LandmarkFitter(model, load_noise(head.model_id, ids, 1.0), load_noise(head.model_id, ids, 0.0))

    def fit_person(
        self, observations: list[Observation], cameras: list[Camera], identity: np.ndarray | None = None
    ) -> JointFit:
        """Fit at most MAX_JOINT frames of a person jointly.

        Args:
            observations: n faces.
            cameras: the cameras that ``Observation.camera`` counts.
            identity: (I,) components in use when the person is known; then only the rest is fitted.
        """
        count = len(observations)
        indices = np.unique(np.linspace(0, count - 1, min(MAX_JOINT, count)).round().astype(int)).tolist()
        # Every camera needs a frame of its own in the joint fit, or its focal would stay at the prior.
        seen = {observations[k].camera for k in indices}
        for k, observation in enumerate(observations):
            if observation.camera not in seen:
                indices.append(k)
                seen.add(observation.camera)
        chosen = [observations[k] for k in indices]
        focals = np.array([c.focal for c in cameras])
        known = all(c.known for c in cameras)
        sigma = KNOWN_FOCAL_SIGMA if known else FREE_FOCAL_SIGMA
        options = FitOptions(fix_identity=identity is not None, fix_focal=known, focal_sigma=sigma)
        start = initial_fit(self.model, chosen, focals, identity)
        posed = fit_landmarks(self.model, self.correlated, chosen, focals, options, start)
        return JointFit(indices, options, posed, self.lay_person(chosen, options, posed))

    def lay_person(
        self, observations: list[Observation], options: FitOptions, posed: Fit, hold: float = IDENTITY_HOLD
    ) -> Fit:
        """The second stage of `fit_person`: lays the mesh onto the pictures near the rotations and identity of ``posed``."""
        options = replace(
            options, identity_weight=hold, expression_weight=LAY_WEIGHT, focal_sigma=0.05,
            rotation_sigma=ROTATION_HOLD, iterations=20,
        )  # fmt: skip
        return fit_landmarks(
            self.model, self.independent, observations, posed.focals, options, posed, identity_mean=posed.identity
        )

    def complete(self, observations: list[Observation], joint: JointFit) -> Fit:
        """The fit of all frames: those of the joint fit as they are, the others with its identity and focals."""
        place = {k: j for j, k in enumerate(joint.indices)}
        return concatenate(
            [
                joint.laid.frame(place[k]) if k in place else self.fit_frame(o, joint.laid.identity, joint.laid.focals)
                for k, o in enumerate(observations)
            ]
        )

    def fit_frame(
        self,
        observation: Observation,
        identity: np.ndarray,
        focals: np.ndarray,
        start: Fit | None = None,
        weight: float = 0.0,
    ) -> Fit:
        """Fit one frame of a known person.

        Args:
            start: fit of the frame before; its pose and expression are where this one starts.
            weight: how much to hold on to that expression, in units of the expression's prior.
        """
        first = self.pose_frame(observation, identity, focals, start, weight)
        return self.lay_frame(observation, first, weight)

    def pose_frame(
        self,
        observation: Observation,
        identity: np.ndarray,
        focals: np.ndarray,
        start: Fit | None = None,
        weight: float = 0.0,
    ) -> Fit:
        """The first stage of `fit_frame`."""
        if start is None:
            start = initial_fit(self.model, [observation], focals, identity)
        start = replace(start, identity=identity, focals=focals)
        options = FitOptions(iterations=10, fix_identity=True, fix_focal=True, tolerance=1e-3)
        return fit_landmarks(
            self.model, self.correlated, [observation], focals, options, start, start.expression, weight
        )

    def lay_frame(self, observation: Observation, first: Fit, weight: float = 0.0, hold: float = ROTATION_HOLD) -> Fit:
        """The second stage of `fit_frame`, near the rotation of ``first``."""
        options = FitOptions(
            iterations=8, fix_identity=True, fix_focal=True, tolerance=1e-3, expression_weight=LAY_WEIGHT, rotation_sigma=hold
        )
        return fit_landmarks(
            self.model, self.independent, [observation], first.focals, options, first, first.expression, weight
        )


def concatenate(fits: list[Fit]) -> Fit:
    """Fits of one person, one after the other."""
    names = ("rotations", "translations", "expression", "gaze", "jaw", "errors")
    return replace(fits[0], **{name: np.concatenate([getattr(fit, name) for fit in fits]) for name in names})


def group_cameras(
    sizes: list[tuple[int, int]], exif: list[float | None], fixed: list[float | None]
) -> tuple[list[Camera], list[int]]:
    """Photos of one size and one focal length come from one camera.

    Args:
        sizes: (width, height) of each photo.
        exif: focal length of each in pixels as its file tells, or None.
        fixed: focal length of each in pixels as the user tells, or None.

    Returns:
        cameras, and the camera's index of each photo.
    """
    keys: dict[tuple, int] = {}
    cameras, index = [], []
    for (width, height), told, given in zip(sizes, exif, fixed):
        long_side = max(width, height)
        known = given or told
        key = (long_side, min(width, height), None if known is None else round(known / long_side, 3))
        if key not in keys:
            keys[key] = len(cameras)
            cameras.append(Camera(known or FOCAL_PRIOR * long_side, known is not None))
        index.append(keys[key])
    return cameras, index
