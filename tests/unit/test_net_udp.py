"""The socket of `--backend udp:` carries datagrams between two ends, or says in one line why it can't."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from contextlib import ExitStack

import pytest

from kpoll.backend.net_options import UdpBackend
from kpoll.backend.net_udp import guest_mtu, open_udp
from tests.netns import give_up_capabilities, in_own_network, set_up
from tests.unit.refusal import parsed, refusal

FRAME = bytes(range(64))
PATIENCE_S = 30.0


def udp(text: str) -> UdpBackend:
    return parsed(f"udp:{text}", UdpBackend)


def refused(text: str) -> str:
    return refusal(open_udp(udp(text)), f"udp:{text}: ")


def received(sock: socket.socket) -> bytes:
    assert select.select([sock], [], [], PATIENCE_S)[0]
    return sock.recv(65535)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@in_own_network
def test_what_one_end_sends_the_other_receives(host: str) -> None:
    set_up("lo")
    with open_udp(udp(f"{host}:4000,{host}:4001")) as one, open_udp(udp(f"{host}:4001,{host}:4000")) as other:
        one.send(FRAME)
        assert received(other) == FRAME
        other.send(FRAME[::-1])
        assert received(one) == FRAME[::-1]


@in_own_network
def test_only_the_other_end_is_heard() -> None:
    set_up("lo")
    with open_udp(udp("127.0.0.1:4000,127.0.0.1:4001")) as one, ExitStack() as sockets:
        stranger, other = (sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        stranger.bind(("127.0.0.1", 4002))
        other.bind(("127.0.0.1", 4001))
        stranger.sendto(b"from a stranger", ("127.0.0.1", 4000))
        other.sendto(FRAME, ("127.0.0.1", 4000))
        assert received(one) == FRAME


@in_own_network
def test_the_socket_never_blocks_and_is_closed_at_the_end() -> None:
    set_up("lo")
    with open_udp(udp("127.0.0.1:4000,127.0.0.1:4001")) as sock:
        assert not os.get_blocking(sock.fileno())
        assert not os.get_inheritable(sock.fileno())
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    assert sock.fileno() == -1


@in_own_network
def test_every_address_of_ipv6_leaves_the_port_of_ipv4_alone() -> None:
    set_up("lo")
    with open_udp(udp("[::]:4000,[::1]:4001")), open_udp(udp("0.0.0.0:4000,127.0.0.1:4001")) as sock:
        assert sock.getpeername() == ("127.0.0.1", 4001)


@in_own_network
def test_a_port_in_use() -> None:
    set_up("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 4000))
        assert "port 4000 is in use at 127.0.0.1" in refused("127.0.0.1:4000,127.0.0.1:4001")


@pytest.mark.parametrize("ends", ["192.0.2.1:4000,192.0.2.2:4000", "[2001:db8::1]:4000,[2001:db8::2]:4000"])
@in_own_network
def test_no_address_of_this_host(ends: str) -> None:
    set_up("lo")
    assert "is no address of this host" in refused(ends)


@pytest.mark.parametrize("ends", ["0.0.0.0:4000,192.0.2.2:4000", "[::]:4000,[2001:db8::2]:4000"])
@in_own_network
def test_no_route_to_the_other_end(ends: str) -> None:
    set_up("lo")
    assert "there is no route from" in refused(ends)


@in_own_network
def test_the_broadcast_address_of_a_network() -> None:
    set_up("lo")
    assert "is a broadcast address" in refused("127.0.0.1:4000,127.255.255.255:4000")


@in_own_network
def test_a_link_local_address_needs_its_interface() -> None:
    set_up("lo")
    assert "link-local: say on which interface" in refused("[fe80::1]:4000,[fe80::2]:4000")
    assert "link-local: say on which interface" in refused("[::]:4000,[fe80::2]:4000")
    assert "fe80::1%eth9 names no interface" in refused("[fe80::1%eth9]:4000,[fe80::2%eth9]:4000")


@in_own_network
def test_a_privileged_port_names_the_capability() -> None:
    set_up("lo")
    give_up_capabilities()
    assert "CAP_NET_BIND_SERVICE" in refused("127.0.0.1:99,127.0.0.1:4001")


@pytest.mark.parametrize(("host", "mtu"), [("127.0.0.1", 1500 - 42), ("[::1]", 1500 - 62)])
@in_own_network
def test_the_guests_mtu_leaves_room_for_what_is_in_front_of_its_packets(host: str, mtu: int) -> None:
    set_up("lo")
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1500"], check=True)
    with open_udp(udp(f"{host}:4000,{host}:4001")) as sock:
        assert guest_mtu(sock) == mtu


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@in_own_network
def test_a_packet_of_the_guests_mtu_can_be_sent_where_the_path_takes_more_than_ip_has(host: str) -> None:
    set_up("lo")
    with open_udp(udp(f"{host}:4000,{host}:4001")) as sock:
        mtu = guest_mtu(sock)
        assert mtu is not None
        assert sock.send(bytes(14 + mtu)) == 14 + mtu
