"""How the modules of a prior or an avatar become named tensors and come back.

Weights are stored as float16: a unit of the last place of a weight is far below what one training step changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from avtool.artifacts.tensors import require
from avtool.errors import AvtoolError, FormatError
from avtool.gaussians.seeding import PointBinding
from avtool.head import PARTS, HeadModel, load_head_model
from avtool.prior.gapnet import GapNet, GapNetConfig
from avtool.prior.refiner import Refiner

_BINDING = ("face_idx", "barycentrics", "part", "uv", "spacing")
_INDEX_FIELDS = ("face_idx", "part")


def module_tensors(prefix: str, module: nn.Module, half: bool = True) -> dict[str, Tensor]:
    """State of a module as "prefix.name" tensors, weights in float16 unless told otherwise."""
    state = module.state_dict()
    # Buffers (initial scales) are multiplied by every point's size: they keep their precision.
    buffers = {name for name, _ in module.named_buffers()}
    return {f"{prefix}.{k}": v.half() if half and k not in buffers else v.clone() for k, v in state.items()}


def load_module(path: str | Path, prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module from "prefix.name" tensors; FormatError names the first that is missing or misshapen."""
    state = module.state_dict()
    for name, expected in state.items():
        key = f"{prefix}.{name}"
        found = tensors.get(key)
        if found is None or found.shape != expected.shape:
            shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise FormatError(path, key, f"shape {tuple(expected.shape)}", shape, "write the file again")
    module.load_state_dict({name: tensors[f"{prefix}.{name}"].to(value.dtype) for name, value in state.items()})


def binding_tensors(binding: PointBinding) -> dict[str, Tensor]:
    """"binding.*" tensors; indices as int32."""
    values = {name: getattr(binding, name) for name in _BINDING}
    return {f"binding.{k}": v.int() if k in _INDEX_FIELDS else v for k, v in values.items()}


def load_binding(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], num_faces: int
) -> PointBinding:
    """The inverse of binding_tensors, checked against the number of triangles of the head model."""
    shapes = {"face_idx": (), "barycentrics": (3,), "part": (), "uv": (2,), "spacing": ()}
    count = len(tensors.get("binding.face_idx", ()))
    require(path, tensors, {f"binding.{name}": (count, *shape) for name, shape in shapes.items()})
    values = {name: tensors[f"binding.{name}"] for name in _BINDING}
    values |= {name: values[name].long() for name in _INDEX_FIELDS}
    face_idx, part, uv_size = values["face_idx"], values["part"], metadata.get("uv_size", "0")
    if count == 0 or not 0 <= int(face_idx.min()) <= int(face_idx.max()) < num_faces:
        raise FormatError(path, "binding.face_idx", f"triangles from 0 to {num_faces - 1}", "others or none", "write the file again")
    if int(part[0]) < 0 or bool((part.diff() < 0).any()):
        raise FormatError(path, "binding.part", "ascending parts from 0", "another order", "write the file again")
    if not uv_size.isdecimal():
        raise FormatError(path, "uv_size", "a whole number", uv_size, "write the file again")
    return PointBinding(**values, uv_size=int(uv_size))


def _network_sizes(path: str | Path, metadata: Mapping[str, str]) -> tuple[GapNetConfig, int]:
    """GAPNet's sizes and the refiner's width, 0 for none."""
    try:
        config = GapNetConfig(**json.loads(metadata["gapnet"]))
        width = int(metadata["refiner_width"])
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(path, "gapnet", "network sizes", str(error), "write the file again") from error
    for field in fields(config):
        value, kind = getattr(config, field.name), type(field.default)
        positive = isinstance(value, bool) if kind is bool else isinstance(value, (int, kind)) and value > 0
        if not positive:
            raise FormatError(path, "gapnet", "network sizes", f"{field.name} {value!r}", "write the file again")
    if width < 0:
        raise FormatError(path, "gapnet", "network sizes", f"refiner_width {width}", "write the file again")
    return config, width


def load_networks(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], binding: PointBinding
) -> tuple[GapNet, Refiner | None]:
    """GAPNet and refiner of an artifact."""
    config, width = _network_sizes(path, metadata)
    if int(binding.part.max()) >= config.num_parts:
        raise FormatError(path, "binding.part", f"parts below {config.num_parts}", int(binding.part.max()))
    sizes = binding.part_sizes(config.num_parts)
    gapnet = GapNet(config, sizes, torch.ones(binding.num_points, 3, device=binding.spacing.device))
    load_module(path, "gapnet", gapnet, tensors)
    refiner = Refiner(config.appearance_channels, width) if width else None
    if refiner is not None:
        load_module(path, "refiner", refiner, tensors)
    return gapnet, refiner


def network_metadata(gapnet: GapNet, refiner: Refiner | None, binding: PointBinding) -> dict[str, str]:
    """What load_networks needs besides the tensors."""
    width = 0 if refiner is None else refiner.width
    return {
        "gapnet": json.dumps(gapnet.config.to_dict(), sort_keys=True),
        "refiner_width": str(width),
        "uv_size": str(binding.uv_size),
        "parts": ",".join(PARTS),
    }


def resolve_head(path: str | Path, head_model_id: str, head: HeadModel | None, device: torch.device | str) -> HeadModel:
    """The head model an artifact was made with: the caller's, or the shipped one; another one is an error."""
    if head is None:
        if head_model_id.startswith("flame"):
            raise AvtoolError(
                f"{path}: made with the head model {head_model_id}, which is not shipped",
                "pass your FLAME file: --head-model flame --head-model-path FILE",
            )
        head = load_head_model("anny", device=device)
    check_head_model(path, head_model_id, head.model_id)
    return head.to(device)


def check_head_model(path: str | Path, found: str, expected: str) -> None:
    """Error unless an artifact belongs to the expected head model."""
    if found != expected:
        hint = "coefficients do not carry over between head models: track, train and personalize with one of them"
        raise FormatError(path, "head_model", expected, found, hint)
