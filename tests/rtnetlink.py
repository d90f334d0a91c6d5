"""Messages as the kernel writes them (rtnetlink(7))."""

from __future__ import annotations

import struct


def message(kind: int, body: bytes) -> bytes:
    """Write a message."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """Write what may stand in one, after its own header."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
