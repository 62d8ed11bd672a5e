"""Choosing the bust's faces and cutting them off smoothly.

The cut interpolates linearly along the edges it crosses, so every linear basis carries over: a cut mesh is a
list of (vertex a, vertex b, t) and any per-vertex quantity of it is (1 - t) x[a] + t x[b].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Coarse parts of the base mesh, in the order of their vertices in the model.
SOURCE_PARTS = ("skin", "eye_l", "eye_r", "teeth_up", "teeth_lo", "tongue", "lash_l", "lash_r")
_PART_GROUPS = {
    "eye_l": ("helper-l-eye",),
    "eye_r": ("helper-r-eye",),
    "teeth_up": ("helper-upper-teeth",),
    "teeth_lo": ("helper-lower-teeth",),
    "tongue": ("helper-tongue",),
    "lash_l": ("helper-l-eyelashes-1", "helper-l-eyelashes-2"),
    "lash_r": ("helper-r-eyelashes-1", "helper-r-eyelashes-2"),
}


@dataclass
class CutMesh:
    """Triangles (F, 3), uv triangles (F, 3), label (F,) of the uncut triangle, and where vertices and uv come from."""

    faces: np.ndarray
    uv_faces: np.ndarray
    label: np.ndarray
    vertex_sources: tuple[np.ndarray, np.ndarray, np.ndarray]
    uv_sources: tuple[np.ndarray, np.ndarray, np.ndarray]

    def carry(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Interpolate per-vertex values of the uncut mesh to this mesh's vertices."""
        return _interpolate(values, self.vertex_sources, axis)

    def carry_uv(self, uv: np.ndarray) -> np.ndarray:
        return _interpolate(uv, self.uv_sources, 0)


def select_triangles(groups: dict[str, np.ndarray], vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F, 3, 2) of (vertex, uv) indices and their coarse part (F,) around the head and shoulders."""
    body = groups["body"]
    near = (vertices[:, 1] > 0.455) & (np.abs(vertices[:, 0]) < 0.20)
    quads = [body[near[body[:, :, 0]].all(1)]]
    quads += [np.concatenate([groups[g] for g in _PART_GROUPS[p]]) for p in SOURCE_PARTS[1:]]
    part = np.repeat(np.arange(len(quads)), [len(q) for q in quads])
    quad = np.concatenate(quads)
    return np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]), np.concatenate([part, part])


def bust_height(vertices: np.ndarray) -> np.ndarray:
    """Signed distance-like field (V,), m: positive inside the bust (a curved cut below, a slanted one at the arms)."""
    x, y = np.abs(vertices[:, 0]), vertices[:, 1]
    below = y - (0.480 + 1.0 * x * x)
    arms = 0.172 - x - 0.25 * (0.54 - y).clip(0, 0.1)
    return np.minimum(below, arms)


def cut_mesh(faces: np.ndarray, uv_faces: np.ndarray, label: np.ndarray, inside: np.ndarray) -> CutMesh:
    """Clip triangles where inside (V,) > 0. faces, uv_faces (F, 3), label (F,); unused vertices are dropped."""
    positive = inside[faces] > 0
    whole, crossed = positive.all(1), positive.any(1) & ~positive.all(1)
    cutter = _Cutter(inside, num_uv=int(uv_faces.max()) + 1)
    triangles, uv_triangles, labels = [faces[whole]], [uv_faces[whole]], [label[whole]]
    for face, uv_face, own in zip(faces[crossed], uv_faces[crossed], label[crossed]):
        polygon, uv_polygon = cutter.clip(face, uv_face)
        for k in range(1, len(polygon) - 1):
            triangles.append(np.array([[polygon[0], polygon[k], polygon[k + 1]]]))
            uv_triangles.append(np.array([[uv_polygon[0], uv_polygon[k], uv_polygon[k + 1]]]))
            labels.append(np.array([own]))
    new_faces, vertex_sources = _compact(np.concatenate(triangles), cutter.vertices)
    new_uv_faces, uv_sources = _compact(np.concatenate(uv_triangles), cutter.uv)
    return CutMesh(new_faces, new_uv_faces, np.concatenate(labels), vertex_sources, uv_sources)


class _Cutter:
    """Makes the points where edges cross zero, one for each edge and uv edge."""

    def __init__(self, inside: np.ndarray, num_uv: int) -> None:
        self.inside = inside
        self.vertices = [(i, i, 0.0) for i in range(len(inside))]
        self.uv = [(i, i, 0.0) for i in range(num_uv)]
        self._known: dict[tuple[str, int, int], int] = {}

    def clip(self, face: np.ndarray, uv_face: np.ndarray) -> tuple[list[int], list[int]]:
        polygon, uv_polygon = [], []
        for k in range(3):
            a, b = int(face[k]), int(face[(k + 1) % 3])
            ua, ub = int(uv_face[k]), int(uv_face[(k + 1) % 3])
            if self.inside[a] > 0:
                polygon.append(a)
                uv_polygon.append(ua)
            if (self.inside[a] > 0) != (self.inside[b] > 0):
                t = float(self.inside[a] / (self.inside[a] - self.inside[b]))
                polygon.append(self._point("vertex", self.vertices, a, b, t))
                uv_polygon.append(self._point("uv", self.uv, ua, ub, t))
        return polygon, uv_polygon

    def _point(self, kind: str, points: list, a: int, b: int, t: float) -> int:
        if a > b:
            a, b, t = b, a, 1 - t
        key = (kind, a, b)
        if key not in self._known:
            self._known[key] = len(points)
            points.append((a, b, t))
        return self._known[key]


def _compact(faces: np.ndarray, points: list) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    used, inverse = np.unique(faces, return_inverse=True)
    a, b, t = (np.array(column) for column in zip(*(points[i] for i in used)))
    return inverse.reshape(faces.shape), (a, b, t)


def _interpolate(values: np.ndarray, sources: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int) -> np.ndarray:
    a, b, t = sources
    shape = [1] * values.ndim
    shape[axis] = len(t)
    t = t.reshape(shape)
    return values.take(a, axis) * (1 - t) + values.take(b, axis) * t
