"""A guest that lies to its network card: a frame is dropped and counted, or that one virtqueue breaks.

Against the real daemon, on an echo or on a socket whose other end sees every byte that leaves. Whatever the guest does,
what it gets is a frame that was sent and not a byte more, and what it sends is its own memory alone.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import pytest

from kpoll.backend.net_config import NetFeature
from kpoll.vhost.driver import Buffer, Driver, Used
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend
from tests.cli.harness import PROTOCOL, Daemon, scrape, until
from tests.cli.hostile import CHAINS, NEXT, RING, WRITE, RingByHand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RX, TX = 0, 1
HEADER = 12  # struct virtio_net_hdr_v1
FRAME_MAX = 65550
NEEDS_CSUM, TCPV4, UDP_L4 = 1, 1, 5
UNWRITTEN = b"\xee"
ECHO_SLOTS = 256
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def frame(number: int, length: int = 60) -> bytes:
    """Give a frame whose bytes are no other frame's."""
    return (bytes(12) + b"\x88\xb5" + struct.pack("<I", number) * (length // 4 + 1))[:length]


def header(
    flags: int = 0, gso_type: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, at: int = 0
) -> bytes:
    """Give a struct virtio_net_hdr_v1."""
    return struct.pack("<BBHHHHH", flags, gso_type, hdr_len, gso_size, start, at, 0)


@contextmanager
def card(folder: Path, backend: str = "echo") -> Iterator[Daemon]:
    """Run a card, which must still end well after all that was done to it."""
    with Daemon("net", "--backend", backend, "--socket-path", folder / "s", "--metrics-socket", folder / "m") as daemon:
        daemon.logged("listening")
        yield daemon
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["event"] == ""], "a traceback, or a sanitizer's report"


def drops(folder: Path, direction: str) -> dict[str, int]:
    """Return the reasons for which frames were dropped, and how many."""
    return {
        dict(labels)["reason"]: int(count)
        for (name, labels), count in scrape(folder / "m").items()
        if name == "kpoll_net_drops_total" and ("direction", direction) in labels and count
    }


class Guest:
    """A driver that keeps to the rings, whatever it puts into them."""

    def __init__(self, folder: Path, features: int = 0, *, packed: bool = False) -> None:
        """Connect, with these features of the card; no buffer is there to receive into yet."""
        self._stack = ExitStack()
        self.frontend = self._stack.enter_context(Frontend(folder / "s"))
        ring = RING | (VirtioFeature.VIRTIO_F_RING_PACKED if packed else 0)
        assert features & ~self.frontend.features == 0
        self.frontend.negotiate(ring | features, PROTOCOL)
        self.rx, self.tx = (Driver(self.frontend, index, size=512) for index in (RX, TX))
        self.memory = self.frontend.add_memory(1 << 20)
        self._used: list[Used] = []
        self.merges = bool(features & NetFeature.VIRTIO_NET_F_MRG_RXBUF)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the card."""
        self._stack.close()

    def send(self, data: bytes, head: bytes = header()) -> None:
        """Send a frame; returns once the device has it."""
        self.memory.mmap[: HEADER + len(data)] = head + data
        self.tx.add([Buffer(self.memory.gpa, HEADER + len(data))], [], 0)
        self.tx.publish()
        self.tx.wait()

    def room(self, count: int, length: int) -> None:
        """Make unwritten buffers available, all of this length."""
        for i in range(count):
            at = (1 << 18) + i * 2048
            self.memory.mmap[at : at + length] = UNWRITTEN * length
            self.rx.add([], [Buffer(self.memory.gpa + at, length)], at)
        self.rx.publish()

    def receive(self, length: int) -> bytes:
        """Wait for a frame in buffers of this length, of which nothing may be written beyond it."""
        data, left = b"", 1
        while left:
            self._used += [] if self._used else self.rx.wait()
            used = self._used.pop(0)
            if not data:
                (left,) = struct.unpack("<H", self.memory.mmap[used.token + 10 : used.token + HEADER])
                assert left == 1 or self.merges
            data += self.memory.mmap[used.token : used.token + used.len]
            rest = self.memory.mmap[used.token + used.len : used.token + length]
            assert rest == UNWRITTEN * len(rest), "bytes beyond the frame"
            left -= 1
        return data[HEADER:]


def only_writable(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 64, WRITE)


def writable_behind_the_frame(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, HEADER + 60, NEXT, 1)
    ring.desc(1, ring.gpa + 128, 64, WRITE)


def half_a_header(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, HEADER - 1, 0)


def readable_to_receive_into(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 2048, 0)


def half_a_header_to_receive_into(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, HEADER - 1, WRITE)


BAD = [
    *((TX, write, kind) for write, kind in CHAINS),
    *((RX, write, kind) for write, kind in CHAINS),
    *((TX, write, "request") for write in (only_writable, writable_behind_the_frame, half_a_header)),
    *((RX, write, "request") for write in (readable_to_receive_into, half_a_header_to_receive_into)),
]


@contextmanager
def wired(folder: Path) -> Iterator[socket.socket]:
    """Run a card on a datagram path; give the path's other end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, ExitStack() as stack:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(30)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            ours = free.getsockname()
        peer.connect(ours)
        theirs = peer.getsockname()
        stack.enter_context(card(folder, f"udp:127.0.0.1:{ours[1]},127.0.0.1:{theirs[1]}"))
        yield peer


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, socket.socket]]:
    """Run one card for all guests that break its queues; give its folder, and the other end of the path."""
    folder = tmp_path_factory.mktemp("wire")
    with wired(folder) as peer:
        yield folder, peer


def faults(folder: Path, queue: int, kind: str) -> float:
    """Return how often a queue broke in this way."""
    wanted = {"queue": str(queue), "kind": kind}.items()
    samples = scrape(folder / "m").items()
    return sum(n for (name, labels), n in samples if name == "kpoll_queue_faults_total" and wanted <= labels)


@PACKED
@pytest.mark.parametrize(
    ("bad", "write", "kind"), BAD, ids=[f"{'tx' if bad else 'rx'}-{write.__name__}" for bad, write, _ in BAD]
)
def test_a_bad_chain_breaks_its_queue_and_not_the_other_direction(
    wire: tuple[Path, socket.socket], bad: int, write: Callable[[RingByHand], None], kind: str, *, packed: bool
) -> None:
    folder, peer = wire
    before = faults(folder, bad, kind)
    with Frontend(folder / "s") as frontend:
        frontend.negotiate(RING | (VirtioFeature.VIRTIO_F_RING_PACKED if packed else 0), PROTOCOL)
        ring = RingByHand(frontend, bad)
        good = Driver(frontend, 1 - bad)
        write(ring)
        ring.offer()
        assert ring.driver.vring.wait_err()
        gpa = ring.data.gpa
        if bad == TX:
            good.add([], [Buffer(gpa, 2048)], 0)
            good.publish()
            peer.send(frame(1))
            [used] = good.wait()
            assert ring.data.mmap[HEADER : used.len] == frame(1)
        else:
            ring.data.mmap[: HEADER + 60] = bytes(HEADER) + frame(1)
            good.add([Buffer(gpa, HEADER + 60)], [], 0)
            good.publish()
            good.wait()
            assert peer.recv(65536) == frame(1), "what left first must be ours"
    until(lambda: faults(folder, bad, kind) == before + 1)  # the worker tells the driver first


OFFLOADS = NetFeature.VIRTIO_NET_F_CSUM | NetFeature.VIRTIO_NET_F_HOST_TSO4
LIES = {
    "checksum_beyond_the_frame": (OFFLOADS, header(NEEDS_CSUM, start=60000, at=16)),
    "checksum_at_the_last_byte": (OFFLOADS, header(NEEDS_CSUM, start=43, at=16)),
    "checksum_wrapping": (OFFLOADS, header(NEEDS_CSUM, start=0xFFFF, at=0xFFFF)),
    "checksum_not_negotiated": (0, header(NEEDS_CSUM, start=34, at=16)),
    "segments_of_nothing": (OFFLOADS, header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16)),
    "segments_without_checksum": (OFFLOADS, header(0, TCPV4, 54, 1000)),
    "segments_not_negotiated": (OFFLOADS, header(NEEDS_CSUM, UDP_L4, 42, 1000, 34, 6)),
    "segments_of_an_unknown_kind": (OFFLOADS, header(NEEDS_CSUM, 0x7F, 54, 1000, 34, 16)),
    "headers_longer_than_the_frame": (OFFLOADS, header(NEEDS_CSUM, TCPV4, 61, 1000, 34, 16)),
}


@PACKED
def test_a_header_that_lies_costs_its_frame_alone(wire: tuple[Path, socket.socket], *, packed: bool) -> None:
    folder, peer = wire
    before = drops(folder, "tx").get("header", 0)
    for name, (features, head) in LIES.items():
        with Guest(folder, features, packed=packed) as guest:
            guest.send(frame(1), head)
            guest.send(frame(2))
            assert peer.recv(65536) == frame(2), name
    assert drops(folder, "tx")["header"] == before + len(LIES)


def test_what_is_no_frame_by_its_length_is_dropped(tmp_path: Path) -> None:
    with card(tmp_path), Guest(tmp_path) as guest:
        guest.room(1, 2048)
        for length in (0, 13, FRAME_MAX + 1, 500_000):
            guest.tx.add([Buffer(guest.memory.gpa, HEADER + length)], [], 0)
        guest.tx.publish()
        guest.tx.wait(4)
        guest.send(frame(2))
        assert guest.receive(2048) == frame(2)
        assert drops(tmp_path, "tx") == {"length": 4}


def test_a_driver_without_buffers_loses_what_the_echo_cannot_hold(tmp_path: Path) -> None:
    with card(tmp_path), Guest(tmp_path) as guest:
        for i in range(ECHO_SLOTS + 44):
            guest.send(frame(i))
        assert drops(tmp_path, "tx") == {"full": 44}
        guest.room(ECHO_SLOTS, 100)
        assert [guest.receive(100) for _ in range(ECHO_SLOTS)] == [frame(i) for i in range(ECHO_SLOTS)]
        guest.send(frame(999))
        guest.room(1, 100)
        assert guest.receive(100) == frame(999)


def test_a_frame_longer_than_its_buffer_is_dropped_and_the_buffer_used_for_the_next(tmp_path: Path) -> None:
    with card(tmp_path), Guest(tmp_path) as guest:
        guest.room(1, HEADER + 60)
        guest.send(frame(1, 61))
        guest.send(frame(2, 60))
        assert guest.receive(HEADER + 60) == frame(2, 60)
        assert drops(tmp_path, "rx") == {"too_long": 1}


def test_a_frame_longer_than_all_buffers_is_dropped_and_the_buffers_used_for_the_next(tmp_path: Path) -> None:
    with card(tmp_path), Guest(tmp_path, NetFeature.VIRTIO_NET_F_MRG_RXBUF) as guest:
        guest.room(2, HEADER + 60)
        guest.send(frame(1, 400))
        guest.send(frame(2, 100))
        assert guest.receive(HEADER + 60) == frame(2, 100)
        assert drops(tmp_path, "rx") == {"no_buffer": 1}


@PACKED
@pytest.mark.parametrize(("features", "room"), [(0, 1526), (NetFeature.VIRTIO_NET_F_MRG_RXBUF, 100)])
def test_a_short_frame_after_long_ones_brings_nothing_of_them(
    tmp_path: Path, features: int, room: int, *, packed: bool
) -> None:
    with card(tmp_path), Guest(tmp_path, features, packed=packed) as guest:
        for i in range(3):
            guest.room(40, room)
            for length in (1500, 60, 14, 1400, 101, 88, 89):
                guest.send(frame(i, length))
                assert guest.receive(room) == frame(i, length)
            while guest.rx.in_flight:
                guest.send(frame(i))
                assert guest.receive(room) == frame(i)


def test_memory_truncated_under_the_card_breaks_that_guest_and_the_next_one_is_served(tmp_path: Path) -> None:
    with wired(tmp_path) as peer:
        with Guest(tmp_path) as guest:
            guest.room(4, 2048)
            os.ftruncate(guest.memory.fd, 0)
            guest.tx.add([Buffer(guest.memory.gpa, HEADER + 60)], [], 0)
            guest.tx.publish()
            assert guest.tx.vring.wait_err()
        with Guest(tmp_path) as guest:
            guest.room(4, 2048)
            guest.send(frame(2))
            sent = peer.recv(65536)
            if sent == bytes(60):  # the hole, as zeros
                sent = peer.recv(65536)
            assert sent == frame(2)
            peer.send(frame(3))
            assert guest.receive(2048) == frame(3)
        until(lambda: faults(tmp_path, TX, "memory_gone") == 1)


def test_what_an_echo_still_has_of_one_guest_is_not_the_next_guests(tmp_path: Path) -> None:
    with card(tmp_path):
        with Guest(tmp_path) as guest:
            guest.send(frame(1))
        with Guest(tmp_path) as guest:
            guest.room(2, 2048)
            guest.send(frame(2))
            assert guest.receive(2048) == frame(2)
