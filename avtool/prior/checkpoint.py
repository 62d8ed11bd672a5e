"""Training state on disk: a safetensors file, no pickle, from which training goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtool.artifacts.tensors import load_tensors, save_tensors
from avtool.errors import FormatError

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Checkpoint:
    """Step to go on with, seconds spent, everything that was random or learned, and the settings it belongs to."""

    step: int
    elapsed: float
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    head_model: str
    data: str
    seed: int

    def save(self, path: str | Path) -> None:
        """Write a "checkpoint/1" file."""
        entries = {
            "step": str(self.step),
            "elapsed": repr(self.elapsed),
            "config": json.dumps(self.config, sort_keys=True),
            "head_model": self.head_model,
            "data": self.data,
            "seed": str(self.seed),
        }
        save_tensors(path, self.tensors, "checkpoint/1", entries)

    @staticmethod
    def load(path: str | Path) -> Checkpoint:
        """Read a "checkpoint/1" file."""
        tensors, metadata = load_tensors(path, "checkpoint")
        try:
            return Checkpoint(
                step=int(metadata["step"]),
                elapsed=float(metadata["elapsed"]),
                tensors=tensors,
                config=json.loads(metadata["config"]),
                head_model=metadata["head_model"],
                data=metadata["data"],
                seed=int(metadata["seed"]),
            )
        except (KeyError, ValueError) as error:
            raise FormatError(path, "", "a training checkpoint", f"metadata without {error}") from error

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under "prefix." without it."""
        start = f"{prefix}."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's moments by group name and place in the group."""
    tensors = {}
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{group['name']}.{i}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Put saved moments back; FormatError when they do not fit the parameters."""
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            keys = {key: f"{group['name']}.{i}.{key}" for key in _MOMENTS}
            if not any(name in tensors for name in keys.values()):
                continue  # a parameter that never had a gradient has no state
            for key, name in keys.items():
                expected = () if key == "step" else tuple(parameter.shape)
                if name not in tensors or tuple(tensors[name].shape) != expected:
                    raise FormatError(path, f"optimizer.{name}", f"shape {expected}", "something else")
            moments = {key: tensors[name].to(parameter.device) for key, name in keys.items()}
            moments["step"] = moments["step"].cpu()  # where Adam without capture keeps its counter
            optimizer.state[parameter] = moments


def group_tensors(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Parameters by group name and place."""
    return {f"{name}.{i}": tensor for name, group in groups.items() for i, tensor in enumerate(group)}


def load_groups(groups: Mapping[str, Sequence[Tensor]], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill parameters in place."""
    for name, target in group_tensors(groups).items():
        if name not in tensors or tensors[name].shape != target.shape:
            found = "nothing" if name not in tensors else f"shape {tuple(tensors[name].shape)}"
            raise FormatError(path, name, f"shape {tuple(target.shape)}", found)
        with torch.no_grad():
            target.copy_(tensors[name])
