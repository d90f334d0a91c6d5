"""`kpoll net`: frames go where --backend says, and what can't be is one line."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import pytest

from kpoll.backend.net_config import NetFeature
from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import ProtocolFeature, VirtioFeature, without
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import U64
from tests import taps
from tests.cli.harness import PROTOCOL, Daemon, refused, scrape, scraped
from tests.netns import in_own_network

if TYPE_CHECKING:
    from pathlib import Path

HEADER = 12  # struct virtio_net_hdr_v1
ROOM = 2048
BUFFERS = 8
FRAME = bytes.fromhex("52540000000252540000000188b5") + b"to whom it may concern".ljust(50, b".")


class Card:
    """A guest with one card: a receiveq with some buffers, and a transmitq."""

    def __init__(self, where: Path, *, lacks: int = 0) -> None:
        """Connect, negotiate all that is on offer but what the driver `lacks`, and make buffers available."""
        self._stack = ExitStack()
        self.frontend = self._stack.enter_context(Frontend(where))
        unwanted = VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES | VirtioFeature.VIRTIO_F_RING_PACKED | lacks
        self.frontend.negotiate(without(self.frontend.features, unwanted), PROTOCOL)
        self.rx, self.tx = Driver(self.frontend, 0), Driver(self.frontend, 1)
        self.memory = self.frontend.add_memory((BUFFERS + 3) * ROOM)  # three for a frame to send
        for i in range(BUFFERS):
            self.rx.add([], [Buffer(self.memory.gpa + i * ROOM, ROOM)], i)
        self.rx.publish()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the card."""
        self._stack.close()

    def send(self, frame: bytes, header: bytes = bytes(HEADER)) -> None:
        """Send a frame; returns once the device has it."""
        self.put(frame, header)
        self.tx.publish()
        self.tx.wait()

    def put(self, frame: bytes, header: bytes = bytes(HEADER)) -> None:
        """Make a frame ready to be sent; the device sees it once it is published."""
        at = BUFFERS * ROOM
        self.memory.mmap[at : at + HEADER + len(frame)] = header + frame
        self.tx.add([Buffer(self.memory.gpa + at, HEADER + len(frame))], [], 0)

    def give_back(self, buffer: int) -> None:
        """Make a buffer that was used available again."""
        self.rx.add([], [Buffer(self.memory.gpa + buffer * ROOM, ROOM)], buffer)
        self.rx.publish()

    def receive(self) -> bytes:
        """Wait for a frame, of one buffer, which is made available again."""
        [used] = self.rx.wait()
        at = used.token * ROOM
        (buffers,) = struct.unpack("<H", self.memory.mmap[at + 10 : at + HEADER])
        assert buffers == 1
        frame = self.memory.mmap[at + HEADER : at + used.len]
        self.give_back(used.token)
        return frame


def dead_udp_path() -> str:
    """Give a --backend at whose other end nobody listens."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        for sock in (ours, theirs):
            sock.bind(("127.0.0.1", 0))
        return f"udp:127.0.0.1:{ours.getsockname()[1]},127.0.0.1:{theirs.getsockname()[1]}"


def test_what_an_echo_is_sent_comes_back_and_is_counted(tmp_path: Path) -> None:
    sock, metrics = tmp_path / "s", tmp_path / "m"
    mac = "52:54:00:12:34:56"
    command = ("net", "--backend", "echo", "--mac", mac)
    with Daemon(*command, "--socket-path", sock, "--metrics-socket", metrics) as daemon:
        started = daemon.logged("started")
        assert (started["backend"], started["mac"], started["queues"]) == ("echo", mac, 2)
        daemon.logged("listening")
        with Card(sock) as card:
            assert card.frontend.get_config(0, 6) == bytes.fromhex("525400123456")
            for _ in range(3):
                card.send(FRAME)
                assert card.receive() == FRAME
        for direction in ("rx", "tx"):
            assert scraped(metrics, "kpoll_net_packets_total", direction=direction) == 3
            assert scraped(metrics, "kpoll_net_bytes_total", direction=direction) == 3 * len(FRAME)
        assert daemon.stop() == 0


def test_a_header_that_lies_costs_its_frame_and_nothing_else(tmp_path: Path) -> None:
    sock, metrics = tmp_path / "s", tmp_path / "m"
    with Daemon("net", "--backend", "echo", "--socket-path", sock, "--metrics-socket", metrics) as daemon:
        daemon.logged("listening")
        with Card(sock) as card:
            card.send(FRAME, struct.pack("<BBHHHHH", 1, 0, 0, 0, 60000, 2, 0))  # a checksum far beyond the frame
            card.send(FRAME)
            assert card.receive() == FRAME
        assert scraped(metrics, "kpoll_net_drops_total", direction="tx", reason="header") == 1
        assert daemon.stop() == 0


def test_a_driver_whose_headers_are_shorter_is_refused_in_so_many_words(tmp_path: Path) -> None:
    """A legacy header has 12 bytes only with VIRTIO_NET_F_MRG_RXBUF (virtio 1.2 §5.1.6.1)."""
    with Daemon("net", "--backend", "echo", "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(NetFeature.VIRTIO_NET_F_MAC, PROTOCOL)
            for queue in (0, 1):
                with pytest.raises(FrontendError, match="SET_VRING_ENABLE failed"):
                    Driver(frontend, queue)
        assert "VIRTIO_NET_F_MRG_RXBUF" in daemon.logged("request_failed")["error"]
        daemon.logged("frontend_disconnected")
        with Card(tmp_path / "s", lacks=VirtioFeature.VIRTIO_F_VERSION_1) as card:
            card.send(FRAME)
            assert card.receive() == FRAME
        assert daemon.stop() == 0


def test_a_front_end_with_more_queue_pairs_is_told_the_option(tmp_path: Path) -> None:
    """QEMU finds queues=3 to be fewer than the four vrings of two pairs, and goes on to the fifth."""
    options = ("--backend", "null", "--num-queue-pairs", "2")
    with Daemon("net", *options, "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL)
            assert frontend.queue_num() == 4
            with pytest.raises(FrontendError):
                Driver(frontend, 4)
        refusal = daemon.logged("request_failed")
        assert refusal["error"].startswith("vring 4 of 4: ")
        assert "more queue pairs than --num-queue-pairs 2" in refusal["error"]
        assert daemon.stop() == 0


def test_what_is_sent_on_a_disabled_queue_is_discarded(tmp_path: Path) -> None:
    """As vhost-user has it: the driver gets its buffers back, the frame goes nowhere, not even later."""
    sock, metrics = tmp_path / "s", tmp_path / "m"
    with Daemon("net", "--backend", "echo", "--socket-path", sock, "--metrics-socket", metrics) as daemon:
        daemon.logged("listening")
        with Card(sock) as card:
            card.frontend.enable(1, on=False)
            card.send(FRAME)
            assert scraped(metrics, "kpoll_net_drops_total", direction="tx", reason="disabled") == 1
            card.frontend.enable(1)
            card.send(FRAME[::-1])
            assert card.receive() == FRAME[::-1]
            card.frontend.enable(0, on=False)
            card.send(FRAME)
            card.frontend.enable(0)
            assert card.receive() == FRAME, "it was kept by the port: a queue that receives has nothing to discard"
        assert daemon.stop() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_frames_cross_a_udp_path_one_datagram_each(tmp_path: Path, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as peer, socket.socket(family, socket.SOCK_DGRAM) as free:
        peer.bind((host, 0))
        free.bind((host, 0))
        ours, theirs = free.getsockname()[1], peer.getsockname()[1]
        free.close()
        name = f"[{host}]" if ":" in host else host
        sock = tmp_path / "s"
        with Daemon("net", "--backend", f"udp:{name}:{ours},{name}:{theirs}", "--socket-path", sock) as daemon:
            daemon.logged("listening")
            with Card(sock) as card:
                card.send(FRAME)
                assert peer.recv(ROOM) == FRAME
                peer.sendto(FRAME[::-1], (host, ours))
                assert card.receive() == FRAME[::-1]
            assert daemon.stop() == 0


@in_own_network
def test_a_tap_that_was_not_there_is_made_with_a_warning_and_one_that_was_without(tmp_path: Path) -> None:
    taps.make("vm1")
    for name, warned in (("vm1", []), ("mv1", ["mv1"])):
        with Daemon("net", "--backend", f"tap:{name}", "--socket-path", tmp_path / "s") as daemon:
            daemon.logged("listening")
            assert daemon.stop() == 0
        made = [line for line in daemon.log if line["event"] == "tap_made"]
        assert [line["interface"] for line in made] == warned
        assert all(line["level"] == "warning" for line in made)


def test_why_frames_are_refused_is_in_the_log_once(tmp_path: Path) -> None:
    """The drops of a path whose other end is dead are seen in metrics; the kernel's reason is told at the scrape."""
    sock, metrics = tmp_path / "s", tmp_path / "m"
    with Daemon("net", "--backend", dead_udp_path(), "--socket-path", sock, "--metrics-socket", metrics) as daemon:
        daemon.logged("listening")
        with Card(sock) as card:
            for scrapes in range(3):
                for _ in range(2):  # the first one provokes an answer, which the second one gets at the latest
                    card.send(FRAME)
                scrape(metrics)
                if scrapes == 0:
                    told = daemon.logged("port_error")
                    assert (told["level"], told["pair"], told["error"]) == ("warning", 0, "Connection refused")
        assert daemon.stop() == 0
        assert sum(line["event"] == "port_error" for line in daemon.log) == 1


def test_nobody_has_to_scrape_to_learn_why_frames_were_refused(tmp_path: Path) -> None:
    with Daemon("net", "--backend", dead_udp_path(), "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Card(tmp_path / "s") as card:
            for _ in range(2):
                card.send(FRAME)
        assert daemon.logged("port_error")["error"] == "Connection refused"
        assert daemon.stop() == 0


def test_an_mtu_within_the_cards_is_agreed_to(tmp_path: Path) -> None:
    with Daemon("net", "--backend", "echo", "--mtu", "1400", "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL | ProtocolFeature.MTU)
            frontend.request(Request.NET_SET_MTU, U64(1400))
            for mtu in (67, 1401):
                with pytest.raises(FrontendError):
                    frontend.request(Request.NET_SET_MTU, U64(mtu))
                assert f"an MTU of {mtu}, not 68 to 1400: give QEMU" in daemon.logged("request_failed")["error"]
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, ["--backend"]),
        (["--backend", "hub"], 2, ["--backend hub", "tap:NAME"]),
        (["--backend", "xdp:nobody"], 1, ["no interface nobody"]),
        (["--backend", "xdp:eth0,queues=2"], 2, ["xdp:IFACE,queue=N"]),
        (["--backend", "echo", "--mac", "01:00:5e:00:00:01"], 2, ["--mac"]),
        (["--backend", "echo", "--num-queue-pairs", "0"], 2, ["--num-queue-pairs 0"]),
        (["--backend", "udp:192.0.2.1:9,192.0.2.2:9"], 1, ["192.0.2.1"]),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, options: list[str], code: int, words: list[str]) -> None:
    line = refused("net", *options, "--socket-path", tmp_path / "s", code=code)
    assert line.startswith("kpoll net: ")
    for word in words:
        assert word in line
