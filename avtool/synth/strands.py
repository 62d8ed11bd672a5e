"""Hair meshes of the assets: alpha cards bound to the base mesh, recolored, carried along with the head.

Shapes: A asset vertices, V head vertices.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from avtool.synth.base import SynthHead
from avtool.synth.base_mesh import BaseMesh, Binding, read_bound_vertices
from avtool.synth.draw import Material, Mesh, vertex_normals
from avtool.synth.look import Look

TEXTURE_SIDE = 512
CARDS = Material(specular=0.05, power=12.0, wrap=0.5)


@dataclass(frozen=True)
class HairAsset:
    """A hair style on the base mesh: faces, uv and the binding; luminance (S, S) with mean one and alpha (S, S) of its texture."""

    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    binding: Binding
    luminance: np.ndarray
    alpha: np.ndarray


@dataclass
class HairCards:
    """One person's hair: the asset in the person's color, grown a little."""

    asset: HairAsset
    texture: np.ndarray
    swell: float

    def mesh(self, vertices: np.ndarray, turns: np.ndarray, skull: np.ndarray) -> Mesh:
        """Cards on posed vertices (V, 3); turns (V, 3) axis-angle of every head vertex; skull (3,) metres, center of the hair."""
        points = self.asset.binding.place(vertices, turns)
        points = points + self.swell * (points - skull)
        outward = points - skull
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
        normals = vertex_normals(points, self.asset.faces)
        normals *= np.where((normals * outward).sum(1, keepdims=True) < 0, -1, 1)
        normals = 0.45 * normals + 0.55 * outward
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        asset = self.asset
        return Mesh(points, asset.faces, asset.uv, asset.uv_faces, self.texture, CARDS, transparent=True, normals=normals.astype(np.float32))


def read_obj(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """faces (F, 3), uv (T, 2), uv_faces (F, 3) of a Wavefront file; polygons are cut into fans."""
    uv, faces, uv_faces = [], [], []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["vt"]:
            uv.append((float(words[1]), float(words[2])))
        elif words[:1] == ["f"]:
            corners = [[int(x) - 1 for x in word.split("/")[:2]] for word in words[1:]]
            for k in range(1, len(corners) - 1):
                faces.append([corners[j][0] for j in (0, k, k + 1)])
                uv_faces.append([corners[j][1] for j in (0, k, k + 1)])
    return np.array(faces), np.array(uv, np.float32), np.array(uv_faces)


def load_hair(folder: Path, base: BaseMesh) -> HairAsset:
    """The hair asset in a folder NAME with NAME.obj, NAME.mhclo and diffuse.png."""
    faces, uv, uv_faces = read_obj(folder / f"{folder.name}.obj")
    points = read_bound_vertices(folder / f"{folder.name}.mhclo", base.vertices)
    image = Image.open(folder / "diffuse.png").convert("RGBA").resize((TEXTURE_SIDE,) * 2, Image.Resampling.BOX)
    pixels = np.asarray(image, np.float32) / 255
    alpha = pixels[..., 3]
    luminance = pixels[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    mean = (luminance * alpha).sum() / max(alpha.sum(), 1e-6)
    return HairAsset(faces, uv, uv_faces, Binding(base, points), luminance / max(mean, 1e-3), alpha)


def dye(asset: HairAsset, look: Look) -> HairCards:
    """The asset in the look's hair color."""
    rng = np.random.default_rng(look.seed)
    level = np.clip(asset.luminance, 0.25, 2.2) ** 0.8
    rgb = np.clip(look.hair * rng.uniform(0.85, 1.1) * level[..., None], 0, 0.97)
    texture = np.concatenate([rgb, np.clip(1.15 * asset.alpha, 0, 1)[..., None]], -1)
    return HairCards(asset, np.round(255 * texture).astype(np.uint8), float(rng.uniform(0.0, 0.06)))


def vertex_turns(head: SynthHead, neck: np.ndarray, head_turn: np.ndarray) -> np.ndarray:
    """(V, 3) axis-angle by which skinning turns every head vertex; the small turns of neck and head are added up."""
    weights = head.model.skin_weights.cpu().numpy()
    names = list(head.model.joint_names)
    on_neck = weights[:, names.index("neck")]
    on_head = sum(weights[:, names.index(name)] for name in ("head", "jaw", "eye_l", "eye_r"))
    return (on_neck + on_head)[:, None] * neck + on_head[:, None] * head_turn
