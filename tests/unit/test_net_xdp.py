"""AF_XDP for who may not have it: one line that says what it takes; for who has it: the socket that is open now."""

from __future__ import annotations

import subprocess

import pytest

from kpoll.backend.config import SocketConfig
from kpoll.backend.errors import KpollError
from kpoll.backend.net_libxdp import load_library
from kpoll.backend.net_options import NetConfig, XdpBackend
from kpoll.backend.net_ports import open_ports
from kpoll.backend.net_xdp import open_xdp
from kpoll.backend.poll import PollConfig
from tests.netns import give_up_capabilities, in_own_network
from tests.unit.refusal import refusal


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
    config = NetConfig(
        socket=SocketConfig(path="/run/s"),
        poll=PollConfig(strategy="off", why="a test"),
        backend=XdpBackend("dummy0"),
        mac=bytes.fromhex("525400123456"),
    )
    with open_ports(config) as ports:
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
