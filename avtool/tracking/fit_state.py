"""What goes into and comes out of the landmark fit.

Shapes: n frames, I identity, E expression, C cameras. Pixels, metres, radians; numpy float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class FitOptions:
    """How to fit. Prior weights multiply the squared, normalized parameters."""

    iterations: int = 30
    identity_weight: float = 1.0
    expression_weight: float = 1.0
    focal_sigma: float = 0.15
    """Standard deviation of the log focal length around its prior."""
    fix_identity: bool = False
    fix_focal: bool = False
    rotation_sigma: float | None = None
    """How far, in radians, a frame's rotation may go from where it starts; None is free, 0 holds it."""
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Observation:
    """One detected face: landmarks (478, 2) px, principal point (2,) px and the index of its camera."""

    landmarks: np.ndarray
    center: np.ndarray
    camera: int = 0


@dataclass(frozen=True)
class Fit:
    """Result. rotations (n, 3, 3) and translations (n, 3) take rest-pose model space to the camera by way of the head
    joint's frame; gaze (n, 2, 2) is [left, right] x [pitch, yaw]; errors (n,) are fractions of the inter-ocular distance.
    """

    identity: np.ndarray
    focals: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    expression: np.ndarray
    gaze: np.ndarray
    jaw: np.ndarray
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    iterations: int = 0

    def frame(self, k: int) -> Fit:
        """The fit of one frame, as a fit with n = 1 (cameras stay)."""
        names = ("rotations", "translations", "expression", "gaze", "jaw", "errors")
        return replace(self, **{name: getattr(self, name)[k : k + 1] for name in names})
