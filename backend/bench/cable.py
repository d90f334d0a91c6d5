"""A path to another network on the same machine, over a veth pair that can be busy-polled as a network card can.

veth has NAPI with GRO on at the end that receives, and TSO off at the one that sends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kpoll.backend.errors import KpollError

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR: Final = ("192.0.2.1", 4000)
FAR: Final = ("192.0.2.2", 4000)
NEAR_END: Final = "near"
"""The name of the cable's end in the main thread's network."""

_CLONE_NEWNET: Final = 0x40000000


def new_network() -> None:
    """Move this thread, and what it starts, into a new network. Raises KpollError."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise KpollError(f"a network namespace: {os.strerror(ctypes.get_errno())}; run as root")


def _do(words: str) -> None:
    try:
        subprocess.run(words.split(), check=True, capture_output=True, text=True)  # noqa: S603 - our own words
    except FileNotFoundError as e:
        raise KpollError(f"{words.split(maxsplit=1)[0]} is not installed (Debian: apt install iproute2 ethtool)") from e
    except subprocess.CalledProcessError as e:
        raise KpollError(f"`{words}`: {' '.join(str(e.stderr).split())}") from e


def _end(interface: str, address: str) -> None:
    _do(f"ip address add {address}/24 dev {interface}")
    _do(f"ethtool -K {interface} gro on tso off")
    _do(f"ip link set {interface} up")


def _far_end() -> socket.socket:
    """Lay the cable from the far end, in a thread of its own: a network belongs to a thread."""
    near = os.getpid()  # the main thread's network
    new_network()
    _do(f"ip link add far type veth peer name {NEAR_END} netns {near}")
    _end("far", FAR[0])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(FAR)
    sock.connect(NEAR)
    return sock


@contextmanager
def cable() -> Iterator[socket.socket]:
    """Lay a cable from the main thread's network, where its end has NEAR; gives a socket at FAR, to reflect on."""
    with ThreadPoolExecutor(1) as executor:
        sock = executor.submit(_far_end).result()
    with sock:  # the far network lives as long as it does
        _end(NEAR_END, NEAR[0])
        try:
            yield sock
        finally:
            _do(f"ip link del {NEAR_END}")  # and not at some time later, with the far network
