"""A head measured for what is worn on it, and things that follow its skull.

Shapes: V head vertices, A vertices of the skull, P points of an accessory. Fitting is done in millimetres of the person's own face frame
(x left, y up, z forward, origin between the person's eyes).
"""

from dataclasses import dataclass

import numpy as np

from avtool.synth.base import SynthHead
from avtool.synth.draw import Material, Mesh
from avtool.synth.hair import rigid_rotation

RIGID_MOTION = 2e-5  # metres: a vertex that no expression moves further belongs to the skull
LANDMARK_BROWS = (105, 334)  # MediaPipe's highest points of the brows


@dataclass(frozen=True)
class Fitting:
    """A neutral head: points (V, 3) mm in its face frame, origin (3,) metres, eyes (2, 3) mm left and right, brow height mm, skull (A,) vertices."""

    head: SynthHead
    points: np.ndarray
    origin: np.ndarray
    eyes: np.ndarray
    brow: float
    skull: np.ndarray

    def region(self, *names: str) -> np.ndarray:
        """(K, 3) mm: vertices of the named regions."""
        return self.points[np.unique(self.head.faces[self.head.region_faces(*names)])]


@dataclass(frozen=True)
class Accessory:
    """A thing worn: points (P, 3) metres beside the neutral head, whose skull vertices rest (A, 3) metres carry it."""

    points: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    texture: np.ndarray
    material: Material
    transparent: bool
    skull: np.ndarray
    rest: np.ndarray

    def mesh(self, vertices: np.ndarray) -> Mesh:
        """The accessory on posed head vertices (V, 3) metres."""
        target = vertices[self.skull]
        turn = rigid_rotation(self.rest, target)
        points = (self.points - self.rest.mean(0)) @ turn.T + target.mean(0)
        return Mesh(points, self.faces, self.uv, self.uv_faces, self.texture, self.material, transparent=self.transparent)


def fit_head(head: SynthHead, identity: np.ndarray, offsets: np.ndarray | None = None) -> Fitting:
    """The neutral head of identity (I,) with offsets (V, 3) metres, measured."""
    import torch

    model = head.model
    with torch.no_grad():
        neutral = model.template + torch.tensordot(torch.as_tensor(identity, dtype=torch.float32), model.identity_basis, 1)
        if offsets is not None:
            neutral = neutral + torch.as_tensor(offsets, dtype=torch.float32)
        brows = model.landmarks(neutral)[list(LANDMARK_BROWS)].numpy()
        moved = model.expression_basis.norm(dim=-1).amax(0).numpy()
        on_head = model.skin_weights[:, list(model.joint_names).index("head")].numpy()
    neutral = neutral.numpy().astype(np.float64)
    eyes = [neutral[np.unique(head.faces[head.region_faces(f"eye_{side}")])] for side in "lr"]
    centers = np.stack([(eye.max(0) + eye.min(0)) / 2 for eye in eyes])
    origin = centers.mean(0)
    skull = np.flatnonzero((on_head > 0.999) & (moved < RIGID_MOTION))
    assert len(skull) > 50, "the head model has no rigid skull"
    brow = 1000 * (brows.mean(0) - origin)[1]
    return Fitting(head, 1000 * (neutral - origin), origin, 1000 * (centers - origin), float(brow), skull)


def attach(fitting: Fitting, points: np.ndarray, faces: np.ndarray, texture: np.ndarray, material: Material, **kwargs: object) -> Accessory:
    """points (P, 3) mm as an accessory of the head; kwargs: uv, uv_faces, transparent."""
    uv_faces = kwargs.get("uv_faces")
    rest = fitting.points[fitting.skull] / 1000 + fitting.origin
    return Accessory(
        points / 1000 + fitting.origin, faces, np.asarray(kwargs["uv"], np.float32), faces if uv_faces is None else uv_faces, texture, material,
        bool(kwargs.get("transparent", False)), fitting.skull, rest,
    )


def paint(color: np.ndarray) -> np.ndarray:
    """(H, W, 3 or 4) display color in [0, 1] as an opaque uint8 texture, unless it brings alpha."""
    rgba = color if color.shape[-1] == 4 else np.concatenate([color, np.ones((*color.shape[:2], 1))], -1)
    return np.round(255 * np.clip(rgba, 0, 1)).astype(np.uint8)


def grid_faces(rows: int, columns: int, wrap_rows: bool, wrap_columns: bool, stride: int) -> np.ndarray:
    """(F, 3) triangles of a grid of points whose rows are `stride` apart in memory; wrapped sides meet."""
    i, j = np.meshgrid(np.arange(rows - (not wrap_rows)), np.arange(columns - (not wrap_columns)), indexing="ij")
    i, j = i.ravel(), j.ravel()
    i1, j1 = (i + 1) % rows if wrap_rows else i + 1, (j + 1) % columns if wrap_columns else j + 1
    a, b, c, d = i * stride + j, i1 * stride + j, i1 * stride + j1, i * stride + j1
    return np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
