"""FLAME (Li et al. 2017; the 2020 and 2023 files) behind the HeadModel interface, from the user's own file.

FLAME's licence forbids shipping it. Its coordinates are kept as they are (meters, y up, z out of the face, origin near
the middle of the head). The root's rotation is the camera's matter, as everywhere in avtool; FLAME has no head joint,
so HeadParams.head turns at the neck joint, after HeadParams.neck. Identity coefficients are FLAME's 300 shape ones,
expression coefficients its 100; there are no teeth.

Landmarks: `mediapipe_landmark_embedding.npz` as the FLAME site offers it, when it lies beside the model file; otherwise three
points that geometry gives (both irises, tip of the nose). `landmark_ids` says which. UV: `vt` and `ft` when the file carries
them, otherwise a projection (head/flame_layout.py).
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from avtool.errors import FormatError
from avtool.head.flame_layout import GEOMETRIC_LANDMARKS, REGION_NAMES, geometric_landmarks, label_by_geometry, project_atlas
from avtool.head.inert_pickle import load_pickled_arrays
from avtool.head.model import HeadModel

NUM_SHAPE = 300
NUM_EXPRESSION = 100
JOINT_NAMES = ("root", "neck", "jaw", "eye_l", "eye_r")
EMBEDDING_FILE = "mediapipe_landmark_embedding.npz"
_KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f")


def load_flame(path: str | Path) -> HeadModel:
    """Load FLAME 2020 or 2023 from .npz or .pkl; no code in the file is run. FormatError says what is wrong with it."""
    path = Path(path)
    raw = _read(path)
    missing = [k for k in _KEYS if k not in raw]
    if missing:
        raise FormatError(path, missing[0], "a FLAME model with the keys " + ", ".join(_KEYS), "no such key")
    vertices = _array(raw, "v_template", path, (None, 3))
    count = len(vertices)
    directions = _array(raw, "shapedirs", path, (count, 3, NUM_SHAPE + NUM_EXPRESSION))
    joints = len(JOINT_NAMES)
    pose = _array(raw, "posedirs", path, (count, 3, 9 * (joints - 1)))
    regressor = _array(raw, "J_regressor", path, (joints, count))
    weights = _array(raw, "weights", path, (count, joints))
    faces = _indices(raw, "f", path, count)
    parents = _parents(raw["kintree_table"], path, joints)
    basis = np.moveaxis(directions, 2, 0)
    tensors = {
        "template": vertices,
        "identity_basis": basis[:NUM_SHAPE],
        "expression_basis": basis[NUM_SHAPE:],
        "joint_template": regressor @ vertices,
        "joint_basis": regressor @ basis[:NUM_SHAPE],
        "expression_joint_basis": regressor @ basis[NUM_SHAPE:],
        "pose_basis": np.moveaxis(pose, 2, 0),
        "skin_weights": weights / weights.sum(1, keepdims=True),
    }
    layout, layout_tensors = _layout(raw, path, vertices, faces, tensors["joint_template"][3:5], weights)
    return HeadModel(
        model_id=f"flame-{_content_hash(vertices, directions, faces)}",
        region_names=REGION_NAMES,
        expression_names=tuple(f"flame_{i:03d}" for i in range(NUM_EXPRESSION)),
        joint_names=JOINT_NAMES,
        joint_parents=parents,
        faces=torch.from_numpy(faces),
        **{k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for k, v in (tensors | layout_tensors).items()},
        **{k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.int64)) for k, v in layout.items()},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as archive:
                return {k: archive[k] for k in archive.files}
        return load_pickled_arrays(path)
    except OSError as error:
        raise FormatError(path, "", "a FLAME .npz or .pkl file", error.strerror or error) from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise FormatError(path, "", "an .npz of plain arrays", error) from error


def _array(raw: dict[str, Any], key: str, path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """raw[key] as float64, dense, of the given shape (None: any), all finite."""
    value = raw[key].toarray() if sparse.issparse(raw[key]) else np.asarray(raw[key])
    if value.dtype.kind not in "fiu" or value.ndim != len(shape) or any(s not in (None, n) for s, n in zip(shape, value.shape)):
        wanted = tuple("V" if s is None else s for s in shape)
        raise FormatError(path, key, f"numbers of shape {wanted}", f"{value.dtype} of shape {value.shape}")
    if not np.isfinite(value).all():
        raise FormatError(path, key, "finite numbers", f"{int((~np.isfinite(value)).sum())} that are not")
    return value.astype(np.float64)


def _indices(raw: dict[str, Any], key: str, path: Path, limit: int) -> np.ndarray:
    """raw[key] (F, 3) as int64 indices below limit."""
    value = _array(raw, key, path, (None, 3)).astype(np.int64)
    if len(value) == 0 or value.min() < 0 or value.max() >= limit:
        raise FormatError(path, key, f"indices below {limit}", "others" if len(value) else "none")
    return value


def _parents(table: Any, path: Path, joints: int) -> tuple[int, ...]:
    table = np.asarray(table)
    if table.shape != (2, joints):
        raise FormatError(path, "kintree_table", f"shape (2, {joints})", table.shape)
    parents = (-1, *(int(p) for p in table[0, 1:]))  # the root's parent is written as 2^32 - 1
    if any(not 0 <= p < j for j, p in enumerate(parents) if j):
        raise FormatError(path, "kintree_table", "parents before their children", parents)
    return parents


def _layout(
    raw: dict[str, Any], path: Path, vertices: np.ndarray, faces: np.ndarray, eyes: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Integer and float arrays that FLAME's file lacks: parts, regions, atlas, landmarks."""
    eyeballs = tuple((weights[:, JOINT_NAMES.index(n)] > 0.5)[faces].all(1) for n in ("eye_l", "eye_r"))
    part = label_by_geometry(vertices[faces].mean(1), eyes, eyeballs[0] | eyeballs[1])
    region = part.copy()
    for name, own in zip(("eye_l", "eye_r"), eyeballs):
        region[own] = REGION_NAMES.index(name)
    if "vt" in raw and "ft" in raw:
        uv = _array(raw, "vt", path, (None, 2))
        uv_faces = _indices(raw, "ft", path, len(uv))
        if len(uv_faces) != len(faces):
            raise FormatError(path, "ft", f"{len(faces)} triangles", len(uv_faces))
    else:
        uv, uv_faces = project_atlas(vertices, faces, eyeballs)
    ids, triangle, barycentric = _landmarks(path, vertices, faces, eyes, eyeballs)
    whole = {"face_part": part, "face_region": region, "uv_faces": uv_faces, "landmark_faces": triangle, "landmark_ids": ids}
    return whole, {"uv": uv, "landmark_barycentrics": barycentric}


def _landmarks(
    path: Path, vertices: np.ndarray, faces: np.ndarray, eyes: np.ndarray, eyeballs: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MediaPipe ids (L,), triangles (L,), barycentrics (L, 3)."""
    file = path.parent / EMBEDDING_FILE
    if not file.is_file():
        return np.array(GEOMETRIC_LANDMARKS), *geometric_landmarks(vertices, faces, eyes, eyeballs)
    with np.load(file, allow_pickle=False) as data:
        missing = [k for k in ("landmark_indices", "lmk_face_idx", "lmk_b_coords") if k not in data.files]
        if missing:
            raise FormatError(file, missing[0], "a MediaPipe embedding for FLAME", "no such key")
        ids, triangle = (np.asarray(data[k], dtype=np.int64).ravel() for k in ("landmark_indices", "lmk_face_idx"))
        barycentric = np.asarray(data["lmk_b_coords"], dtype=np.float64)
    if barycentric.shape != (len(ids), 3) or len(triangle) != len(ids) or triangle.min() < 0 or triangle.max() >= len(faces):
        raise FormatError(file, "lmk_face_idx", f"{len(ids)} triangles of this model", barycentric.shape)
    return ids, triangle, barycentric


def _content_hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:10]
