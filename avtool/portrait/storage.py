"""How a portrait becomes a "portrait/1" file and comes back: configuration in the metadata, weights in float16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from avtool.artifacts.tensors import load_tensors, require, save_tensors
from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel
from avtool.portrait.config import PortraitConfig
from avtool.prior.storage import load_module, module_tensors, resolve_head

DEFAULT_PORTRAIT = Path(__file__).parent / "data" / "default.safetensors"
_PREFIX = "portrait"


def portrait_file(path: str | Path) -> Path:
    """Where a portrait is; "default" is the one in the package."""
    file = DEFAULT_PORTRAIT if str(path) == "default" else Path(path)
    if file == DEFAULT_PORTRAIT and not file.is_file():
        raise AvtoolError("the package has no default portrait", "name a file of avtool train-portrait")
    return file


def write_portrait(
    path: str | Path, network: nn.Module, config: PortraitConfig, head_model: str, metadata: Mapping[str, str] | None
) -> None:
    """Writes a "portrait/1" file."""
    # Not the buffers that are made from the head model.
    stored = {f"{_PREFIX}.{name}" for name in network.state_dict()}
    tensors = {name: value for name, value in module_tensors(_PREFIX, network).items() if name in stored}
    entries = {"head_model": head_model, "network": json.dumps(config.to_dict(), sort_keys=True), **(metadata or {})}
    save_tensors(path, tensors, "portrait/1", entries)


def read_portrait(
    path: str | Path, head: HeadModel | None
) -> tuple[dict[str, Tensor], PortraitConfig, HeadModel, dict[str, str]]:
    """Tensors, sizes, head model and metadata of a "portrait/1" file; FormatError says what is wrong with it."""
    tensors, metadata = load_tensors(path, "portrait")
    try:
        values = json.loads(metadata["network"])
        config = PortraitConfig.from_dict(values)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(path, "network", "network sizes", str(error), "write the file again") from error
    return tensors, config, resolve_head(path, metadata.get("head_model", ""), head, "cpu"), metadata


def check_shapes(path: str | Path, parts: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """FormatError names the first weight of `parts` (which may be on the meta device) that is missing or misshapen."""
    require(path, tensors, {f"{_PREFIX}.{name}": tuple(value.shape) for name, value in parts.state_dict().items()})


def fill_portrait(path: str | Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights into the network."""
    load_module(path, _PREFIX, network, tensors)
