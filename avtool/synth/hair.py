"""Short hair and beards as shells: copies of the scalp lifted along its normals, each with the strands that reach that height.

Shapes: U vertices of the haired part of the mesh, S shells. Lengths are millimetres. A shell is a transparent mesh; its tile of the shared
texture holds the alpha of its height, so hair frays towards its tips and thins at a ragged hair line.
"""

from dataclasses import dataclass

import numpy as np

from avtool.synth.base import SynthHead, Texels, noise, smoothstep
from avtool.synth.draw import Material, Mesh, vertex_normals
from avtool.synth.look import Look
from avtool.synth.textures import beard_mask, hair_mask

HEAD_WINDOW = (0.62, 0.13, 1.0, 0.84)  # u0, v0, u1, v1 of the head's chart in MakeHuman's UV
TILE = 400  # texels a side of one shell's tile: about 0.6 mm a texel
HAIR = Material(specular=0.035, power=14.0, wrap=0.45)


@dataclass
class Shells:
    """Hair of one person on the template: used (U,), faces (F', 3), length (U,) mm, comb (U, 3), lift, texture, uv."""

    used: np.ndarray
    faces: np.ndarray
    length: np.ndarray
    comb: np.ndarray
    lift: float
    texture: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    num_shells: int
    rest: np.ndarray

    def mesh(self, vertices: np.ndarray, normals: np.ndarray) -> Mesh:
        """The shells over posed vertices (V, 3) with normals (V, 3), as one transparent mesh."""
        root, normal = vertices[self.used], normals[self.used]
        comb = self.comb @ rigid_rotation(self.rest, root).T
        points, faces, uv, uv_faces = [], [], [], []
        for k in range(self.num_shells):
            t = (k + 0.6) / self.num_shells
            bend = normal * (t * self.lift) + comb * (0.35 * t + 0.65 * t * t)
            points.append(root + 1e-3 * self.length[:, None] * bend)
            faces.append(self.faces + k * len(root))
            uv.append(np.stack([self.uv[:, 0], (k + self.uv[:, 1]) / self.num_shells], -1))
            uv_faces.append(self.uv_faces + k * len(self.uv))
        return Mesh(
            np.concatenate(points), np.concatenate(faces), np.concatenate(uv), np.concatenate(uv_faces), self.texture, HAIR,
            transparent=True, normals=np.tile(normal, (self.num_shells, 1)),
        )


def rigid_rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 3) rotation that best turns points source (U, 3) into target (U, 3) (Kabsch)."""
    u, _, vt = np.linalg.svd((source - source.mean(0)).T @ (target - target.mean(0)))
    sign = np.sign(np.linalg.det(u @ vt))
    return (u @ np.diag([1, 1, sign]) @ vt).T


def _style(points: np.ndarray, look: Look) -> tuple[np.ndarray, np.ndarray, float]:
    """Length (U,) mm, comb direction (U, 3) and lift of a hair style at points (U, 3) of the face frame."""
    x, y, z = points.T
    top = smoothstep(25, 75, y + 0.12 * (z + 60))
    wave = np.stack([noise(points * 0.03 + look.seed % 401 + 17 * k, 2) - 0.5 for k in range(3)], -1)
    back = np.stack([np.sign(x - look.part) * 0.35, np.full_like(x, -0.1), np.full_like(x, -0.75)], -1)
    down = np.stack([0 * x, np.full_like(x, -0.8), np.full_like(x, -0.2)], -1)
    forward = np.stack([np.sign(x - look.part) * 0.4, np.full_like(x, -0.15), np.full_like(x, 0.55)], -1)
    side = look.side_length
    if look.hair_style in ("buzz", "bald"):
        return np.full(len(x), 3.5 * look.hair_length), 0.3 * down, 1.0
    if look.hair_style == "short":
        return (6 + 8 * top) * look.hair_length, 0.6 * (top[:, None] * forward + (1 - top[:, None]) * down) + wave, 0.9
    if look.hair_style == "crop":
        flow = back if look.seed % 2 else forward
        return (4 + 8 * side + (14 + 12 * side) * top) * look.hair_length, 0.8 * top[:, None] * flow + (1 - top[:, None]) * 0.7 * down + 1.3 * wave, 0.85
    if look.hair_style == "bushy":
        return (16 + 12 * side + 12 * top) * look.hair_length, 0.7 * (top[:, None] * back + (1 - top[:, None]) * down) + 1.6 * wave, 0.8
    return (26 + 16 * side + 8 * top) * look.hair_length, 0.8 * wave, 1.0


def _tiles(texels: Texels, mask: np.ndarray, look: Look, num_shells: int, streak: tuple[float, float, float], gray: float) -> np.ndarray:
    """(S x TILE, TILE, 4) texture: shell 0 (lowest v) is the scalp; alpha falls with height against strand noise."""
    points = texels.points
    seed = look.seed % 577
    strands = noise(points * streak + seed, 2)
    tufts = noise(points * 0.11 + seed + 5, 3)
    shade = noise(points * np.asarray(streak) * 0.6 + seed + 11, 3)
    reach = np.clip(0.35 + 1.15 * tufts, 0.3, 1.0) * np.clip(mask * 1.4, 0, 1)
    tiles = []
    for k in range(num_shells):
        t = (k + 0.5) / num_shells
        threshold = 0.22 + 0.40 * t / np.maximum(reach, 1e-3)
        alpha = smoothstep(threshold - 0.07, threshold + 0.09, strands) * smoothstep(0.05, 0.35, mask - 0.25 * t)
        light = (0.55 + 0.4 * t) * (0.7 + 0.65 * shade)
        silver = (noise(points * np.asarray(streak) * 1.3 + seed + 23, 1) > 1 - gray)[:, None] * 0.5
        color = look.hair * light[:, None]
        color = color + silver * (0.75 * light[:, None] - color)
        tiles.append(texels.image(np.concatenate([color, alpha[:, None]], -1), (*look.hair, 0)))
    image = np.concatenate([_window(tile) for tile in tiles[::-1]])
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _window(image: np.ndarray) -> np.ndarray:
    """The head chart of a full-UV image (R, R, C), TILE x TILE."""
    size = image.shape[0]
    u0, v0, u1, v1 = HEAD_WINDOW
    rows = ((1 - v1 + (np.arange(TILE) + 0.5) / TILE * (v1 - v0)) * size).astype(int)
    columns = ((u0 + (np.arange(TILE) + 0.5) / TILE * (u1 - u0)) * size).astype(int)
    return image[rows[:, None], columns[None]]


def _shells(head: SynthHead, texels: Texels, look: Look, kind: str) -> Shells | None:
    points = head.face_frame(head.template)
    bare = head.region_mask("ear", "lips", "socket", "mouth", rounds=0)
    grow = (hair_mask if kind == "hair" else beard_mask)(points, look) * (bare < 0.01)
    skin = head.region_faces("face", "scalp", "neck", "torso")
    haired = skin[(grow[head.faces[skin]].max(1) > 0.05) & (bare[head.faces[skin]].max(1) < 0.5)]
    if not len(haired):
        return None
    used, faces = head.submesh(haired)
    if kind == "hair":
        length, comb, lift = _style(points[used], look)
        num_shells = int(np.clip(length.max() / 1.6, 6, 18))
        texture_mask = hair_mask(texels.points, look) * (1 - texels.masks["ear"])
        streak = (0.55, 0.55, 0.55) if look.hair_style in ("buzz", "bald", "afro") else (0.75, 0.16, 0.14)
    else:
        length, lift, num_shells = np.full(len(used), look.beard_length), 0.7, 7
        comb = np.tile([0.0, -0.6, 0.1], (len(used), 1))
        texture_mask = beard_mask(texels.points, look) * (1 - smoothstep(0.1, 0.4, texels.masks["lips"]))
        streak = (0.8, 0.25, 0.8)
    length = length * smoothstep(0.0, 0.6, grow[used])
    gray = 0.25 if look.wrinkles > 0.75 else 0.0
    u0, v0, u1, v1 = HEAD_WINDOW
    uv_used, uv_faces = np.unique(head.uv_faces[haired], return_inverse=True)
    uv = (head.uv[uv_used] - [u0, v0]) / [u1 - u0, v1 - v0]
    texture = _tiles(texels, texture_mask, look, num_shells, streak, gray)
    uv = np.clip(uv, 0.002, 0.998)
    return Shells(used, faces, length, comb, lift, texture, uv, uv_faces.reshape(-1, 3), num_shells, head.template[used])


def head_hair(head: SynthHead, texels: Texels, look: Look) -> Shells | None:
    """Shells of the person's head hair."""
    return _shells(head, texels, look, "hair")


def beard(head: SynthHead, texels: Texels, look: Look) -> Shells | None:
    """Shells of the person's beard, None when shaved."""
    return _shells(head, texels, look, "beard") if look.beard_length > 0 else None
