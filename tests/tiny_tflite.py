"""Writes small .tflite files for tests: a minimal FlatBuffers writer and the few schema tables it takes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

ADD, CONV_2D, DEQUANTIZE, RELU, CUSTOM = 0, 3, 6, 19, 32
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}

Field = tuple[str, object]


def table(fields: dict[int, Field]) -> Field:
    """A table; its fields are ("b" | "i" | "I", number), or what the functions here return."""
    return "table", fields


def vector(kind: str, items: Sequence) -> Field:
    """A vector of numbers ("i"), of bytes ("B") or of tables ("table")."""
    return "vector", (kind, items)


def model(
    tensors: Sequence[tuple[Sequence[int], np.ndarray | None]],
    operators: Sequence[tuple[int, Sequence[int], Sequence[int], dict[int, Field]]],
    inputs: Sequence[int],
    outputs: Sequence[int],
    custom_name: str = "",
) -> bytes:
    """A file with one graph.

    Args:
        tensors: shape and constant (or None) of each.
        operators: built-in number, inputs, outputs and the fields of its options.
        inputs, outputs: of the graph.
        custom_name: name of the custom operator, where the number is CUSTOM.
    """
    buffers, entries = [table({})], []
    for shape, values in tensors:
        kind = 0
        if values is not None:
            kind = _TYPES[values.dtype]
            buffers.append(table({0: vector("B", values.tobytes())}))
        buffer = len(buffers) - 1 if values is not None else 0
        entries.append(table({0: vector("i", shape), 1: ("b", kind), 2: ("I", buffer), 3: vector("B", b"t")}))
    codes = sorted({number for number, *_ in operators})
    nodes = [
        table({0: ("I", codes.index(n)), 1: vector("i", i), 2: vector("i", o), 4: table(options)})
        for n, i, o, options in operators
    ]
    graph = table(
        {0: vector("table", entries), 1: vector("i", inputs), 2: vector("i", outputs), 3: vector("table", nodes)}
    )
    names = [table({0: ("b", n), 1: vector("B", custom_name.encode()), 3: ("i", n)}) for n in codes]
    root = table({1: vector("table", names), 2: vector("table", [graph]), 4: vector("table", buffers)})
    data = bytearray(b"\0\0\0\0TFL3")
    struct.pack_into("<I", data, 0, _write(data, root))
    return bytes(data)


def _write(data: bytearray, value: Field) -> int:
    """Appends a table or vector and what it points to; returns its position."""
    kind, content = value
    return _write_table(data, content) if kind == "table" else _write_vector(data, *content)


def _write_table(data: bytearray, fields: dict[int, Field]) -> int:
    count = max(fields, default=-1) + 1
    vtable = len(data)
    data += struct.pack("<HH", 4 + 2 * count, 4 + 4 * count) + b"\0\0" * count
    position = len(data)
    data += struct.pack("<i", position - vtable) + b"\0\0\0\0" * count
    for field, value in fields.items():
        struct.pack_into("<H", data, vtable + 4 + 2 * field, 4 + 4 * field)
        slot = position + 4 + 4 * field
        if value[0] in ("table", "vector"):
            struct.pack_into("<I", data, slot, _write(data, value) - slot)
        else:
            struct.pack_into(f"<{value[0]}", data, slot, value[1])
    return position


def _write_vector(data: bytearray, kind: str, items: Sequence) -> int:
    position = len(data)
    data += struct.pack("<I", len(items))
    if kind == "B":
        data += bytes(items)
    elif kind == "i":
        data += struct.pack(f"<{len(items)}i", *items)
    else:
        start = len(data)
        data += b"\0\0\0\0" * len(items)
        for k, item in enumerate(items):
            slot = start + 4 * k
            struct.pack_into("<I", data, slot, _write(data, item) - slot)
    return position
