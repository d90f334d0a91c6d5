"""Whatever a user gets wrong about what a card's frames go to is told in one line that says what to do about it.

The tests of `open_tap` and others (tests/unit) have each reason; here is that the command line tells it, and no more.
Not here: a driver without XDP (EOPNOTSUPP). The kernel runs the program itself for all that can be made without one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests import taps
from tests.cli.harness import refused
from tests.netns import in_own_network, set_up
from tests.veth import ip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "eth1"
CHUNK, RING = 4096, 64
AF_XDP, SOL_XDP = 44, 283
XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 2, 4, 5, 6  # linux/if_xdp.h
XDP_COPY = 1 << 1


def without(capabilities: str) -> tuple[str, ...]:
    """Begin a command so that it has every capability but these; CAP_SYS_ADMIN stands for several of the others."""
    return ("setpriv", f"--bounding-set=-sys_admin,{capabilities}")


def net_refused(tmp_path: Path, backend: str, *options: str, code: int = 1, prefix: tuple[str, ...] = ()) -> str:
    """Return the one line that a card is refused with."""
    sock = tmp_path / "s"
    line = refused("net", "--backend", backend, *options, "--socket-path", sock, code=code, prefix=prefix)
    assert line.startswith("kpoll net: --")
    assert not sock.exists()
    return line


def make_cable() -> None:
    """Make an interface that can do XDP."""
    ip("link", "add", NAME, "type", "veth", "peer", "name", "peer")


@contextmanager
def other_socket_on(queue: int) -> Iterator[None]:
    """Have an AF_XDP socket on a queue of the interface, without a program, as one that only sends."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, RING * CHUNK) as area, socket.socket(AF_XDP, socket.SOCK_RAW, 0) as sock:
        start = ctypes.c_char.from_buffer(area)
        umem = struct.pack("=QQIII4x", ctypes.addressof(start), RING * CHUNK, CHUNK, 0, 0)
        sock.setsockopt(SOL_XDP, XDP_UMEM_REG, umem)
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
            sock.setsockopt(SOL_XDP, ring, RING)
        address = struct.pack("=HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex(NAME), queue, 0)
        assert libc.bind(sock.fileno(), address, len(address)) == 0, os.strerror(ctypes.get_errno())
        del start
        yield


@in_own_network
def test_a_queue_that_another_socket_has(tmp_path: Path) -> None:
    make_cable()
    with other_socket_on(0):
        line = net_refused(tmp_path, f"xdp:{NAME}")
        assert f"queue 0 of {NAME} is busy: stop the other process that has it" in line


@in_own_network
def test_too_little_locked_memory(tmp_path: Path) -> None:
    make_cable()
    prefix = ("prlimit", "--memlock=1048576", *without("-ipc_lock"))
    line = net_refused(tmp_path, f"xdp:{NAME}", prefix=prefix)
    assert "it takes 16384 KiB of locked memory for each queue pair" in line
    assert all(way in line for way in ("RLIMIT_MEMLOCK", "CAP_IPC_LOCK"))


@pytest.mark.parametrize("capability", ["net_raw", "net_admin", "bpf"])
@in_own_network
def test_each_capability_that_xdp_takes(tmp_path: Path, capability: str) -> None:
    make_cable()
    line = net_refused(tmp_path, f"xdp:{NAME}", prefix=without(f"-{capability}"))
    assert "permission denied" in line
    assert f"CAP_{capability.upper()}" in line
    assert "AmbientCapabilities=" in line


@in_own_network
def test_an_interface_that_has_no_ethernet(tmp_path: Path) -> None:
    taps.make("tun0", taps.IFF_TUN | taps.IFF_NO_PI)
    assert "tun0 has no Ethernet" in net_refused(tmp_path, "xdp:tun0")


@in_own_network
def test_an_interface_whose_driver_refuses_xdp(tmp_path: Path) -> None:
    """A veth does while its other end sends frames that are too long for it."""
    make_cable()
    ip("link", "set", "peer", "mtu", "9000")
    line = net_refused(tmp_path, f"xdp:{NAME}")
    assert f"{NAME} can't do XDP as it is set up" in line
    assert "smaller MTU" in line


@in_own_network
def test_a_busy_tap(tmp_path: Path) -> None:
    with os.fdopen(taps.attach("vm1"), "r+b", 0):
        assert "vm1 is busy: stop the other process" in net_refused(tmp_path, "tap:vm1")


@in_own_network
def test_a_tap_for_who_may_not_make_one(tmp_path: Path) -> None:
    line = net_refused(tmp_path, "tap:vm1", prefix=without("-net_admin"))
    assert "`ip tuntap add dev vm1 mode tap user root`" in line
    assert "CAP_NET_ADMIN" in line


@in_own_network
def test_the_mac_of_the_hosts_end(tmp_path: Path) -> None:
    taps.make("vm1")
    ip("link", "set", "vm1", "address", "52:54:00:12:34:56")
    line = net_refused(tmp_path, "tap:vm1", "--mac", "52:54:00:12:34:56")
    assert "--mac 52:54:00:12:34:56: is the address of vm1" in line


def test_an_address_that_is_given_twice(tmp_path: Path) -> None:
    macs = ("--mac", "52:54:00:12:34:56", "--mac", "52:54:00:12:34:57")
    assert "--mac was given twice; give it once" in net_refused(tmp_path, "echo", *macs, code=2)


@pytest.mark.parametrize("mtu", ["67", "65536"])
def test_an_mtu_that_no_card_has(tmp_path: Path, mtu: str) -> None:
    assert f"--mtu {mtu}: give 68 to 65535 bytes" in net_refused(tmp_path, "echo", "--mtu", mtu, code=2)


@pytest.mark.parametrize(
    ("backend", "port"),
    [
        ("udp:127.0.0.1:4000,127.0.0.2:4000", 4000),
        ("udp:[::1]:4000,[::1]:4001", 4000),
        ("vxlan:vni=42,local=127.0.0.1,remote=127.0.0.2", 4789),
        ("vxlan:vni=42,local=::1,remote=2001:db8::2", 4789),
    ],
)
@in_own_network
def test_a_port_in_use(tmp_path: Path, backend: str, port: int) -> None:
    set_up("lo")
    family, host = (socket.AF_INET6, "::1") if "::1" in backend else (socket.AF_INET, "127.0.0.1")
    with socket.socket(family, socket.SOCK_DGRAM) as taken:
        taken.bind((host, port))
        assert f"port {port} is in use at {host}: stop who has it" in net_refused(tmp_path, backend)
