"""Readers of the two binary formats inside a .tflite file: FlatBuffers (the graph) and FlexBuffers (custom options).

Only views and numbers come out of a file, never code. Every offset is checked against the file's length, so a
damaged file ends in DamagedBuffer instead of a wild read.
Sources: https://flatbuffers.dev/internals and https://flatbuffers.dev/flexbuffers (the formats' own descriptions).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


class DamagedBuffer(ValueError):
    """An offset or a length points outside the buffer, or a type is unknown."""


def read_scalar(data: bytes, position: int, kind: str) -> int | float:
    """One little-endian number; ``kind`` is a struct character."""
    if position < 0 or position + struct.calcsize(kind) > len(data):
        raise DamagedBuffer(f"offset {position} lies outside the {len(data)} bytes")
    return struct.unpack_from("<" + kind, data, position)[0]


@dataclass(frozen=True)
class Table:
    """A FlatBuffers table at a position of a buffer; fields are addressed by their number in the schema."""

    data: bytes
    position: int

    @classmethod
    def root(cls, data: bytes) -> Table:
        """The table that the first four bytes point to."""
        return cls(data, int(read_scalar(data, 0, "I")))

    def _field(self, field: int) -> int:
        """Position of a field's value, or 0 when the field holds its default."""
        vtable = self.position - int(read_scalar(self.data, self.position, "i"))
        entry = 4 + 2 * field
        if entry >= int(read_scalar(self.data, vtable, "H")):
            return 0
        offset = int(read_scalar(self.data, vtable + entry, "H"))
        return self.position + offset if offset else 0

    def _follow(self, position: int) -> int:
        return position + int(read_scalar(self.data, position, "I"))

    def integer(self, field: int, default: int = 0, kind: str = "i") -> int:
        """A whole number; ``kind`` is its struct character."""
        position = self._field(field)
        return int(read_scalar(self.data, position, kind)) if position else default

    def boolean(self, field: int) -> bool:
        """A flag; absent means False."""
        return bool(self.integer(field, kind="b"))

    def table(self, field: int) -> Table | None:
        """A nested table."""
        position = self._field(field)
        return Table(self.data, self._follow(position)) if position else None

    def vector(self, field: int, item_size: int) -> tuple[int, int]:
        """Start and length of a vector; (0, 0) when absent."""
        position = self._field(field)
        if not position:
            return 0, 0
        start = self._follow(position)
        length = int(read_scalar(self.data, start, "I"))
        if start + 4 + length * item_size > len(self.data):
            raise DamagedBuffer(f"a vector of {length} items at {start} reaches past the end")
        return start + 4, length

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        start, length = self.vector(field, 4)
        return [Table(self.data, self._follow(start + 4 * k)) for k in range(length)]

    def integers(self, field: int) -> list[int]:
        """A vector of int32."""
        start, length = self.vector(field, 4)
        return list(struct.unpack_from(f"<{length}i", self.data, start)) if length else []

    def raw(self, field: int) -> bytes:
        """A vector of bytes."""
        start, length = self.vector(field, 1)
        return self.data[start : start + length]

    def text(self, field: int) -> str:
        """A string."""
        return self.raw(field).decode("utf-8", "replace")


# FlexBuffers type numbers (flexbuffers.h, enum Type), grouped by how their value is stored.
_INT, _UINT, _FLOAT, _KEY, _STRING, _MAP, _VECTOR, _BOOL = 1, 2, 3, 4, 5, 9, 10, 26
_INDIRECT = {6: _INT, 7: _UINT, 8: _FLOAT}
_TYPED_VECTORS = {11: _INT, 12: _UINT, 13: _FLOAT}
_MAX_DEPTH = 8


def read_flexbuffer(data: bytes) -> object:
    """Decodes a FlexBuffers value into numbers, strings, lists and dicts."""
    if len(data) < 3:
        raise DamagedBuffer("a FlexBuffers value needs at least three bytes")
    width, packed = data[-1], data[-2]
    return _flex_value(data, len(data) - 2 - width, width, packed, _MAX_DEPTH)


def _flex_number(data: bytes, position: int, width: int, kind: int) -> int | float:
    if position < 0 or width not in (1, 2, 4, 8) or position + width > len(data):
        raise DamagedBuffer(f"FlexBuffers offset {position} lies outside the value")
    if kind == _FLOAT:
        if width == 1:
            raise DamagedBuffer("FlexBuffers has no float of one byte")
        return struct.unpack_from({2: "<e", 4: "<f", 8: "<d"}[width], data, position)[0]
    return int.from_bytes(data[position : position + width], "little", signed=kind == _INT)


def _flex_key(data: bytes, position: int) -> str:
    end = data.find(b"\0", position) if 0 <= position < len(data) else -1
    if end < 0:
        raise DamagedBuffer("a FlexBuffers key has no end")
    return data[position:end].decode("utf-8", "replace")


def _flex_value(data: bytes, position: int, width: int, packed: int, depth: int) -> object:
    """A value of ``width`` bytes at ``position``; ``packed`` holds its type and the width of what it points to."""
    kind, child_width = packed >> 2, 1 << (packed & 3)
    if kind in (_INT, _UINT, _FLOAT):
        return _flex_number(data, position, width, kind)
    if kind == _BOOL:
        return bool(_flex_number(data, position, width, _UINT))
    target = position - int(_flex_number(data, position, width, _UINT))
    if kind in _INDIRECT:
        return _flex_number(data, target, child_width, _INDIRECT[kind])
    if kind == _KEY:
        return _flex_key(data, target)
    if depth == 0:
        raise DamagedBuffer("FlexBuffers values are nested too deeply")
    length = int(_flex_number(data, target - child_width, child_width, _UINT))
    if length * child_width > len(data):
        raise DamagedBuffer(f"a FlexBuffers vector of {length} items reaches past the end")
    if kind == _STRING:
        return data[target : target + length].decode("utf-8", "replace")
    if kind in _TYPED_VECTORS:
        item_kind = _TYPED_VECTORS[kind]
        return [_flex_number(data, target + k * child_width, child_width, item_kind) for k in range(length)]
    if kind not in (_MAP, _VECTOR):
        raise DamagedBuffer(f"FlexBuffers type {kind} is not supported")
    types = target + length * child_width
    values = []
    for k in range(length):
        item_type = int(_flex_number(data, types + k, 1, _UINT))
        values.append(_flex_value(data, target + k * child_width, child_width, item_type, depth - 1))
    return values if kind == _VECTOR else dict(zip(_flex_keys(data, target, child_width, length), values))


def _flex_keys(data: bytes, target: int, width: int, length: int) -> list[str]:
    """The keys of a map: a vector of its own, whose offset and item width stand before the map's length."""
    key_width = int(_flex_number(data, target - 2 * width, width, _UINT))
    slot = target - 3 * width
    keys = slot - int(_flex_number(data, slot, width, _UINT))
    names = []
    for k in range(length):
        at = keys + k * key_width
        names.append(_flex_key(data, at - int(_flex_number(data, at, key_width, _UINT))))
    return names
