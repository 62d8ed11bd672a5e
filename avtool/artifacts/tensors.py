"""Tensor artifacts: safetensors files that carry a schema, checked on load.

The metadata is a string to string map: ``avtool.schema`` ("prior/1"), ``avtool.version``, and what the writer adds
(command line, seed, sha256 of inputs). It holds no clock, so equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from .. import __version__
from ..errors import AvtoolError, FormatError
from .files import atomic_write

SCHEMA_KEY = "avtool.schema"
VERSION_KEY = "avtool.version"


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], schema: str, metadata: Mapping[str, object] | None = None
) -> None:
    """Writes tensors and metadata atomically.

    Args:
        path: the output file.
        tensors: name to tensor; any shape, moved to the CPU; floats must be finite.
        schema: "kind/number", for example "prior/1".
        metadata: extra entries; values that are not strings are stored as JSON.
    """
    entries = {SCHEMA_KEY: schema, VERSION_KEY: __version__}
    for key, value in (metadata or {}).items():
        entries[key] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    # clone() because safetensors refuses tensors that share storage.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    check_finite(path, stored)
    with atomic_write(path) as temporary:
        # Not save_file(): it makes files that only their owner may read.
        temporary.write_bytes(_in_fixed_order(save_bytes(stored, metadata=entries)))


def load_tensors(
    path: str | Path, schema_kind: str, version: int = 1, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a tensor artifact.

    Args:
        path: the file.
        schema_kind: what it must be, for example "prior".
        version: the newest schema number that the caller understands.
        device: where the tensors go.

    Returns:
        name to tensor, and the metadata.

    Raises:
        FormatError: not safetensors, truncated, of another kind, newer, or not finite.
    """
    path = Path(path)
    content = _read(path)
    metadata = _header(path, content).get("__metadata__") or {}
    _check_schema(path, metadata.get(SCHEMA_KEY), schema_kind, version)
    try:
        tensors = load_bytes(content)
    except SafetensorError as error:
        raise FormatError(path, "", "a complete safetensors file", str(error), "write or copy it again") from error
    check_finite(path, tensors)
    return {name: tensor.to(device) for name, tensor in tensors.items()}, dict(metadata)


def require(path: str | Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Checks that the named tensors are there with the given shapes; None stands for any length."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise FormatError(path, name, f"a tensor of shape {_spell(shape)}", "nothing")
        actual = tuple(tensors[name].shape)
        if len(actual) != len(shape) or any(b is not None and a != b for a, b in zip(actual, shape)):
            raise FormatError(path, name, f"shape {_spell(shape)}", f"shape {_spell(actual)}")


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises FormatError for the first tensor with NaN or infinity, with the count and the first index."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
        if not bool(finite.all()):
            bad = (~finite.reshape(-1)).nonzero()
            found = f"{len(bad)} NaN or infinite values, the first at flat index {int(bad[0])}"
            raise FormatError(path, name, "finite numbers", found, "the file is damaged: make it again")


def _in_fixed_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in an order that changes from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _spell(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise FormatError(path, "", "a safetensors file", "a directory")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "check the path") from error


def _header(path: Path, content: bytes) -> dict:
    """The JSON header of a safetensors file, after refusing what only bears its name."""
    # The first byte alone says little: it may be a header's length, which has zeros at its end.
    is_pickle = content[:1] == b"\x80" and content[1:2] <= b"\x05" and content[2:8].strip(b"\0") != b""
    if is_pickle or content[:4] == b"PK\x03\x04":
        raise FormatError(
            path, "", "a safetensors file", "a Python pickle, which could run code and is never loaded",
            "export the tensors as safetensors",
        )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        found = f"{len(content)} bytes that do not hold a full header"
        raise FormatError(path, "", "a complete safetensors file", found, "write or copy it again")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError as error:
        raise FormatError(path, "", "a safetensors file", "an unreadable header") from error
    if not isinstance(header, dict):
        raise FormatError(path, "", "a safetensors file", "an unreadable header")
    return header


def _check_schema(path: Path, schema: str | None, kind: str, version: int) -> None:
    expected = f"{kind}/{version}"
    if not schema:
        raise FormatError(path, SCHEMA_KEY, expected, "no schema", f"pass a {kind} file written by avtool")
    found_kind, _, number = schema.partition("/")
    if found_kind != kind or not number.isdigit():
        raise FormatError(path, SCHEMA_KEY, expected, schema, f"pass a {kind} file written by avtool")
    if int(number) > version:
        raise FormatError(path, SCHEMA_KEY, expected, schema, "a newer avtool wrote it: upgrade avtool")
