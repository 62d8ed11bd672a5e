"""Rotations in numpy float64 for the solvers of this room: rotation vectors (3,) in radians, matrices (3, 3)."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

FRONTAL = np.diag([1.0, -1.0, -1.0])
"""World to camera of a camera straight in front of the face (OpenCV axes)."""


def skew(vectors: np.ndarray) -> np.ndarray:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    zero = np.zeros_like(x)
    rows = [np.stack([zero, -z, y], -1), np.stack([z, zero, -x], -1), np.stack([-y, x, zero], -1)]
    return np.stack(rows, -2)


def exp(rotvec: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3)."""
    rotvec = np.asarray(rotvec, dtype=np.float64)
    return Rotation.from_rotvec(rotvec.reshape(-1, 3)).as_matrix().reshape(*rotvec.shape[:-1], 3, 3)


def log(matrix: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3) of rotation matrices (..., 3, 3)."""
    return Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec().reshape(*matrix.shape[:-2], 3)


def scaled(matrix: np.ndarray, fraction: float) -> np.ndarray:
    """The same turn, done only in part: exp(fraction * log(matrix))."""
    return exp(fraction * log(matrix))


def gaze_matrix(pitch: float, yaw: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eye rotation Ry(yaw) Rx(pitch) and its derivatives by pitch and by yaw, three (3, 3) matrices.

    Positive yaw turns the eye to the person's left (+x), positive pitch turns it down.
    """
    cp, sp, cy, sy = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    rx = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    d_rx = np.array([[0, 0, 0], [0, -sp, -cp], [0, cp, -sp]])
    d_ry = np.array([[-sy, 0, cy], [0, 0, 0], [-cy, 0, -sy]])
    return ry @ rx, ry @ d_rx, d_ry @ rx
