"""AF_XDP for who may not have it: one line that says what it takes."""

from __future__ import annotations

import subprocess

import pytest

from kpoll.backend.errors import KpollError
from kpoll.backend.net_libxdp import load_library
from kpoll.backend.net_options import XdpBackend
from kpoll.backend.net_xdp import open_xdp
from tests.netns import give_up_capabilities, in_own_network


def refusal() -> str:
    """Return what is said of why dummy0 can't be had."""
    with pytest.raises(KpollError) as refused, open_xdp(XdpBackend("dummy0"), pairs=1, mtu=None):
        pass
    return str(refused.value)


@in_own_network
def test_without_capabilities_it_says_which_it_takes() -> None:
    subprocess.run(["ip", "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy1"], check=True)
    give_up_capabilities()
    said = refusal()
    assert said.startswith("--backend xdp:dummy0: permission denied")
    assert all(name in said for name in ("CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF"))


def test_without_a_library_it_says_which_package_has_it() -> None:
    with pytest.raises(KpollError, match=r"--backend xdp:eth0: .*libnobody\.so\.1.*`apt install libnobody1`"):
        load_library("libnobody.so.1", "libnobody1", "--backend xdp:eth0")
