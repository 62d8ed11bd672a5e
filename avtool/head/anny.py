"""The default head model, baked from CC0 MakeHuman data (see data/PROVENANCE.md)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avtool.errors import FormatError
from avtool.head.model import HeadModel
from avtool.head.parts import REGIONS

DATA = Path(__file__).parent / "data"
HEAD_FILE = DATA / "anny_head.safetensors"
LANDMARK_FILE = DATA / "anny_landmarks.safetensors"
SCHEMA = "head/1"
_LONG = ("faces", "uv_faces", "source_uv_faces", "face_part", "face_region")


def load_anny(path: str | Path | None = None) -> HeadModel:
    """The shipped model, or another file that `python -m avtool.head.bake` wrote."""
    file = Path(path) if path else HEAD_FILE
    tensors, metadata = _read(file)
    if metadata.get("avtool.schema") != SCHEMA:
        raise FormatError(file, "avtool.schema", SCHEMA, metadata.get("avtool.schema"))
    values = {k: v.long() if k in _LONG else v for k, v in tensors.items()}
    values["source_uv"] = tensors["source_uv"].float() / 65535
    weights = tensors["skin_weights"].float()
    values["skin_weights"] = weights / weights.sum(1, keepdim=True)  # float16 rows miss 1 by up to 1e-3
    landmark_faces, barycentrics = _read_landmarks(file.parent / LANDMARK_FILE.name)
    return HeadModel(
        model_id=metadata["avtool.head_model"],
        joint_template=values.pop("joints").float(),
        region_names=REGIONS,
        expression_names=tuple(metadata["expression_names"].split(",")),
        joint_names=tuple(metadata["joint_names"].split(",")),
        joint_parents=tuple(int(p) for p in metadata["joint_parents"].split(",")),
        landmark_faces=landmark_faces,
        landmark_barycentrics=barycentrics,
        landmark_ids=torch.arange(len(landmark_faces)),
        **{k: v if k in _LONG else v.float() for k, v in values.items()},
    )


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(file), framework="pt") as handle:
            # safe_open cannot be iterated directly; keys() is the documented way.
            return {k: handle.get_tensor(k) for k in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FormatError(file, "", "a baked head model (.safetensors)", error) from error


def _read_landmarks(file: Path) -> tuple[Tensor, Tensor]:
    """Triangles (L,) and barycentrics (L, 3); none when the embedding file is absent (while it is being made)."""
    if not file.is_file():
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)
    tensors, _ = _read(file)
    return tensors["face_idx"].long(), tensors["barycentrics"].float()
