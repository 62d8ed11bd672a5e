"""The UV atlas that Gaussians are seeded from: every region gets texels in proportion to what it is worth.

A chart is a connected piece of one region in the source uv. The seeding needs no continuity between charts,
so each is scaled on its own and packed into the unit square.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.signal import fftconvolve
from scipy.sparse.csgraph import connected_components

from avtool.head.bake.flatten import flatten_chart, triangle_areas
from avtool.head.parts import PARTS, REGIONS


def uv_charts(uv_faces: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Chart index (F,): connected by uv edges within one label."""
    edges = np.sort(uv_faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    triangle = np.repeat(np.arange(len(uv_faces)), 3)
    keyed = np.concatenate([edges, label[triangle][:, None]], axis=1)
    _, edge_id = np.unique(keyed, axis=0, return_inverse=True)
    incidence = sparse.csr_matrix((np.ones(len(triangle)), (triangle, edge_id.ravel())))
    return connected_components(incidence @ incidence.T, directed=False)[1]


# Texels per meter of a region relative to the cheeks: the eyes, lips and teeth are small and looked at closely,
# the scalp, neck and bust large and plain. 0 leaves a region out of the atlas: lash cards would give Gaussians
# that float before the eye, and what the lids show of lashes is carried by their own points.
REGION_DENSITY = {
    "face": 1.0,
    "scalp": 0.62,
    "ear": 0.9,
    "lips": 2.0,
    "neck": 0.62,
    "torso": 0.42,
    "mouth": 0.5,
    "socket": 0.2,
    "eye_l": 2.2,
    "eye_r": 2.2,
    "teeth_up": 1.6,
    "teeth_lo": 1.6,
    "tongue": 0.8,
    "lash_l": 0.0,
    "lash_r": 0.0,
}
PART_DENSITY = {"forehead": 0.85, "nose": 1.2}  # on top of the region's
PACK_SIZE = 256  # cells of the packing grid
EYE_VISIBLE_ANGLE = np.radians(105)  # the back of an eyeball never shows, however it turns


def make_atlas(
    mean: np.ndarray,
    faces: np.ndarray,
    source_uv: np.ndarray,
    source_uv_faces: np.ndarray,
    region: np.ndarray,
    part: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The atlas uv (T, 2) in [0, 1] and its triangles (F, 3).

    mean (V, 3) m, faces (F, 3), source uv of MakeHuman, region (F,) into REGIONS, part (F,) into PARTS.
    Triangles that get no texels are collapsed to a point at the origin.
    """
    chart = uv_charts(source_uv_faces, region * len(PARTS) + part)
    corner_key = source_uv_faces * (int(chart.max()) + 1) + chart[:, None]
    keys, uv_faces = np.unique(corner_key, return_inverse=True)
    uv_faces = uv_faces.reshape(-1, 3)
    flat = source_uv[keys // (int(chart.max()) + 1)]
    vertex = np.zeros(len(keys), dtype=np.int64)
    vertex[uv_faces] = faces
    points = mean[vertex]
    density = np.array([REGION_DENSITY[name] for name in REGIONS])[region]
    density = density * np.array([PART_DENSITY.get(name, 1.0) for name in PARTS])[part]
    pieces = []
    for name in ("eye_l", "eye_r"):
        kept = _flatten_eye(flat, points, uv_faces, region == REGIONS.index(name))
        density = np.where(region == REGIONS.index(name), density * kept, density)
        chart = np.where(region == REGIONS.index(name), chart.max() + 1, chart)
    for i in np.unique(chart[density > 0]):
        own = np.flatnonzero((chart == i) & (density > 0))
        corners = np.unique(uv_faces[own])
        local = np.searchsorted(corners, uv_faces[own])
        unit = flatten_chart(flat[corners], points[corners], local)
        pieces.append((corners, _upright(unit) * density[own[0]], local))
    placed = pack_charts([(uv, local) for _, uv, local in pieces])
    uv = np.zeros((len(keys), 2))
    for (corners, _, _), at in zip(pieces, placed):
        uv[corners] = at
    dropped = density <= 0
    if dropped.any():
        uv = np.concatenate([uv, np.zeros((1, 2))])
        uv_faces = np.where(dropped[:, None], len(uv) - 1, uv_faces)
    used, uv_faces = np.unique(uv_faces, return_inverse=True)
    return uv[used], uv_faces.reshape(-1, 3)


def _flatten_eye(flat: np.ndarray, points: np.ndarray, uv_faces: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Set `flat` of one eyeball's corners to the azimuthal projection around the gaze; (F,) bool of its visible triangles."""
    corners = np.unique(uv_faces[own])
    center = (points[corners].min(0) + points[corners].max(0)) / 2
    ray = points[corners] - center
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    angle = np.arccos(ray[:, 2].clip(-1, 1))
    radius = np.linalg.norm(points[corners] - center, axis=1).mean()
    flat[corners] = ray[:, :2] / np.linalg.norm(ray[:, :2], axis=1, keepdims=True).clip(1e-9) * (angle * radius)[:, None]
    visible = np.zeros(len(flat), dtype=bool)
    visible[corners] = angle < EYE_VISIBLE_ANGLE
    return own & visible[uv_faces].all(1)


def _upright(uv: np.ndarray) -> np.ndarray:
    """Rotate (T, 2) to its bounding box of least area, corner at the origin."""
    angles = np.radians(np.arange(0, 90, 3))
    turned = np.stack([uv @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles])
    extent = turned.max(1) - turned.min(1)
    best = turned[extent.prod(1).argmin()]
    return best - best.min(0)


def pack_charts(charts: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Place charts (uv (T, 2), faces (F, 3)) without overlap in the unit square, all scaled alike, as large as fits."""
    low, high, best = 0.0, 2.0 / max(np.ptp(uv, axis=0).max() for uv, _ in charts), None
    for _ in range(12):
        scale = (low + high) / 2
        placed = _try_pack(charts, scale)
        if placed is None:
            high = scale
        else:
            low, best = scale, placed
    assert best is not None, "the charts fit at no scale"
    return best


def _try_pack(charts: list[tuple[np.ndarray, np.ndarray]], scale: float) -> list[np.ndarray] | None:
    occupied = np.zeros((PACK_SIZE, PACK_SIZE), dtype=bool)
    placed: list[np.ndarray | None] = [None] * len(charts)
    order = np.argsort([-triangle_areas(uv[faces]).sum() for uv, faces in charts])
    for i in order:
        uv, faces = charts[i][0] * scale, charts[i][1]
        best = None
        for quarter in range(4):
            turned = _quarter_turn(uv, quarter)
            mask = _cells(turned, faces)
            spot = _first_fit(occupied, mask)
            if spot is not None and (best is None or sum(spot) < sum(best[0])):
                best = (spot, turned, mask)
        if best is None:
            return None
        (row, column), turned, mask = best
        occupied[row : row + mask.shape[0], column : column + mask.shape[1]] |= mask
        placed[i] = turned + (np.array([column, row]) + 1) / PACK_SIZE
    return placed


def _quarter_turn(uv: np.ndarray, quarter: int) -> np.ndarray:
    x, y = uv.T
    turned = np.stack(((x, y), (-y, x), (-x, -y), (y, -x))[quarter], axis=1)
    return turned - turned.min(0)


def _cells(uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Grid cells (rows, columns) bool that a chart with its corner at the origin touches, with a margin of one cell."""
    size = np.ceil(uv.max(0) * PACK_SIZE).astype(int) + 3
    mask = np.zeros((size[1], size[0]), dtype=bool)
    weights = np.array([(a, b, 8 - a - b) for a in range(9) for b in range(9 - a)]) / 8
    at = np.einsum("gk,fkd->fgd", weights, uv[faces]).reshape(-1, 2)
    column, row = (at * PACK_SIZE).astype(int).T + 1
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            mask[row + dy, column + dx] = True
    return mask


def _first_fit(occupied: np.ndarray, mask: np.ndarray) -> tuple[int, int] | None:
    """Lowest (row, column) where mask meets no occupied cell."""
    if mask.shape[0] > PACK_SIZE or mask.shape[1] > PACK_SIZE:
        return None
    overlap = np.rint(fftconvolve(occupied.astype(np.float32), mask[::-1, ::-1].astype(np.float32), mode="valid"))
    rows, columns = np.nonzero(overlap == 0)
    if not len(rows):
        return None
    best = (rows + columns).argmin()
    return int(rows[best]), int(columns[best])
