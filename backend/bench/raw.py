"""What a back-end's socket or tap can do at best: C loops (backend/c/bench_raw.h) without any virtqueue."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from kpoll.backend.bench.datagrams import Datagrams
from kpoll.backend.errors import KpollError
from kpoll.backend.net_options import Endpoint, TapBackend, XdpBackend
from kpoll.backend.net_tap import open_tap
from kpoll.backend.net_udp import bound_socket
from kpoll.backend.net_xdp import open_xdp
from kpoll.vhost._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NS: Final = 1_000_000_000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _TUNSETPERSIST = 0x8913, 0x8914, 0x400454CB
_IFF_UP: Final = 0x1
_UDP_GRO: Final = 104
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

        def loop(what: Datagrams, out: Any, ns: int) -> int:
            return int(lib.bench_raw_udp(sock.fileno(), what.handle, ns, out))

        return max(_rate(partial(loop, Datagrams(bytes(size), batch, cut=cut)), seconds / 2) for cut in (False, True))


def raw_tap(name: str, size: int, seconds: float) -> float:
    """Write frames for so long; gives frames per CPU second."""
    with open_tap(TapBackend(name), pairs=1, mac=_MAC) as tap:
        return _rate(lambda out, ns: lib.bench_raw_tap(tap.fds[0], size, ns, out), seconds)


def raw_xdp(name: str, size: int, batch: int, seconds: float) -> float:
    """Send frames through an AF_XDP socket on an interface for so long; gives frames per CPU second."""
    with open_xdp(XdpBackend(name), pairs=1, mtu=None) as xdp:
        return _rate(lambda out, ns: lib.bench_raw_xdp(xdp.sockets[0].parts, size, batch, ns, out), seconds)


def raw_receive(what: Datagrams, depth: int, feeder_cpu: int, seconds: float) -> float:
    """Receive what a thread on another CPU sends, half the time with UDP_GRO; gives the better rate, per CPU second."""
    with ThreadPoolExecutor(1) as executor:
        return max(_received(what, depth, gro, feeder_cpu, seconds / 2, executor) for gro in (False, True))


def _received(
    what: Datagrams, depth: int, gro: bool, feeder_cpu: int, seconds: float, executor: ThreadPoolExecutor
) -> float:
    came, stop = ffi.new("uint64_t *"), ffi.new("uint32_t *")

    def feed(sock: socket.socket) -> int:
        os.sched_setaffinity(0, {feeder_cpu})
        return int(lib.bench_raw_feed(sock.fileno(), what.handle, depth, came, stop))

    with connected_pair() as (near, far):
        near.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, gro)
        feeding = executor.submit(feed, far)
        try:
            return _rate(lambda out, ns: lib.bench_raw_receive(near.fileno(), what.size, ns, came, out), seconds)
        finally:
            stop[0] = 1
            _check(feeding.result())


@contextmanager
def connected_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two UDP sockets on the loopback interface, connected to each other; the first one has room for bursts."""
    here = Endpoint(ip_address("127.0.0.1"), 0)
    with bound_socket(here, "") as near, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.connect(near.getsockname())
        near.connect(far.getsockname())
        yield near, far


def _rate(loop: Callable[[Any, int], int], seconds: float) -> float:
    out = ffi.new("struct bench_raw_result *")
    start = time.thread_time_ns()
    _check(loop(out, int(seconds * _NS)))
    return float(out.frames / (time.thread_time_ns() - start) * _NS)


def _check(rc: int) -> None:
    if rc:
        raise KpollError(f"a loop of plain system calls: {os.strerror(-rc)}")
