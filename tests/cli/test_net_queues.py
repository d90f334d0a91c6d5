"""A tap deals frames to the queue pairs that the guest uses, and to no others: none is lost where nobody reads."""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend
from tests import taps
from tests.cli.harness import PATIENCE_S, PROTOCOL, Daemon, scrape, scraped, until
from tests.cli.test_net import FRAME, HEADER, ROOM
from tests.cli.test_net_unplug import MEASURE_S
from tests.frames import Host, udp_data
from tests.netns import in_own_network
from tests.veth import ip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAP = "vm1"
PAIRS = 4
QUEUES_MAX = 256  # of a tap (MAX_TAP_QUEUES)
MAC = "52:54:00:12:34:56"
HOST, GUEST = (Host(b"", ipaddress.ip_address(f"192.0.2.{number}")) for number in (1, 2))
PORTS = range(4000, 4064)  # a flow each, which are dealt by a hash


class Guest:
    """A guest that receives on the queue pairs that it likes to use."""

    def __init__(self, where: Path) -> None:
        """Connect; no pair is used yet."""
        self.frontend = Frontend(where)
        self.frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL)
        self._memory = self.frontend.add_memory((PAIRS * len(PORTS) + 1) * ROOM)  # the last one for a frame to send
        self._rx: dict[int, Driver] = {}
        self._tx: Driver | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the card."""
        self.frontend.close()

    def use(self, pair: int) -> None:
        """Receive by a pair, with room for every flow."""
        rx = self._rx[pair] = Driver(self.frontend, 2 * pair)
        for i in range(len(PORTS)):
            rx.add([], [Buffer(self._memory.gpa + (pair * len(PORTS) + i) * ROOM, ROOM)], pair * len(PORTS) + i)
        rx.publish()

    def send(self, frame: bytes) -> None:
        """Send a frame by the first pair; returns once the device has it."""
        if self._tx is None:
            self._tx = Driver(self.frontend, 1)
        at = PAIRS * len(PORTS) * ROOM
        self._memory.mmap[at : at + HEADER + len(frame)] = bytes(HEADER) + frame
        self._tx.add([Buffer(self._memory.gpa + at, HEADER + len(frame))], [], 0)
        self._tx.publish()
        self._tx.wait()

    def enable(self, pair: int, *, on: bool) -> None:
        """Do what QEMU does when the driver asks for more pairs, or for fewer."""
        self.frontend.enable(2 * pair, on=on)

    def take(self) -> Iterator[tuple[int, bytes]]:
        """Take the host's datagrams that are there, and the pair that each came by."""
        for pair, rx in self._rx.items():
            for used in rx.poll():
                at = used.token * ROOM
                data = udp_data(self._memory.mmap[at + HEADER : at + used.len], HOST, GUEST)
                if data is not None:
                    yield pair, data
                rx.add([], [Buffer(self._memory.gpa + at, ROOM)], used.token)
            rx.publish()


def give_address() -> None:
    """Let the host's stack have the tap, and know the guest."""
    ip("address", "add", f"{HOST.ip}/24", "dev", TAP)
    ip("link", "set", TAP, "up")
    ip("neighbour", "add", str(GUEST.ip), "lladdr", MAC, "dev", TAP)


def bring(name: str, flags: int) -> None:
    """Make a tap and give it its name afterwards: nobody sees it before it is ready."""
    taps.make(name, flags)
    ip("link", "set", name, "name", TAP)
    give_address()


@contextmanager
def card(tmp_path: Path) -> Iterator[tuple[Daemon, Guest]]:
    """Serve a card on a tap with several queues; a guest is there, and uses its first pair."""
    taps.make(TAP, taps.IFF_QEMU | taps.IFF_MULTI_QUEUE)
    give_address()
    sock, metrics = tmp_path / "s", tmp_path / "m"
    command = ("net", "--backend", f"tap:{TAP}", "--num-queue-pairs", str(PAIRS), "--mac", MAC)
    with Daemon(*command, "--socket-path", sock, "--metrics-socket", metrics) as daemon:
        daemon.logged("listening")
        assert daemon.logged("link")["state"] == "up"
        with Guest(sock) as guest:
            guest.use(0)
            yield daemon, guest
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["event"] == "queues_not_set"]


_round = itertools.count()


def who_got(guest: Guest) -> set[int]:
    """Send a datagram of each flow; all of them must arrive. Return the pairs that they came by."""
    marks = {f"{next(_round)}".encode(): port for port in PORTS}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for mark, port in marks.items():
            sock.sendto(mark, (str(GUEST.ip), port))
    pairs: set[int] = set()
    missing = set(marks)

    def look() -> bool:
        for pair, data in guest.take():
            assert data in missing
            missing.remove(data)
            pairs.add(pair)
        return not missing

    until(look)
    return pairs


def refused(metrics: Path) -> float:
    """Count the frames of the first pair that the guest could not send."""
    return scraped(metrics, "kpoll_net_drops_total", queue="1", reason="refused")


@contextmanager
def queues_taken(name: str) -> Iterator[None]:
    """Leave one queue of a tap to others."""
    fds = [taps.attach(name, taps.IFF_QEMU | taps.IFF_MULTI_QUEUE) for _ in range(QUEUES_MAX - 1)]
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def cpu_seconds(metrics: Path) -> float:
    """Return what all workers have used."""
    return sum(used for (name, _), used in scrape(metrics).items() if name == "kpoll_worker_cpu_seconds_total")


@in_own_network
def test_no_frame_is_lost_to_queue_pairs_that_the_guest_does_not_use(tmp_path: Path) -> None:
    with card(tmp_path) as (_, guest):
        assert who_got(guest) == {0}
        guest.use(2)
        assert who_got(guest) == {0, 2}
        guest.enable(2, on=False)
        assert who_got(guest) == {0}

        before = cpu_seconds(tmp_path / "m")
        time.sleep(MEASURE_S)  # the measurement itself, not a wait for something to happen
        assert cpu_seconds(tmp_path / "m") - before < MEASURE_S / 20, "who has no queue has nothing to do"

        guest.enable(2, on=True)
        guest.use(3)
        assert who_got(guest) == {0, 2, 3}
        guest.frontend.get_vring_base(2 * 2)
        assert who_got(guest) == {0, 3}
        guest.enable(0, on=False)
        guest.enable(0, on=True)
        assert who_got(guest) == {0, 3}


@in_own_network
def test_the_next_guest_begins_with_its_first_pair(tmp_path: Path) -> None:
    with card(tmp_path) as (_, guest):
        guest.use(1)
        assert who_got(guest) == {0, 1}
        guest.frontend.close()
        with Guest(tmp_path / "s") as successor:
            successor.use(0)
            assert who_got(successor) == {0}


@in_own_network
def test_a_tap_that_comes_back_has_the_queues_that_the_guest_uses(tmp_path: Path) -> None:
    with card(tmp_path) as (daemon, guest):
        guest.use(1)
        taps.delete(TAP)
        until(lambda: daemon.logged("link")["state"] == "gone")
        guest.enable(1, on=False)
        guest.use(2)
        taps.make(TAP, taps.IFF_QEMU | taps.IFF_MULTI_QUEUE)
        give_address()
        until(lambda: daemon.logged("link")["state"] == "up")
        assert who_got(guest) == {0, 2}


@in_own_network
def test_a_tap_that_comes_back_without_several_queues_is_not_touched(tmp_path: Path) -> None:
    with card(tmp_path) as (daemon, guest):
        taps.delete(TAP)
        until(lambda: daemon.logged("link")["state"] == "gone")
        bring("other", taps.IFF_QEMU)
        assert "is no tap with several queues" in daemon.logged("not_attached")["error"]
        os.close(taps.attach(TAP))  # which nobody else has
        taps.delete(TAP)
        bring("another", taps.IFF_QEMU | taps.IFF_MULTI_QUEUE)
        until(lambda: daemon.logged("link")["state"] == "up")
        assert who_got(guest) == {0}
        assert not [line for line in daemon.log if "is busy" in str(line.get("error"))]


@in_own_network
def test_nothing_is_sent_to_a_tap_of_which_not_all_queues_can_be_had(tmp_path: Path) -> None:
    with card(tmp_path) as (daemon, guest), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as host:
        guest.send(FRAME)
        before = refused(tmp_path / "m")
        taps.delete(TAP)
        until(lambda: daemon.logged("link")["state"] == "gone")
        guest.send(FRAME)
        assert refused(tmp_path / "m") == before + 1

        taps.make("other", taps.IFF_QEMU | taps.IFF_MULTI_QUEUE)
        with queues_taken("other"):
            ip("link", "set", "other", "name", TAP)
            give_address()
            assert f"has no {PAIRS} queues left" in daemon.logged("not_attached")["error"]
            guest.send(FRAME)
            assert refused(tmp_path / "m") == before + 2, "it would be cut in the wrong place"
        until(lambda: daemon.logged("link")["state"] == "up")
        host.bind((TAP, 0x88B5))
        host.settimeout(PATIENCE_S)
        guest.send(FRAME)
        assert host.recv(ROOM) == FRAME
        assert refused(tmp_path / "m") == before + 2
        assert who_got(guest) == {0}
