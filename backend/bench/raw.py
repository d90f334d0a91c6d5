"""What a back-end's socket or tap can take at best: C loops (backend/c/bench_raw.c) that send without any virtqueue."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kpoll.backend.errors import KpollError
from kpoll.backend.net_options import TapBackend
from kpoll.backend.net_tap import open_tap
from kpoll.vhost._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NS: Final = 1_000_000_000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _TUNSETPERSIST = 0x8913, 0x8914, 0x400454CB
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sH22x")
_MAC: Final = bytes.fromhex("020000000001")


def raise_link(name: str) -> None:
    """Bring an interface up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = _IFREQ.pack(name.encode(), 0)
        _, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


@contextmanager
def lasting_tap(name: str) -> Iterator[None]:
    """Make a tap that stays when nobody has it open, and is up; gone on leaving."""
    with open_tap(TapBackend(name), pairs=1, mac=_MAC) as made:
        fcntl.ioctl(made.fds[0], _TUNSETPERSIST, 1)
    raise_link(name)
    try:
        yield
    finally:
        with open_tap(TapBackend(name), pairs=1, mac=_MAC) as made:
            fcntl.ioctl(made.fds[0], _TUNSETPERSIST, 0)


def raw_udp(peer: tuple[str, int], size: int, batch: int, seconds: float) -> float:
    """Send datagrams for so long, half the time one per message, half many; gives the better rate, per CPU second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(peer)

        def loop(segment: bool, out: Any, ns: int) -> int:
            return int(lib.bench_raw_udp(sock.fileno(), size, batch, segment, ns, out))

        return max(_rate(partial(loop, segment), seconds / 2) for segment in (False, True))


def raw_tap(name: str, size: int, seconds: float) -> float:
    """Write frames for so long; gives frames per CPU second."""
    with open_tap(TapBackend(name), pairs=1, mac=_MAC) as tap:
        return _rate(lambda out, ns: lib.bench_raw_tap(tap.fds[0], size, ns, out), seconds)


def _rate(loop: Callable[[Any, int], int], seconds: float) -> float:
    out = ffi.new("struct bench_raw_result *")
    start = time.thread_time_ns()
    error = -loop(out, int(seconds * _NS))
    if error:
        raise KpollError(f"a loop of plain system calls: {os.strerror(error)}")
    return float(out.frames / (time.thread_time_ns() - start) * _NS)
