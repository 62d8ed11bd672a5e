"""Labels of the triangles: soft scores from the CC0 region masks and from geometry, smoothed, then the largest one.

Coordinates here: meters, origin at the head joint of the mean head, y up, z out of the face.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from avtool.head.bake.cut import SOURCE_PARTS, CutMesh
from avtool.head.bake.source import AnnyData
from avtool.head.parts import PART_OF_REGION, PARTS, REGIONS

MASKS = ("lips", "ears", "face", "inside-mouth")
SMOOTHING_STEPS = 6
MIN_ISLAND = 12  # triangles: smaller islands of a label go to the label around them
_SEGMENTS = {"head": (90, 86, 255), "torso": (0, 0, 0), "socket": (253, 249, 16), "socket_r": (249, 108, 136), "mouth": (112, 172, 255)}


def sample_image(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Nearest pixel of image (H, W, ...) at uv (..., 2), v up."""
    height, width = image.shape[:2]
    row = ((1 - uv[..., 1]) * height).astype(int).clip(0, height - 1)
    column = (uv[..., 0] * width).astype(int).clip(0, width - 1)
    return image[row, column]


def face_adjacency(faces: np.ndarray) -> sparse.csr_matrix:
    """(F, F) 0/1 matrix of triangles that share an edge."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, edge_id = np.unique(edges, axis=0, return_inverse=True)
    triangle = np.repeat(np.arange(len(faces)), 3)
    incidence = sparse.csr_matrix((np.ones(len(triangle)), (triangle, edge_id.ravel())))
    adjacency = (incidence @ incidence.T).tolil()
    adjacency.setdiag(0)
    adjacency = adjacency.tocsr()
    adjacency.eliminate_zeros()
    adjacency.data[:] = 1
    return adjacency


def _smooth(scores: np.ndarray, adjacency: sparse.csr_matrix, steps: int) -> np.ndarray:
    degree = np.asarray(adjacency.sum(1)).clip(1)
    for _ in range(steps):
        scores = 0.5 * scores + 0.5 * (adjacency @ scores) / degree
    return scores


def _merge_islands(labels: np.ndarray, adjacency: sparse.csr_matrix, min_size: int) -> np.ndarray:
    """Give connected islands of fewer than min_size triangles the label most common around them."""
    labels = labels.copy()
    pairs = adjacency.tocoo()
    same = labels[pairs.row] == labels[pairs.col]
    graph = sparse.csr_matrix((np.ones(same.sum()), (pairs.row[same], pairs.col[same])), shape=adjacency.shape)
    _, island = connected_components(graph, directed=False)
    sizes = np.bincount(island)
    for i in np.flatnonzero(sizes < min_size):
        around = pairs.col[(island[pairs.row] == i) & (island[pairs.col] != i)]
        if len(around):
            labels[island == i] = np.bincount(labels[around]).argmax()
    return labels


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """Soft step: 0 below -width, 1 above width."""
    return ((value / width + 1) / 2).clip(0, 1)


def skin_scores(data: AnnyData, uv: np.ndarray, uv_faces: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Scores (F, len(REGIONS)) of the skin's triangles. centers (F, 3) on the mean head."""
    corners = uv[uv_faces]
    mask = {n: sample_image(data.gray_image(f"mpfb2/textures/mpfb_{n}.jpg"), corners).mean(1) for n in MASKS}
    colors = np.array(list(_SEGMENTS.values()))
    pixel = sample_image(data.rgb_image("segmentation/body_parts_segmentation.png").astype(int), corners.mean(1))
    segment = np.abs(pixel[:, None] - colors).sum(-1).argmin(1)
    is_segment = {name: segment == i for i, name in enumerate(_SEGMENTS)}
    x, y, z = centers.T
    face = mask["face"]
    # The hair line and the nape: the scalp ends above a line that falls towards the back of the head.
    above_nape = _step(y + 0.015 + 0.25 * z, 0.006)
    # The collar: a funnel around the neck's axis that opens upwards to the shoulders.
    on_neck = np.minimum(_step(0.086 - np.hypot(x, z + 0.040) + 0.5 * (y + 0.110), 0.02), _step(y + 0.135, 0.02))
    scores = {name: np.zeros(len(centers)) for name in REGIONS}
    head = is_segment["head"].astype(float)
    scores["face"] = head * _step(face - 0.35, 0.2)
    scores["scalp"] = head * (1 - scores["face"]) * above_nape
    scores["neck"] = head * (1 - scores["face"]) * (1 - above_nape) + is_segment["torso"] * on_neck
    scores["torso"] = is_segment["torso"] * (1 - on_neck)
    scores["ear"] = head * 2 * mask["ears"]
    scores["lips"] = head * 2 * mask["lips"]
    scores["mouth"] = 3.0 * (is_segment["mouth"] | (mask["inside-mouth"] > 0.5))
    scores["socket"] = 3.0 * (is_segment["socket"] | is_segment["socket_r"])
    return np.stack([scores[name] for name in REGIONS], axis=1)


def quad_means(values: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """(F, ...) values averaged over the triangles of each quad (F,): borders then follow edge loops, not diagonals."""
    sums = np.zeros((quad.max() + 1, *values.shape[1:]))
    np.add.at(sums, quad, values)
    counts = np.bincount(quad).clip(1).reshape(-1, *[1] * (values.ndim - 1))
    return (sums / counts)[quad]


def label_regions(data: AnnyData, cut: CutMesh, uv: np.ndarray, part: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Region index (F,) of every triangle; cut.label are quads, `part` (F,) the coarse source parts."""
    region = np.zeros(len(cut.faces), dtype=np.int64)
    for i, name in enumerate(SOURCE_PARTS[1:], start=1):
        region[part == i] = REGIONS.index(name)
    skin = part == 0
    adjacency = face_adjacency(cut.faces[skin])
    scores = skin_scores(data, uv, cut.uv_faces[skin], mean[cut.faces[skin]].mean(1))
    inner = scores[:, [REGIONS.index("mouth"), REGIONS.index("socket")]].max(1) > 1
    smooth = _smooth(scores, adjacency, SMOOTHING_STEPS)
    smooth[inner] = scores[inner]  # the cavities end exactly where their uv islands end
    smooth[~inner] = quad_means(smooth[~inner], cut.label[skin][~inner])
    region[skin] = _merge_islands(smooth.argmax(1), adjacency, MIN_ISLAND)
    return region


def label_parts(region: np.ndarray, centers: np.ndarray, eyes: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """Part index (F,) from regions; forehead and nose by geometry. eyes (2, 3) are the eye centers."""
    part = np.array([PARTS.index(PART_OF_REGION[name]) for name in REGIONS])[region]
    x, y, z = (centers - eyes.mean(0)).T
    face = region == REGIONS.index("face")
    forehead = face & (y > 0.026 - 0.10 * np.abs(x))
    # A wedge that widens from the bridge to the wings of the nose.
    depth = (0.016 - y).clip(0) / 0.060
    bottom = -0.047 + 0.5 * (np.abs(x) - 0.011).clip(0)
    nose = face & (y < 0.004) & (y > bottom) & (np.abs(x) < 0.009 + 0.012 * depth) & (z > 0.004 + 0.008 * depth)
    part[forehead] = PARTS.index("forehead")
    part[nose] = PARTS.index("nose")
    return _merge_islands(part, adjacency, MIN_ISLAND)
