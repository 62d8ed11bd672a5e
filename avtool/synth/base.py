"""The head model as the generator sees it: numpy arrays, texel positions, soft region masks, named measures.

Shapes: V vertices, F triangles, T texture coordinates, N texels. Positions are metres in the head-model frame at rest; painting rules are
written in millimetres relative to the point between the eyes ("face frame": x to the person's left, y up, z forward).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from avtool.head import HeadModel
from avtool.synth.draw import vertex_normals
from avtool.synth.kernels import fractal_noise, raster_opaque
from avtool.synth.lighting import MeshSmoother

SKIN_REGIONS = ("face", "scalp", "ear", "lips", "neck", "torso", "mouth", "socket", "tongue")


def noise(points: np.ndarray, octaves: int = 4) -> np.ndarray:
    """Fractal value noise in [0, 1] at points (N, 3)."""
    out = np.empty(len(points), np.float32)
    fractal_noise(np.ascontiguousarray(points, np.float64), octaves, out)
    return out


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high, smooth between (low > high falls)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass
class Texels:
    """Texels of one chart: index (N,) into a resolution x resolution image, points (N, 3) mm in the face frame, masks name -> (N,)."""

    resolution: int
    index: np.ndarray
    points: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def image(self, values: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
        """(R, R, C) image of per-texel values (N, C); the rest is filled."""
        out = np.empty((self.resolution**2, values.shape[1]), np.float32)
        out[:] = fill
        out[self.index] = values
        return out.reshape(self.resolution, self.resolution, -1)


class SynthHead:
    """Wraps a HeadModel (the default, with MakeHuman's own UV)."""

    def __init__(self, model: HeadModel):
        if model.source_uv is None:
            raise ValueError(f"head model {model.model_id} has no source UV: the generator needs the default head model")
        self.model = model
        self.template = model.template.cpu().numpy().astype(np.float64)
        self.faces = model.faces.cpu().numpy().astype(np.int64)
        self.uv = model.source_uv.cpu().numpy().astype(np.float32)
        self.uv_faces = model.source_uv_faces.cpu().numpy().astype(np.int64)
        self.region_names = tuple(model.region_names)
        self.face_region = model.face_region.cpu().numpy()

    @cached_property
    def joints(self) -> dict[str, np.ndarray]:
        """Rest positions (3,) of the mean head's joints by name, metres."""
        from avtool.head import HeadParams

        mesh = self.model(HeadParams.zeros(self.model, ()))
        return dict(zip(self.model.joint_names, mesh.joints.detach().cpu().numpy().astype(np.float64)))

    @cached_property
    def origin(self) -> np.ndarray:
        """Point between the eye joints, metres: origin of the face frame."""
        return (self.joints["eye_l"] + self.joints["eye_r"]) / 2

    def region_faces(self, *names: str) -> np.ndarray:
        """Indices of the triangles of the named regions."""
        return np.flatnonzero(np.isin(self.face_region, [self.region_names.index(name) for name in names]))

    def region_mask(self, *names: str, rounds: int = 0) -> np.ndarray:
        """(V,) share of a vertex's triangles in the named regions, smoothed."""
        inside = np.zeros(len(self.template))
        total = np.zeros(len(self.template))
        chosen = np.zeros(len(self.faces))
        chosen[self.region_faces(*names)] = 1
        for k in range(3):
            np.add.at(inside, self.faces[:, k], chosen)
            np.add.at(total, self.faces[:, k], 1)
        return self.smoother((inside / np.maximum(total, 1))[:, None].astype(np.float32), rounds)[:, 0]

    @cached_property
    def smoother(self) -> MeshSmoother:
        """Neighborhood averages over the whole mesh."""
        return MeshSmoother(self.faces, len(self.template))

    @cached_property
    def normals(self) -> np.ndarray:
        """(V, 3) of the template."""
        return vertex_normals(self.template, self.faces)

    def face_frame(self, points: np.ndarray) -> np.ndarray:
        """Metres in the head frame to millimetres in the face frame."""
        return (points - self.origin) * 1000

    def texels(self, resolution: int) -> Texels:
        """Texels of the skin in MakeHuman's UV, a little dilated, with soft region masks (lips, ear, scalp, neck, torso, mouth, socket)."""
        chosen = self.region_faces(*SKIN_REGIONS)
        xy = np.stack([self.uv[:, 0], 1 - self.uv[:, 1]], -1).astype(np.float32) * resolution
        depth = np.zeros((resolution, resolution), np.float32)
        face_id = np.full((resolution, resolution), -1, np.int32)
        raster_opaque(xy, np.ones(len(xy), np.float32), self.uv_faces[chosen].astype(np.int32), depth, face_id)
        face_id = _dilate(face_id, 2)
        index = np.flatnonzero(face_id.ravel() >= 0)
        face = chosen[face_id.ravel()[index]]
        pixel = np.stack([index % resolution, index // resolution], -1) + 0.5
        weights = _barycentrics(xy[self.uv_faces[face]].astype(np.float64), pixel)
        texels = Texels(resolution, index, self.face_frame(np.einsum("nkd,nk->nd", self.template[self.faces[face]], weights)))
        for name, rounds in (("lips", 0), ("ear", 1), ("scalp", 2), ("neck", 2), ("torso", 1), ("mouth", 0), ("socket", 0), ("tongue", 0)):
            texels.masks[name] = np.einsum("nk,nk->n", self.region_mask(name, rounds=rounds)[self.faces[face]], weights).clip(0, 1)
        return texels

    def submesh(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertex indices (U,) and re-numbered triangles (F', 3) of the chosen triangles."""
        used, faces = np.unique(self.faces[chosen], return_inverse=True)
        return used, faces.reshape(-1, 3)


def _dilate(face_id: np.ndarray, rounds: int) -> np.ndarray:
    """Grow charts by `rounds` texels so that filtering at seams finds paint."""
    for _ in range(rounds):
        for axis in (0, 1):
            for shift in (1, -1):
                face_id = np.where(face_id < 0, np.roll(face_id, shift, axis), face_id)
    return face_id


def _barycentrics(corners: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """(N, 3) weights of pixel (N, 2) in triangles (N, 3, 2); may extrapolate a little outside."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)
    weight_b = np.cross(pixel - a, c - a) / area
    weight_c = np.cross(b - a, pixel - a) / area
    return np.clip(np.stack([1 - weight_b - weight_c, weight_b, weight_c], -1), -1, 2)
