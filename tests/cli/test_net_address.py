"""A card on a socket has its cable out while the socket's local address can't be sent from, and in again after that.

The other host is a network at the far end of a cable (veth.py); to delete the interface takes both ends of that away.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import veth
from tests.cli.harness import PATIENCE_S, Daemon, until
from tests.cli.test_net import FRAME, Card
from tests.cli.test_net_unplug import LINK_UP, MEASURE_S, link_of, load, packets, received, take
from tests.netns import in_own_network, set_up
from tests.threads import come_to_rest, cost
from tests.veth import FAR, FAR_IF, NEAR, NEAR_IF, inside, ip, new_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEAR6, FAR6 = "2001:db8::1", "2001:db8::2"
PORT = 4789


@dataclass(frozen=True)
class Way:
    """How frames get to the other host: between which addresses, and what stands before each in a datagram."""

    backend: str
    near: str
    far: str
    encap: bytes = b""


UDP = Way(f"udp:{NEAR}:{PORT},{FAR}:{PORT}", NEAR, FAR)
UDP6 = Way(f"udp:[{NEAR6}]:{PORT},[{FAR6}]:{PORT}", NEAR6, FAR6)
ANY = Way(f"udp:0.0.0.0:{PORT},{FAR}:{PORT}", NEAR, FAR)
VXLAN = Way(f"vxlan:vni=42,local={NEAR},remote={FAR}", NEAR, FAR, struct.pack(">II", 0x08000000, 42 << 8))


def add_ipv6(far: int) -> None:
    """Give both ends addresses of this kind too, at once."""
    ip("address", "replace", f"{NEAR6}/64", "dev", NEAR_IF, "nodad")
    with inside(far):
        ip("address", "replace", f"{FAR6}/64", "dev", FAR_IF, "nodad")


def lay(far: int) -> None:
    """Lay the cable, with addresses of both kinds."""
    veth.lay(far)
    add_ipv6(far)


def delete(_far: int) -> None:
    """Delete our end, and with it the other one."""
    ip("link", "delete", NEAR_IF)


def take_down(_far: int) -> None:
    """Do it as an administrator does."""
    set_up(NEAR_IF, up=False)


def bring_up(far: int) -> None:
    """Undo it; IPv6 addresses have to be added again."""
    set_up(NEAR_IF)
    add_ipv6(far)


@contextmanager
def other_host(way: Way, far: int) -> Iterator[socket.socket]:
    """Listen at the other end of the way."""
    with inside(far):
        peer = socket.socket(socket.AF_INET6 if ":" in way.far else socket.AF_INET, socket.SOCK_DGRAM)
    with peer:
        peer.bind((way.far, PORT))
        peer.setblocking(False)
        yield peer


def send(way: Way, peer: socket.socket, frame: bytes) -> None:
    """Send a frame to the card, if it can be sent."""
    try:
        peer.sendto(way.encap + frame, (way.near, PORT))
    except OSError:
        time.sleep(0.001)  # full, or gone: nothing is waited for


def cross_both_ways(way: Way, card: Card, peer: socket.socket) -> None:
    """Have a frame arrive at each end."""

    def crosses() -> bool:
        card.send(FRAME)
        return received(peer) == way.encap + FRAME

    def crosses_back() -> bool:
        send(way, peer, sent)
        return sent in take(card)

    until(crosses)
    sent = b"\x02" + os.urandom(5) + FRAME[6:]
    until(crosses_back)  # sent again and again: what comes while the rings are full is lost, as on a wire


def rests(daemon: Daemon) -> None:
    """Check that the daemon sleeps: all that may wake it is the kernel, which still tells of link-local addresses."""
    assert come_to_rest(daemon.pid, None, PATIENCE_S)
    before = cost(daemon.pid)
    time.sleep(MEASURE_S)  # the measurement itself, not a wait for something to happen
    used = cost(daemon.pid) - before
    assert used.cpu_ns < MEASURE_S * 1e9 / 20, used
    assert used.sleeps < 5, used


@pytest.mark.parametrize(
    ("way", "cut", "mend", "end", "errors"),
    [
        (UDP, delete, lay, "gone", ["link"]),
        (UDP6, delete, lay, "gone", ["link"]),
        (ANY, delete, lay, "gone", ["link"]),
        (VXLAN, delete, lay, "gone", ["link"]),
        (UDP, take_down, bring_up, "down", []),
        (UDP6, take_down, bring_up, "gone", ["link"]),
    ],
    ids=["udp-deleted", "udp6-deleted", "any-deleted", "vxlan-deleted", "udp-down", "udp6-down"],
)
@in_own_network
def test_a_local_address_that_is_lost_under_load_takes_the_cable_out_until_it_is_back(
    tmp_path: Path,
    way: Way,
    cut: Callable[[int], None],
    mend: Callable[[int], None],
    end: str,
    errors: list[str],
) -> None:
    sock, metrics = tmp_path / "s", tmp_path / "m"
    command = ("net", "--backend", way.backend, "--socket-path", sock, "--metrics-socket", metrics)
    with new_network() as far:
        lay(far)
        with other_host(way, far) as peer, Daemon(*command) as daemon:
            daemon.logged("listening")
            up = daemon.logged("link")
            assert (up["state"], up["address"], up["interface"]) == ("up", way.near, None)
            with Card(sock) as card:
                card.frontend.open_backend_channel()
                with load(lambda: card.send(FRAME), lambda: take(card), lambda: send(way, peer, FRAME)):
                    until(lambda: all(packets(metrics, direction) > 100 for direction in ("rx", "tx")))
                    cut(far)
                    until(lambda: daemon.logged("link")["state"] == end)
                    card.frontend.next_backend_request()  # the configuration has changed
                    assert link_of(card) == 0
                rests(daemon)

                mend(far)
                until(lambda: daemon.logged("link")["state"] == "up")
                card.frontend.next_backend_request()
                assert link_of(card) == LINK_UP
                while received(peer) is not None:
                    pass
                cross_both_ways(way, card, peer)
            assert daemon.stop() == 0
        assert [line["event"] for line in daemon.log if line["level"] == "error"] == errors


@in_own_network
def test_a_peer_that_does_not_listen_costs_its_frames_alone(tmp_path: Path) -> None:
    """The kernel tells of each that was refused (ECONNREFUSED); the cable stays in, and the log says it once."""
    with new_network() as far:
        lay(far)
        with Daemon("net", "--backend", UDP.backend, "--socket-path", tmp_path / "s") as daemon:
            daemon.logged("listening")
            assert daemon.logged("link")["state"] == "up"
            with Card(tmp_path / "s") as card:
                lines = len(daemon.log)
                for _ in range(100):
                    card.send(FRAME)
                rests(daemon)
                assert link_of(card) == LINK_UP
                with other_host(UDP, far) as peer:
                    cross_both_ways(UDP, card, peer)
            assert daemon.stop() == 0
        assert [line["event"] for line in daemon.log[lines:] if line["event"] == "link"] == []
        complaints = [line for line in daemon.log if line["level"] in ("error", "warning")]
        assert [(line["event"], line["error"]) for line in complaints] == [("port_error", "Connection refused")]
