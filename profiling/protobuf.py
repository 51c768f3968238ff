"""Encodes protocol buffers by hand: a field is its number and wire type, then its value.

Source: "Encoding", protobuf.dev: varints (wire type 0), 64-bit little-endian (1), length-delimited (2).
"""

from __future__ import annotations

import struct

_VARINT, _DOUBLE, _BYTES = 0, 1, 2


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first. Negative values as their 64-bit two's complement."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def integer(field: int, value: int) -> bytes:
    """An int64, uint64 or bool field. Zeros are written too: in a oneof they say which member is set."""
    return varint(field << 3 | _VARINT) + varint(value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | _DOUBLE) + struct.pack("<d", value)


def text(field: int, value: str) -> bytes:
    return message(field, value.encode("utf-8"))


def message(field: int, content: bytes) -> bytes:
    """A message, or a map's entry, already encoded."""
    return varint(field << 3 | _BYTES) + varint(len(content)) + content
