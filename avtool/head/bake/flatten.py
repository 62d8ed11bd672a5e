"""Flattening a chart with little distortion: as-rigid-as-possible parameterization (Liu et al. 2008)."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import factorized

ITERATIONS = 40
MIN_SINE = 0.05  # cotangents of slivers are capped, or a few needles would rule the whole chart


def triangle_areas(corners: np.ndarray) -> np.ndarray:
    """Areas (F,) of triangles (F, 3, 2 or 3)."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    if corners.shape[-1] == 2:
        return np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    return np.linalg.norm(np.cross(a, b), axis=1) / 2


def _local_triangles(corners: np.ndarray) -> np.ndarray:
    """Each triangle (F, 3, 3) laid into its own plane: (F, 3, 2), first corner at the origin, counter-clockwise."""
    edge, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length = np.linalg.norm(edge, axis=1).clip(1e-9)
    along = (edge * other).sum(1) / length
    height = np.linalg.norm(np.cross(edge, other), axis=1) / length
    zero = np.zeros_like(length)
    return np.stack([zero, zero, length, zero, along, height], axis=1).reshape(-1, 3, 2)


def flatten_chart(uv: np.ndarray, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Flatten a chart's surface points (T, 3) m; its uv (T, 2), free of overlaps, is where the search starts.

    Returns (T, 2) in meters with the chart's true total area.
    """
    area = triangle_areas(points[faces]).sum()
    signed = uv[faces]
    turn = np.cross(*(np.pad(signed[:, k] - signed[:, 0], ((0, 0), (0, 1))) for k in (1, 2)))[:, 2]
    mirrored = turn.sum() < 0
    flat = uv * np.array([-1.0, 1.0]) if mirrored else uv.copy()
    flat = flat * np.sqrt(area / triangle_areas(flat[faces]).sum())
    flat = _rigid_iterations(flat, _local_triangles(points[faces]), faces)
    return flat * np.sqrt(area / triangle_areas(flat[faces]).sum())


def _rigid_iterations(flat: np.ndarray, local: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Alternate best rotations per triangle and a Poisson solve for the positions."""
    tail, head = np.array([0, 1, 2]), np.array([1, 2, 0])
    edge = local[:, tail] - local[:, head]  # (F, 3, 2)
    opposite = local[:, [2, 0, 1]]
    a, b = local[:, tail] - opposite, local[:, head] - opposite
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    sine = np.abs(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) / lengths.clip(1e-12)
    weight = ((a * b).sum(-1) / lengths.clip(1e-12) / sine.clip(MIN_SINE)).clip(0.05) / 2
    i, j = faces[:, tail].ravel(), faces[:, head].ravel()
    w, count = weight.ravel(), len(flat)
    matrix = sparse.csc_matrix((np.r_[w, w, -w, -w], (np.r_[i, j, i, j], np.r_[i, j, j, i])), shape=(count, count))
    solve = factorized((matrix + 1e-9 * sparse.identity(count)).tocsc())
    for _ in range(ITERATIONS):
        mapped = flat[faces[:, tail]] - flat[faces[:, head]]
        covariance = np.einsum("fe,fea,feb->fab", weight, mapped, edge)
        # The closest 2 x 2 rotation in closed form.
        cosine, sin = covariance[:, 0, 0] + covariance[:, 1, 1], covariance[:, 1, 0] - covariance[:, 0, 1]
        norm = np.hypot(cosine, sin).clip(1e-12)
        rotation = np.stack([cosine, -sin, sin, cosine], axis=1).reshape(-1, 2, 2) / norm[:, None, None]
        force = (weight[..., None] * np.einsum("fab,feb->fea", rotation, edge)).reshape(-1, 2)
        right = np.zeros((count, 2))
        np.add.at(right, i, force)
        np.add.at(right, j, -force)
        flat = np.stack([solve(right[:, 0]), solve(right[:, 1])], axis=1)
    return flat
