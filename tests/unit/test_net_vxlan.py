"""The tunnel end point of `--backend vxlan:…`: an address and a port of this host, and what its path allows."""

from __future__ import annotations

import socket
import subprocess

import pytest

from kpoll.backend.net_options import VxlanBackend
from kpoll.backend.net_vxlan import open_vxlan
from tests.netns import in_own_network, set_up
from tests.unit.refusal import parsed, refusal


def vxlan(text: str) -> VxlanBackend:
    return parsed(f"vxlan:vni=42,{text}", VxlanBackend)


def refused(text: str) -> str:
    return refusal(open_vxlan(vxlan(text)), f"vxlan:vni=42,{text}: ")


def interface(mtu: int, *addresses: str) -> None:
    """Make an interface with these addresses."""
    commands = [f"link add eth0 mtu {mtu} type veth peer name eth1", "link set eth0 up", "link set eth1 up"]
    commands += [f"address add dev eth0 {address}" for address in addresses]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


@pytest.mark.parametrize(
    ("ends", "mtu"),
    [("local=192.0.2.1,remote=192.0.2.2", 9000 - 50), ("local=2001:db8::1,remote=2001:db8::2", 9000 - 70)],
)
@in_own_network
def test_the_guests_mtu_leaves_room_for_what_is_in_front_of_its_packets(ends: str, mtu: int) -> None:
    interface(9000, "192.0.2.1/24", "2001:db8::1/64 nodad")
    with open_vxlan(vxlan(ends)) as tunnel:
        assert tunnel.mtu == mtu


@in_own_network
def test_a_path_too_narrow_for_any_mtu_advises_none() -> None:
    interface(100, "192.0.2.1/24")
    with open_vxlan(vxlan("local=192.0.2.1,remote=192.0.2.2")) as tunnel:
        assert tunnel.mtu is None


@in_own_network
def test_the_socket_is_at_the_tunnels_port_and_hears_any_port_of_others() -> None:
    set_up("lo")
    with open_vxlan(vxlan("local=127.0.0.1,remote=127.0.0.2")) as tunnel:
        assert tunnel.sock.getsockname() == ("127.0.0.1", 4789)
        assert tunnel.probe.getpeername() == ("127.0.0.2", 4789)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"from any port", ("127.0.0.1", 4789))
            assert tunnel.sock.recv(100) == b"from any port"


@in_own_network
def test_a_port_in_use() -> None:
    set_up("lo")
    with open_vxlan(vxlan("local=127.0.0.1,remote=127.0.0.2")):
        assert "port 4789 is in use at 127.0.0.1" in refused("local=127.0.0.1,remote=127.0.0.3")


@in_own_network
def test_no_address_of_this_host() -> None:
    set_up("lo")
    assert "192.0.2.1 is no address of this host" in refused("local=192.0.2.1,remote=192.0.2.2")


@in_own_network
def test_no_route_to_the_other_end() -> None:
    set_up("lo")
    assert "there is no route from 127.0.0.1 to 192.0.2.2" in refused("local=127.0.0.1,remote=192.0.2.2")
