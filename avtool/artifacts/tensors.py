"""Tensor artifacts: safetensors files that carry a schema, checked on load.

The metadata is a string to string map: ``avtool.schema`` ("prior/1"), ``avtool.version``, and what the writer adds
(command line, seed, sha256 of inputs). It holds no clock, so equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

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
_MADE_BY = {
    "prior": "avtool train-prior makes a prior",
    "avatar": "avtool invert and finetune make an avatar",
    "portrait": "avtool train-portrait makes a portrait",
    "checkpoint": "training writes a checkpoint beside its output",
}
# What people pass by mistake, by its first bytes; as a header's length each would be of petabytes.
_LOOKS = {b"{": "JSON text, as a track is", b"\xff\xd8\xff": "a JPEG picture", b"\x89PNG": "a PNG picture"}


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


def artifact_kind(path: str | Path, kinds: Sequence[str]) -> str:
    """Which of `kinds` a file is, by its header: the tensors are not read.

    Raises:
        FormatError: it is none of them; says what it is.
    """
    path = Path(path)
    with _opened(path) as handle:
        start = handle.read(8)
        total = handle.seek(0, 2)
        handle.seek(8)
        length = int.from_bytes(start, "little")
        content = start + handle.read(length if length <= total - 8 else 8)
    schema = (_header(path, content, total).get("__metadata__") or {}).get(SCHEMA_KEY)
    kind = str(schema).partition("/")[0]
    if kind not in kinds:
        raise _other_kind(path, schema, kinds)
    return kind


def artifact_name(content: bytes) -> str | None:
    """What bytes are, "a portrait (portrait/1)" for example, where they are a tensor artifact of this program; else None."""
    try:
        schema = (_header(Path(), content).get("__metadata__") or {}).get(SCHEMA_KEY)
    except FormatError:
        return None
    return _named(schema) if schema else None


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


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        raise FormatError(path, "", "a safetensors file", "a directory")
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "check the path") from error


def _read(path: Path) -> bytes:
    with _opened(path) as handle:
        return handle.read()


def _header(path: Path, content: bytes, total: int | None = None) -> dict:
    """The JSON header of a safetensors file of `total` bytes (those of `content`), after refusing what only bears its name."""
    total = len(content) if total is None else total
    # The first byte alone says little: it may be a header's length, which has zeros at its end.
    is_pickle = content[:1] == b"\x80" and content[1:2] <= b"\x05" and content[2:8].strip(b"\0") != b""
    if is_pickle or content[:4] == b"PK\x03\x04":
        raise FormatError(
            path, "", "a safetensors file", "a Python pickle, which could run code and is never loaded",
            "export the tensors as safetensors",
        )
    length = int.from_bytes(content[:8], "little")
    if total < 8 or length > total - 8:
        for start, found in _LOOKS.items():
            if content.startswith(start):
                raise FormatError(path, "", "a safetensors file", found)
        found = f"{total} bytes that do not hold a full header"
        raise FormatError(path, "", "a complete safetensors file", found, "write or copy it again")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError as error:
        raise FormatError(path, "", "a safetensors file", "an unreadable header") from error
    if not isinstance(header, dict):
        raise FormatError(path, "", "a safetensors file", "an unreadable header")
    return header


def _check_schema(path: Path, schema: str | None, kind: str, version: int) -> None:
    found_kind, _, number = (schema or "").partition("/")
    if found_kind != kind or not number.isdigit():
        raise _other_kind(path, schema, (kind,), version)
    if int(number) > version:
        raise FormatError(path, SCHEMA_KEY, f"{kind}/{version}", schema, "a newer avtool wrote it: upgrade avtool")


def _other_kind(path: Path, schema: str | None, kinds: Sequence[str], version: int = 1) -> FormatError:
    """The error for a file that is none of `kinds`: what it is, and where the others come from."""
    expected = " or ".join(_named(f"{kind}/{version}") for kind in kinds)
    found = _named(schema) if schema else "a safetensors file without avtool.schema, of another program"
    return FormatError(path, "", expected, found, "; ".join(_MADE_BY[kind] for kind in kinds if kind in _MADE_BY))


def _named(schema: str) -> str:
    """"avatar/1" as "an avatar (avatar/1)"."""
    kind = schema.partition("/")[0]
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind} ({schema})"
