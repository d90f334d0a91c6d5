"""A cable between two networks: a veth pair, one end here and the other in a network of its own (netns.py).

Its near end has NAPI, so that it can be busy-polled as a card can: veth has that with GRO on at the end that receives,
and TSO off at the one that sends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR, FAR = "192.0.2.1", "192.0.2.2"
NEAR_IF, FAR_IF = "near", "far"

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _ETHTOOL_STSO, _ETHTOOL_SGRO = 0x8946, 0x1F, 0x2C  # linux/sockios.h, linux/ethtool.h


def ip(*words: str) -> None:
    """Do what `ip` does with these words, in the network of this thread."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def inside(network: int) -> Iterator[None]:
    """Have this thread in another network for a while, by its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.setns(network, _CLONE_NEWNET) == 0
        yield
    finally:
        assert libc.setns(before, _CLONE_NEWNET) == 0
        os.close(before)


@contextmanager
def new_network() -> Iterator[int]:
    """Make a network with nothing in it, and return its descriptor."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_CLONE_NEWNET) == 0
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        assert libc.setns(before, _CLONE_NEWNET) == 0
    finally:
        os.close(before)
    try:
        yield made
    finally:
        os.close(made)


@contextmanager
def cable() -> Iterator[int]:
    """Lay a cable from this network, which has NEAR, to a new one, which has FAR; return that one's descriptor."""
    with new_network() as far:
        lay(far)
        yield far


def lay(far: int) -> None:
    """Lay a cable to the network with this descriptor."""
    ip("link", "add", NEAR_IF, "type", "veth", "peer", "name", FAR_IF, "netns", f"/proc/{os.getpid()}/fd/{far}")
    _end(NEAR_IF, NEAR, _ETHTOOL_SGRO, on=True)
    with inside(far):
        _end(FAR_IF, FAR, _ETHTOOL_STSO, on=False)


def _end(interface: str, address: str, feature: int, *, on: bool) -> None:
    ip("address", "add", f"{address}/24", "dev", interface)
    value = ctypes.create_string_buffer(struct.pack("=II", feature, on))  # struct ethtool_value
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(value))  # struct ifreq
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    ip("link", "set", interface, "up")


def leave_to_pollers(interface: str) -> None:
    """Have frames wait in the interface for somebody who polls it, 20 ms at most, instead of interrupting."""
    # The sysfs that is mounted shows the network of whoever mounted it.
    script = (
        f"mount -t sysfs sysfs /sys; cd /sys/class/net/{interface}; "
        "echo 20000000 > gro_flush_timeout; echo 1000 > napi_defer_hard_irqs"
    )
    subprocess.run(["unshare", "--mount", "sh", "-ec", script], check=True)
