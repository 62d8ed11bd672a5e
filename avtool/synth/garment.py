"""Clothes: a layer a few millimetres over the bust, cut out by a collar line.

Shapes: U vertices of the bust, N texels; points in millimetres of the face frame (x left, y up, z forward, origin between the eyes).
"""

from dataclasses import dataclass

import numpy as np

from avtool.synth.base import SynthHead, Texels, noise, smoothstep
from avtool.synth.draw import Material, Mesh
from avtool.synth.look import Look

CLOTH = Material(specular=0.01, power=8.0, wrap=0.2)
NECK_AXIS_Z = -110.0  # mm behind the eyes


def collar_height(points: np.ndarray, garment: str, shape: float) -> np.ndarray:
    """Height y (mm) under which points (N, 3) are covered; a crew collar rises from the throat to the nape, a V opens in front."""
    x, z = np.abs(points[:, 0]), points[:, 2]
    front = smoothstep(-130, -50, z)
    base = -176 + 48 * (1 - front) + 6 * shape
    if garment == "crew":
        return base + 4
    if garment == "vneck":
        return base - front * np.clip(62 - 1.0 * x, 0, None)
    if garment == "scoop":
        return base - front * np.sqrt(np.clip(70.0**2 - x**2, 0, None)) * 0.65
    return base + 14 - front * np.clip(34 - 1.6 * x, 0, None)  # shirt and suit: the collar stands, open at the throat


def _collar_edge(points: np.ndarray) -> np.ndarray:
    """Signed distance (mm, positive outside) to the lower edge of a shirt collar's two leaves, which point down beside the throat."""
    x, y = np.abs(points[:, 0]), points[:, 1]
    tip = -206 + 0.25 * np.abs(x - 30)
    return np.maximum(tip - y + 0.9 * np.clip(12 - x, 0, None), x - 72)


def paint_cloth(texels: Texels, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Color (N, 3) and cover (N,) of the clothes at the texels."""
    points = texels.points
    x, y, z = points.T
    shape = float(look.brow_shape[0])
    weave = noise(points * 1.1 + look.seed % 347, 2)[:, None]
    fold = noise(points * [0.035, 0.02, 0.035] + look.seed % 331, 3)[:, None]
    tone = (0.86 + 0.14 * weave) * (0.86 + 0.28 * fold)
    color = np.asarray(look.cloth) * tone
    level = collar_height(points, look.garment, shape)
    cover = smoothstep(1.0, -1.0, y - level)
    hem = np.exp(-(((y - level + 9) / 2.0) ** 2)) + np.exp(-(((y - level + 2) / 1.5) ** 2))
    color = color * (1 - 0.25 * np.clip(hem, 0, 1)[:, None])
    if look.garment in ("suit", "shirt"):
        edge = _collar_edge(points)
        rim = (np.exp(-((edge / 1.8) ** 2)) * (z > -140))[:, None]
        shirt = np.asarray(look.inner if look.garment == "suit" else look.cloth) * (0.9 + 0.1 * weave) * (0.85 + 0.3 * fold)
        shirt = shirt * (1 - 0.35 * rim) * (1 + 0.05 * (edge < 0))[:, None]
        inside = smoothstep(4, -4, np.abs(x) - (58 + 0.42 * (y + 165))) * (z > -120)
        if look.garment == "shirt":
            inside = np.ones_like(inside)
            placket = np.exp(-((x / 1.5) ** 2))[:, None]
            shirt = shirt * (1 - 0.25 * placket)
        else:
            lapel = np.exp(-(((np.abs(x) - (58 + 0.42 * (y + 165))) / 3) ** 2))[:, None]
            color = color * (1 - 0.35 * lapel)
            knot = 11 + 0.12 * np.clip(-196 - y, 0, 60) - 0.2 * np.clip(y + 196, 0, 20)
            tie = smoothstep(1, -1, np.abs(x) - knot) * smoothstep(-172, -176, y) * (look.seed % 3 > 0)
            stripe = 0.8 + 0.4 * smoothstep(0.4, 0.6, np.sin((x + y) * 0.45))[:, None]
            shirt = shirt + (np.asarray(look.tie) * stripe - shirt) * tie[:, None] * (z > -120)[:, None]
        color = color + (shirt - color) * inside[:, None]
    elif look.seed % 5 == 0:
        color = color * np.where(np.sin(y * 0.35)[:, None] > 0, 1.0, 0.55)
    return color, cover


@dataclass
class Garment:
    """The cloth layer: used (U,), faces (F', 3), uv, texture and thickness (U,) metres.

    widening (V, 3) metres: the model's bust is cut inside the arms, real shoulders go on; the whole bust is drawn that much wider.
    """

    used: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    texture: np.ndarray
    thickness: np.ndarray
    widening: np.ndarray

    def mesh(self, vertices: np.ndarray, normals: np.ndarray) -> Mesh:
        """Cloth over posed vertices (V, 3) with normals (V, 3)."""
        points = vertices[self.used] + self.thickness[:, None] * normals[self.used]
        return Mesh(points, self.faces, self.uv, self.uv_faces, self.texture, CLOTH, transparent=True, normals=normals[self.used])


def dress(head: SynthHead, texels: Texels, look: Look) -> Garment:
    """The garment of a look."""
    chosen = head.region_faces("neck", "torso")
    used, faces = head.submesh(chosen)
    points = head.face_frame(head.template[used])
    color, cover = paint_cloth(texels, look)
    body = np.clip(texels.masks["neck"] + texels.masks["torso"], 0, 1) > 0.5
    image = texels.image(np.concatenate([color, (cover * body)[:, None]], -1), (*look.cloth, 0))
    loose = 2.0 + 3.5 * noise(points * 0.02 + look.seed % 311, 2) + (5.0 if look.garment == "suit" else 0.0) * smoothstep(-150, -185, points[:, 1])
    uv_used, uv_faces = np.unique(head.uv_faces[chosen], return_inverse=True)
    texture = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    everywhere = head.face_frame(head.template)
    torso = head.region_mask("torso", rounds=1) > 0
    outward = (smoothstep(95, 168, np.abs(everywhere[:, 0])) * torso)[:, None] * np.stack(
        [np.sign(everywhere[:, 0]), np.full(len(everywhere), -0.62), np.zeros(len(everywhere))], -1
    )
    width = 0.055 + 0.03 * look.brow_shape[1].clip(-1.5, 1.5) / 1.5
    return Garment(used, faces, head.uv[uv_used], uv_faces.reshape(-1, 3), texture, 1e-3 * loose, width * outward)
