"""A photo laid on a head mesh and looked at from elsewhere: the simplest thing that one photo and a tracked mesh give.

Every sample of the new picture is carried by its triangle to where the photo shows it. What the photo does not show (hidden by another part
of the mesh, seen at a grazing angle, outside of the matte) is taken from the mirrored place of the face, and what is not seen there either
from the nearest vertex that is.

Shape legend: V vertices, F triangles, M samples, S side in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from avtool.head import HeadModel
from avtool.synth.draw import vertex_normals
from avtool.synth.kernels import raster_opaque

SAMPLES = 2  # a side of a pixel
HIDDEN = 0.004  # meters behind the nearest surface: farther is hidden
GRAZING = 0.2  # cosine between normal and view: below it the photo has too few pixels
INSIDE = 0.9  # matte

Array = NDArray[np.float64]


def to_samples(vertices: Array, viewmat: Array, K: Array) -> tuple[Array, Array]:
    """Pixels (V, 2) and depths (V,) of world points."""
    camera = vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = np.maximum(camera[:, 2], 1e-3)
    return (camera[:, :2] / depth[:, None]) * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]], depth


def rasterize(vertices: Array, faces: NDArray[np.int32], viewmat: Array, K: Array, size: int) -> tuple[NDArray, NDArray]:
    """1/depth (size, size), 0 where nothing is, and the nearest triangle there or -1."""
    xy, depth = to_samples(vertices, viewmat, K)
    inverse, nearest = np.zeros((size, size), np.float32), np.full((size, size), -1, np.int32)
    raster_opaque(xy.astype(np.float32), (1 / depth).astype(np.float32), faces, inverse, nearest)
    return inverse, nearest


def scaled(K: Array, factor: float) -> Array:
    """Intrinsics of a picture `factor` times as large."""
    return np.diag([factor, factor, 1.0]) @ K


class ProjectedPhoto:
    """A photo (S, S, 3) with its matte (S, S) on a posed mesh (V, 3), seen by viewmat (4, 4), K (3, 3)."""

    def __init__(self, head: HeadModel, photo: NDArray, matte: NDArray, vertices: NDArray, viewmat: NDArray, K: NDArray) -> None:
        self.faces = np.ascontiguousarray(head.faces.numpy(), np.int32)
        self.photo, self.matte = np.asarray(photo, np.float64), np.asarray(matte, np.float64)
        self.vertices, self.viewmat, self.K = np.asarray(vertices, np.float64), np.asarray(viewmat, np.float64), np.asarray(K, np.float64)
        self.normals = vertex_normals(self.vertices, self.faces).astype(np.float64)
        self.size = self.photo.shape[0]
        self.inverse, _ = rasterize(self.vertices, self.faces, self.viewmat, scaled(self.K, SAMPLES), SAMPLES * self.size)
        rest = head.template.numpy()
        self.mirror = cKDTree(rest).query(rest * [-1, 1, 1])[1]
        self.colors = self._vertex_colors(rest)

    def _vertex_colors(self, rest: Array) -> Array:
        """(V, 3): seen, else mirrored, else the nearest vertex that has a color."""
        own = np.repeat(np.arange(len(rest))[:, None], 3, 1)
        weights = np.tile([1.0, 0.0, 0.0], (len(rest), 1))
        colors, known = self._mirrored(own, weights)
        if not known.any():
            return np.full_like(colors, 0.5)
        colors[~known] = colors[known][cKDTree(rest[known]).query(rest[~known])[1]]
        return colors

    def _look(self, corners: NDArray, weights: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Colors (M, 3) of surface points in the photo, and whether it shows them; corners and weights (M, 3)."""
        points = (self.vertices[corners] * weights[..., None]).sum(1)
        normals = (self.normals[corners] * weights[..., None]).sum(1)
        xy, depth = to_samples(points, self.viewmat, self.K)
        eye = -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]
        toward = eye - points
        cosine = (normals * toward).sum(1) / np.maximum(np.linalg.norm(normals, axis=1) * np.linalg.norm(toward, axis=1), 1e-9)
        inside = ((xy > 0) & (xy < self.size)).all(1)
        column, row = np.clip(xy * SAMPLES, 0, SAMPLES * self.size - 1).astype(int).T
        front = 1 / np.maximum(self.inverse[row, column], 1e-6)
        at = np.clip(xy[:, ::-1] - 0.5, 0, self.size - 1).T
        matte = map_coordinates(self.matte, at, order=1)
        colors = np.stack([map_coordinates(self.photo[..., c], at, order=1) for c in range(3)], 1)
        return colors, inside & (depth < front + HIDDEN) & (cosine > GRAZING) & (matte > INSIDE)

    def _mirrored(self, corners: NDArray, weights: Array) -> tuple[Array, NDArray[np.bool_]]:
        """As _look, with the other half of the face where this one is not seen."""
        colors, seen = self._look(corners, weights)
        missing = np.flatnonzero(~seen)
        other, found = self._look(self.mirror[corners[missing]], weights[missing])
        colors[missing[found]], seen[missing[found]] = other[found], True
        return colors, seen

    def draw(self, vertices: NDArray, viewmat: NDArray, K: NDArray, size: int) -> tuple[Array, Array]:
        """Colors premultiplied (size, size, 3) and coverage (size, size) of the mesh in another pose (V, 3) from another camera."""
        vertices, viewmat = np.asarray(vertices, np.float64), np.asarray(viewmat, np.float64)
        K = scaled(np.asarray(K, np.float64), SAMPLES)
        _, nearest = rasterize(vertices, self.faces, viewmat, K, SAMPLES * size)
        row, column = np.nonzero(nearest >= 0)
        corners = self.faces[nearest[row, column]]
        weights = surface_weights(vertices, corners, np.stack([column, row], 1) + 0.5, viewmat, K)
        colors, seen = self._mirrored(corners, weights)
        filled = (self.colors[corners] * weights[..., None]).sum(1)
        out = np.zeros((SAMPLES * size, SAMPLES * size, 4))
        out[row, column, :3], out[row, column, 3] = np.where(seen[:, None], colors, filled), 1
        out = out.reshape(size, SAMPLES, size, SAMPLES, 4).mean((1, 3))
        return out[..., :3], out[..., 3]


def surface_weights(vertices: Array, corners: NDArray, pixels: Array, viewmat: Array, K: Array) -> Array:
    """(M, 3) barycentric weights, in space, of the points of triangles `corners` (M, 3) that are seen at `pixels` (M, 2)."""
    xy, depth = to_samples(vertices, viewmat, K)
    a, b, c = np.moveaxis(xy[corners], 1, 0)

    def area(p: Array, q: Array, r: Array) -> Array:
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    flat = np.stack([area(b, c, pixels), area(c, a, pixels), area(a, b, pixels)], 1) / depth[corners]
    return flat / flat.sum(1, keepdims=True)
