"""Where a landmark fit starts: neutral faces, posed by a scaled-orthographic camera.

Shapes: n frames, L landmarks, I identity. Pixels, metres; numpy float64.
"""

from __future__ import annotations

import numpy as np

from .fit_state import Fit, Observation
from .landmark_model import LandmarkModel


def initial_fit(
    model: LandmarkModel,
    observations: list[Observation],
    focals: np.ndarray,
    identity: np.ndarray | None = None,
) -> Fit:
    """Neutral faces posed by a scaled-orthographic camera fitted to the rigid landmarks."""
    identity = np.zeros(model.identity_basis.shape[-1]) if identity is None else identity
    rigid = model.eye_weights.sum(0) < 0.5
    points = (model.template + model.identity_basis @ identity)[rigid]
    rotations, translations = [], []
    for observation in observations:
        pixels = observation.landmarks[model.landmark_ids][rigid]
        rotation, translation = _affine_pose(points, pixels - observation.center, float(focals[observation.camera]))
        rotations.append(rotation)
        translations.append(translation)
    n = len(observations)
    return Fit(
        identity=identity,
        focals=np.asarray(focals, np.float64),
        rotations=np.stack(rotations),
        translations=np.stack(translations),
        expression=np.zeros((n, model.expression_basis.shape[-1])),
        gaze=np.zeros((n, 2, 2)),
        jaw=np.zeros(n),
    )


def _affine_pose(points: np.ndarray, pixels: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    centered = points - points.mean(0)
    rows = np.linalg.lstsq(centered, pixels - pixels.mean(0), rcond=None)[0].T
    scale = (np.linalg.norm(rows[0]) + np.linalg.norm(rows[1])) / 2
    # The nearest pair of orthonormal rows, so that neither axis is favored.
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    axes = left @ right
    rotation = np.stack([axes[0], axes[1], np.cross(axes[0], axes[1])])
    depth = focal / scale
    center = np.array([*(pixels.mean(0) / scale), depth])
    return rotation, center - rotation @ points.mean(0)
