"""Mending the mouth: lips that stay closed for every identity, teeth and tongue that stay behind them.

In the source data the two lips move apart with the identity, so that in four of five random heads a neutral
mouth shows slivers of teeth. Here the gap between the lips, a function of the position along the mouth line,
is taken out of the mean and of every identity component, half from each lip, fading with the distance over
the surface. Teeth and tongue then move back a little.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

FADE = 0.007  # meters over the surface at which a correction has fallen to 1/e
OVERLAP = 0.0006  # meters by which the mean's lips press into each other, so that no ray passes between them
# Meters to the left, up and forward. Upper incisors end 5.5 mm below the line where the lips meet and 2 mm before the lower
# ones, so that parted lips show them, as most people's do; all stay 13 mm or more behind the lips' front.
SHIFTS = {
    "teeth_up": (0.0, -0.0055, -0.0015),
    "teeth_lo": (0.0, -0.0005, -0.0025),
    "tongue": (0.0, -0.002, -0.003),
}


def boundary_loop(faces: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Vertices shared by triangles with inside (F,) true and false."""
    return np.intersect1d(faces[inside], faces[~inside])


def _surface_distance(faces: np.ndarray, points: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Distance (V,) along edges from the nearest of the source vertices, inf beyond three fades."""
    a, b = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    length = np.linalg.norm(points[a] - points[b], axis=1)
    first = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)]), axis=1, return_index=True)[1]
    graph = sparse.csr_matrix((length[first], (a[first], b[first])), shape=(len(points), len(points)))
    return dijkstra(graph, directed=False, indices=sources, min_only=True, limit=3 * FADE)


class LipSeal:
    """The linear operator that takes the gap between the lips out of displacements (..., V, 3)."""

    def __init__(self, template: np.ndarray, skin_faces: np.ndarray, mouth: np.ndarray, lower: np.ndarray) -> None:
        """template (V, 3); skin_faces (F, 3); mouth (F,) bool: the cavity; lower (V,) how much a vertex follows the jaw."""
        loop = boundary_loop(skin_faces, mouth)
        loop = loop[np.abs(template[loop, 1] - np.median(template[loop, 1])) < 0.02]
        x = template[loop, 0]
        corners = loop[[x.argmin(), x.argmax()]]
        middle = np.setdiff1d(loop, corners)
        # The corners' own motion, interpolated along x, tells the lips apart: the lower one moves more.
        order = np.argsort(template[corners, 0])
        between = np.interp(template[middle, 0], template[corners[order], 0], lower[corners[order]])
        is_lower = lower[middle] > np.maximum(between, 0.5 * lower[middle].max() * self._arch(template[middle, 0], x))
        self.upper = self._chain(template, middle[~is_lower], corners)
        self.lower = self._chain(template, middle[is_lower], corners)
        self.x = template[:, 0]
        to_upper = _surface_distance(skin_faces, template, self.upper[1:-1])
        to_lower = _surface_distance(skin_faces, template, self.lower[1:-1])
        nearest = np.minimum(to_upper, to_lower)
        side = np.where(to_upper < to_lower, 1.0, -1.0) * (to_upper != to_lower)  # positive on the upper lip
        self.share = 0.5 * side * np.exp(-((nearest / FADE) ** 2))

    @staticmethod
    def _arch(x: np.ndarray, loop_x: np.ndarray) -> np.ndarray:
        return (1 - (x / np.abs(loop_x).max()) ** 2).clip(0)

    @staticmethod
    def _chain(template: np.ndarray, vertices: np.ndarray, corners: np.ndarray) -> np.ndarray:
        chain = np.concatenate([vertices, corners])
        return chain[template[chain, 0].argsort()]

    def gap(self, values: np.ndarray) -> np.ndarray:
        """Upper minus lower lip line (..., V, 3) at every vertex's own position along the mouth."""
        flat = values.reshape(-1, *values.shape[-2:])
        out = np.zeros_like(flat)
        for k in range(flat.shape[0]):
            for axis in range(3):
                upper = np.interp(self.x, self.x[self.upper], flat[k, self.upper, axis])
                out[k, :, axis] = upper - np.interp(self.x, self.x[self.lower], flat[k, self.lower, axis])
        return out.reshape(values.shape)

    def close(self, values: np.ndarray, overlap: float = 0.0) -> np.ndarray:
        """values (..., V, 3) with the lip lines together in all axes; with overlap > 0, in y only, that far into each other."""
        gap = self.gap(values)
        if overlap:
            arch = self._arch(self.x, self.x[self.upper])
            gap = np.stack([np.zeros_like(self.x), gap[:, 1] + overlap * arch, np.zeros_like(self.x)], axis=-1)
        return values - self.share[:, None] * gap
