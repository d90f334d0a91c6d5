"""AF_XDP for who may not have it: one line that says what it takes; for who has it: the socket that is open now."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from kpoll.backend.config import SocketConfig
from kpoll.backend.errors import KpollError
from kpoll.backend.net_libxdp import load_library
from kpoll.backend.net_options import NetConfig, XdpBackend
from kpoll.backend.net_ports import open_ports
from kpoll.backend.net_xdp import Xdp, open_xdp
from kpoll.backend.poll import PollConfig
from tests.netns import give_up_capabilities, in_own_network
from tests.unit.refusal import refusal

CONFIG = NetConfig(
    socket=SocketConfig(path="/run/s"),
    poll=PollConfig(strategy="off", why="a test"),
    backend=XdpBackend("dummy0"),
    mac=bytes.fromhex("525400123456"),
)


def make_dummy0() -> None:
    """Make an interface that can do XDP."""
    subprocess.run(["ip", "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy1"], check=True)


@in_own_network
def test_without_capabilities_it_says_which_it_takes() -> None:
    make_dummy0()
    give_up_capabilities()
    dummy0 = XdpBackend("dummy0")
    said = refusal(open_xdp(dummy0, pairs=1, mtu=None), dummy0)
    assert said.startswith("--backend xdp:dummy0: permission denied")
    assert all(name in said for name in ("CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF"))


def test_without_a_library_it_says_which_package_has_it() -> None:
    with pytest.raises(KpollError, match=r"--backend xdp:eth0: .*libnobody\.so\.1.*`apt install libnobody1`"):
        load_library("libnobody.so.1", "libnobody1", "--backend xdp:eth0")


@in_own_network
def test_an_interface_that_is_back_is_counted_by_its_new_socket() -> None:
    make_dummy0()
    with open_ports(CONFIG) as ports:
        assert ports.xdp is not None
        first = ports.sock
        subprocess.run(["ip", "link", "delete", "dummy0"], check=True)
        make_dummy0()
        with ports.xdp.opened_again():
            pass
        assert first is not None
        assert first.fileno() == -1
        assert ports.sock is ports.xdp.sockets[0].sock
        assert ports.sock.fileno() != -1


def make_dummy0_anew() -> None:
    """Delete it, and make another one."""
    subprocess.run(["ip", "link", "delete", "dummy0"], check=True)
    make_dummy0()


@in_own_network
def test_an_interface_that_there_is_no_memory_for_can_be_had_later() -> None:
    make_dummy0()

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with open_xdp(XdpBackend("dummy0"), pairs=1, mtu=None) as xdp:
        before = xdp.handles
        make_dummy0_anew()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kpoll.backend.net_xdp.mmap.mmap", no_memory)
            with pytest.raises(KpollError, match=r"--backend xdp:dummy0: .*Cannot allocate memory"):
                xdp.opened_again().__enter__()
        assert xdp.handles == before
        with xdp.opened_again() as handles:
            assert handles != before


@in_own_network
def test_queues_that_workers_could_not_take_are_given_to_them_again() -> None:
    make_dummy0()
    with open_xdp(XdpBackend("dummy0"), pairs=1, mtu=None) as xdp:
        deleted = xdp.sockets
        make_dummy0_anew()
        given = refused_by_workers(xdp)
        assert refused_by_workers(xdp) == given
        assert all(sock.sock.fileno() != -1 for sock in deleted), "a worker may use it yet"

        make_dummy0_anew()
        deleted_too = xdp.sockets
        with xdp.opened_again() as handles:
            assert not set(handles) & set(given)
        assert all(sock.sock.fileno() == -1 for sock in (*deleted, *deleted_too))
        assert all(sock.sock.fileno() != -1 for sock in xdp.sockets)


def refused_by_workers(xdp: Xdp) -> tuple[object, ...]:
    """Open the queues, and give them to nobody; returns the new handles."""
    with pytest.raises(KpollError), xdp.opened_again():
        raise KpollError("a worker can't take its port")
    return xdp.handles
