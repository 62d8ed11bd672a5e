"""Point clouds as 3D Gaussian splatting programs write them: binary little-endian PLY, one "vertex" element.

Property order: x y z nx ny nz f_dc_0..2 opacity(logit) scale_0..2(log) rot_0..3(wxyz), then our own columns. Readers go
by property name, so any order and any further property is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import AvtoolError, FormatError
from ..files import atomic_write

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}
_MAX_HEADER = 1 << 20


def write_ply(path: str | Path, columns: Mapping[str, np.ndarray], comments: Sequence[str] = ()) -> None:
    """Writes equally long columns (N,) in the mapping's order.

    Raises:
        FormatError: a column holds NaN or infinity; names the count and the first index.
    """
    check_columns(path, columns)
    kinds = [(name, column.dtype.newbyteorder("<")) for name, column in columns.items()]
    count = len(next(iter(columns.values())))
    table = np.empty(count, dtype=kinds)
    for name, column in columns.items():
        table[name] = column
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments)]
    lines.append(f"element vertex {count}")
    lines += [f"property {_NAMES[kind.str[1:]]} {name}" for name, kind in kinds]
    header = "\n".join([*lines, "end_header"]) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_bytes(header.encode("ascii") + table.tobytes())


def read_ply(path: str | Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns (N,) by property name, and the comment lines."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "make one with: avtool init-points track.json -o points.ply") from error
    end = content.find(b"end_header\n", 0, _MAX_HEADER)
    if not content.startswith((b"ply\n", b"ply\r\n")) or end < 0:
        raise FormatError(path, "", "a PLY file", "something else")
    lines = content[:end].decode("ascii", "replace").splitlines()
    comments = [line.removeprefix("comment ") for line in lines if line.startswith("comment")]
    count, kinds = _parse_header(path, lines)
    body = content[end + len(b"end_header\n") :]
    needed = count * kinds.itemsize
    if len(body) < needed:
        raise FormatError(path, "", f"{needed} bytes of points", f"{len(body)}: the file is truncated", "copy it again")
    table = np.frombuffer(body[:needed], dtype=kinds)
    columns = {name: np.ascontiguousarray(table[name]) for name in kinds.names or ()}
    check_columns(path, columns)
    return columns, comments


def check_columns(path: str | Path, columns: Mapping[str, np.ndarray]) -> None:
    """Refuses NaN and infinity, naming the column, the count and the first index."""
    for name, column in columns.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise FormatError(path, name, "finite numbers", f"{len(bad)} NaN or infinite, the first at index {bad[0]}")


def _parse_header(path: Path, lines: list[str]) -> tuple[int, np.dtype]:
    words = [line.split() for line in lines]
    if ["format", "binary_little_endian", "1.0"] not in words:
        found = next((" ".join(w[1:]) for w in words if w[:1] == ["format"]), "nothing")
        raise FormatError(path, "format", "binary_little_endian 1.0", found)
    elements = [w for w in words if w[:1] == ["element"]]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise FormatError(path, "element", "vertex as the first element", [" ".join(w[1:]) for w in elements])
    kinds, inside = [], False
    for line in words:
        if line[:1] == ["element"]:
            inside = line[1] == "vertex"
        elif line[:1] == ["property"] and inside:
            if len(line) != 3 or line[1] not in _TYPES:
                raise FormatError(path, "property", "a scalar property", " ".join(line[1:]))
            kinds.append((line[2], _TYPES[line[1]]))
    return int(elements[0][2]), np.dtype(kinds)
