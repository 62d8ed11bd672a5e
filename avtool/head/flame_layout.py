"""Parts, atlas and landmarks of a FLAME mesh from its geometry: FLAME's file carries none of them.

Positions are measured from the middle between the eyes in units of their distance, x to the person's left, y up,
z out of the face, so the rules hold for every head.
"""

from __future__ import annotations

import numpy as np

from avtool.head.parts import PARTS

REGION_NAMES = (*PARTS, "eye_l", "eye_r")
# MediaPipe ids of the landmarks that geometry gives reliably: iris centers (right, left) and the tip of the nose.
GEOMETRIC_LANDMARKS = (468, 473, 1)
_EYE_STRIP = 0.22  # height of the atlas's lower strip, which holds the two eyeballs
_VISIBLE = np.radians(105)


def label_by_geometry(centers: np.ndarray, eyes: np.ndarray, eyeball: np.ndarray) -> np.ndarray:
    """Part (F,) of triangles by their centers (F, 3).

    eyes (2, 3): centers of the left and right eye; eyeball (F,) bool.
    """
    x, y, z = ((centers - eyes.mean(0)) / np.linalg.norm(eyes[0] - eyes[1])).T
    side = np.abs(x)
    depth = (0.26 - y).clip(0) / 0.98
    front = (z > -0.95 + 0.35 * (y + 0.4).clip(0)) & (y < 1.25)
    rules = (
        ("face", front & (y > -1.85 + 0.1 * side)),
        ("forehead", front & (y > 0.43 - 0.10 * side)),
        ("hair", ~front & (y > -0.92 - 0.25 * (z + 1.34))),
        ("neck", (~front | (y <= -1.85 + 0.1 * side)) & (y <= -0.92 - 0.25 * (z + 1.34))),
        ("boundary", y < -2.75),
        ("nose", (y < 0.07) & (y > -0.77 + 0.5 * (side - 0.18).clip(0)) & (side < 0.15 + 0.2 * depth) & (z > 0.07 + 0.13 * depth)),
        ("lip", (np.hypot(x / 0.42, (y + 1.16) / 0.20) < 1) & (z > 0.0)),
        ("ear", (side > 1.16) & (y < 0.20) & (y > -0.90) & (z < -0.85) & (z > -1.75)),
    )
    part = np.full(len(centers), PARTS.index("other"))
    for name, where in rules:
        part[where] = PARTS.index(name)
    part[eyeball] = PARTS.index("eye")
    return part


def project_atlas(vertices: np.ndarray, faces: np.ndarray, eyeballs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """An atlas for a mesh without one: uv (T, 2) in [0, 1] and its triangles (F, 3).

    The skin is unrolled around the head (azimuth, height angle; the face, in the middle, gets more than its share);
    the fronts of the eyeballs (two (F,) bool) lie below it. Triangles across the seam at the back, and backs of eyeballs,
    are collapsed to a point: they get no Gaussians.
    """
    skin = ~(eyeballs[0] | eyeballs[1])
    skin_vertices = np.unique(faces[skin])
    center = (vertices[skin_vertices].min(0) + vertices[skin_vertices].max(0)) / 2
    offset = vertices - center
    azimuth = np.arctan2(offset[:, 0], offset[:, 2])
    height = np.arctan2(offset[:, 1], np.hypot(offset[:, 0], offset[:, 2]))
    u = 0.5 + 0.5 * np.sign(azimuth) * (np.abs(azimuth) / np.pi) ** 0.75
    v = _EYE_STRIP + (1 - _EYE_STRIP) * (height / np.pi + 0.5)
    uv = [np.stack([u, v], axis=1)]
    uv_faces = faces.copy()
    seam = skin & (np.ptp(u[faces], axis=1) > 0.5)
    dropped = seam.copy()
    for i, own in enumerate(eyeballs):
        if not own.any():
            continue
        ball = np.unique(faces[own])
        ray = vertices - (vertices[ball].min(0) + vertices[ball].max(0)) / 2
        ray = ray / np.linalg.norm(ray, axis=1, keepdims=True).clip(1e-9)
        angle = np.arccos(ray[:, 2].clip(-1, 1))
        around = ray[:, :2] / np.linalg.norm(ray[:, :2], axis=1, keepdims=True).clip(1e-9)
        middle = np.array([0.25 + 0.5 * i, _EYE_STRIP / 2])
        uv.append(middle + around * (angle / _VISIBLE)[:, None].clip(0, 1) * 0.47 * _EYE_STRIP)
        uv_faces[own] += (len(uv) - 1) * len(vertices)
        dropped |= own & (angle[faces] >= _VISIBLE).any(1)
    table = np.concatenate([*uv, np.zeros((1, 2))])
    uv_faces[dropped] = len(table) - 1
    used, compact = np.unique(uv_faces, return_inverse=True)
    return table[used], compact.reshape(-1, 3)


def geometric_landmarks(
    vertices: np.ndarray, faces: np.ndarray, eyes: np.ndarray, eyeballs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (3,) and barycentrics (3, 3) of GEOMETRIC_LANDMARKS."""
    mid, distance = eyes.mean(0), np.linalg.norm(eyes[0] - eyes[1])
    local = (vertices - mid) / distance
    around_nose = (np.abs(local[:, 0]) < 0.2) & (local[:, 1] > -0.8) & (local[:, 1] < -0.2)
    score = np.where(around_nose, local[:, 2], -np.inf)
    chosen = [_foremost(vertices, faces, eyeballs[1]), _foremost(vertices, faces, eyeballs[0]), int(score.argmax())]
    triangle = [int(np.flatnonzero((faces == v).any(1))[0]) for v in chosen]
    return np.array(triangle), np.stack([(faces[t] == v).astype(np.float64) for t, v in zip(triangle, chosen)])


def _foremost(vertices: np.ndarray, faces: np.ndarray, own: np.ndarray) -> int:
    candidates = np.unique(faces[own]) if own.any() else np.unique(faces)
    return int(candidates[vertices[candidates, 2].argmax()])
