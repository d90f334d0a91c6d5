"""A batch of equal datagrams, which C sends again and again (backend/c/bench_datagrams.h)."""

from __future__ import annotations

from typing import Any, Final

from kpoll.backend.errors import KpollError
from kpoll.vhost._core import ffi, lib

CUT_MAX: Final[int] = lib.BENCH_DATAGRAMS_MAX
"""How many datagrams the kernel cuts one message into."""


class Datagrams:
    """A batch.

    Attributes:
        size: Bytes of each.
        handle: A `struct bench_datagrams *`, for as long as this lives.

    """

    def __init__(self, bytes_: bytes, count: int, *, cut: bool) -> None:
        """Lay it out.

        Args:
            bytes_: What is in each datagram.
            count: How many there are, 1 to CUT_MAX.
            cut: Whether they go out in as few messages as there can be, which the kernel cuts (UDP_SEGMENT).

        """
        out = ffi.new("struct bench_datagrams **")
        if lib.bench_datagrams_create(out, bytes_, len(bytes_), count, count if cut else 1):
            raise KpollError(f"{count} datagrams of {len(bytes_)} bytes can't be laid out")
        self.size = len(bytes_)
        self.handle: Any = ffi.gc(out[0], lib.bench_datagrams_destroy)
