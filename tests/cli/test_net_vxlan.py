"""`kpoll net --backend vxlan:…` and Linux's own vxlan device are two ends of one segment, over IPv4 and IPv6.

Linux is a host of its own here, in a network namespace at the other end of a cable. It answers ARP, and takes nothing
with a wrong checksum: what its sockets receive is right.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from kpoll.vhost.driver import Buffer
from tests.cli.harness import Daemon, scraped
from tests.cli.test_net import BUFFERS, FRAME, HEADER, ROOM, Card
from tests.netns import in_own_network, set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

VNI: Final = 42
GUEST_MAC, GUEST_IP = bytes.fromhex("525400123456"), socket.inet_aton("10.0.0.1")
LINUX_MAC, LINUX_IP = bytes.fromhex("025400000002"), socket.inet_aton("10.0.0.2")
ARP, IPV4 = 0x0806, 0x0800
NEEDS_CSUM = 1
GSO_TCPV4, GSO_UDP_L4 = 1, 5
SYN, PSH, ACK = 0x02, 0x08, 0x10
TEXT: Final = bytes(range(256)) * 80  # 20,480 bytes
MSS: Final = 1200
PATIENCE_S: Final = 30.0


def in_network_of(pid: int, function: Callable[[], T]) -> T:
    """Call `function` in the network namespace of a process; sockets that it makes stay there."""

    def body() -> T:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(fd, 0) == 0
        finally:
            os.close(fd)
        return function()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(body).result()


@contextmanager
def linux_host(ours: str, theirs: str, stranger: str) -> Iterator[int]:
    """Make the other host, with a vxlan device at its end of the cable; yields a process that lives there."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"made\n"
        width = "64 nodad" if ":" in ours else "24"
        for command in (
            f"link add veth0 type veth peer name veth1 netns {host.pid}",
            f"address add dev veth0 {ours}/{width}",
            "link set veth0 up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        tunnel = f"local {theirs} remote {ours} dev veth1"
        inside = ["nsenter", "--target", str(host.pid), "--net", "--"]
        for command in (
            f"ip address add dev veth1 {theirs}/{width}",
            f"ip address add dev veth1 {stranger}/{width}",
            "ip link set veth1 up",
            f"ip link add vx0 address {LINUX_MAC.hex(':')} type vxlan id {VNI} {tunnel} dstport 4789",
            "ip address add dev vx0 10.0.0.2/24",
            "ip link set vx0 up",
            # A cable without a wire carries frames whose checksums and segments are still to be made (README).
            "ethtool -K vx0 tx off",
        ):
            subprocess.run([*inside, *command.split()], check=True, stdout=subprocess.DEVNULL)
        yield host.pid
        host.communicate()


def checksum(data: bytes) -> int:
    """Sum up as RFC 1071 does; 0xffff over all that a right checksum is part of."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Guest(Card):
    """A guest that speaks ARP, UDP and TCP by hand, and leaves checksums and segments to its card."""

    def __init__(self, where: Path) -> None:
        """Connect."""
        super().__init__(where)
        self._large = self.frontend.add_memory(1 << 16)
        self._frames: deque[bytes] = deque()

    def send_large(self, frame: bytes, header: bytes) -> None:
        """Send a frame that is longer than others; returns once the device has it."""
        self._large.mmap[: HEADER + len(frame)] = header + frame
        self.tx.add([Buffer(self._large.gpa, HEADER + len(frame))], [], 0)
        self.tx.publish()
        self.tx.wait()

    def next_frame(self, wanted: Callable[[bytes], bool]) -> bytes:
        """Wait for a frame that is wanted, passing over all else that Linux sends by itself."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                if wanted(frame):
                    return frame
            for used in self.rx.wait():
                at = used.token * ROOM
                self._frames.append(self.memory.mmap[at + HEADER : at + used.len])
                self.rx.add([], [Buffer(self.memory.gpa + at, ROOM)], used.token)
            self.rx.publish()

    def ip(self, protocol: int, transport: bytes, field: int, size: int = 0) -> None:
        """Send IPv4 to Linux; the checksum at `field` is left to the card, and segments of `size` bytes."""
        header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(transport), 7, 0x4000, 64, protocol, 0))
        header += GUEST_IP + LINUX_IP
        struct.pack_into(">H", header, 10, ~checksum(bytes(header)) & 0xFFFF)
        pseudo = GUEST_IP + LINUX_IP + struct.pack(">BBH", 0, protocol, len(transport))
        body = bytearray(transport)
        struct.pack_into(">H", body, field, checksum(pseudo))
        gso = (GSO_TCPV4 if protocol == socket.IPPROTO_TCP else GSO_UDP_L4) if size else 0
        frame = LINUX_MAC + GUEST_MAC + struct.pack(">H", IPV4) + header + body
        self.send_large(frame, struct.pack("<BBHHHHH", NEEDS_CSUM, gso, 54, size, 34, field, 0))

    def tcp(self, flags: int, seq: int, ack: int, data: bytes = b"", size: int = 0) -> None:
        """Send TCP from port 5000 to port 80."""
        head = struct.pack(">HHIIBBHHH", 5000, 80, seq, ack, 5 << 4, flags, 65535, 0, 0)
        self.ip(socket.IPPROTO_TCP, head + data, 16, size)


def is_ipv4(protocol: int) -> Callable[[bytes], bool]:
    """Tell frames of one protocol."""
    return lambda frame: frame[12:14] == struct.pack(">H", IPV4) and frame[23] == protocol


def bound(pid: int, kind: int, port: int, host: str = "10.0.0.2") -> socket.socket:
    """Make a socket of the Linux host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = in_network_of(pid, lambda: socket.socket(family, kind))
    sock.settimeout(PATIENCE_S)
    sock.bind((host, port))
    return sock


@pytest.mark.parametrize(
    ("ends", "mtu"),
    [
        (("192.0.2.1", "192.0.2.2", "192.0.2.3"), 1500 - 50),
        (("2001:db8::1", "2001:db8::2", "2001:db8::3"), 1500 - 70),
    ],
    ids=["ipv4", "ipv6"],
)
@in_own_network
def test_linux_and_a_guest_share_a_segment(tmp_path: Path, ends: tuple[str, str, str], mtu: int) -> None:
    ours, theirs, stranger = ends
    path, metrics = tmp_path / "s", tmp_path / "m"
    backend = f"vxlan:vni={VNI},local={ours},remote={theirs}"
    with (
        linux_host(*ends) as linux,
        Daemon("net", "--backend", backend, "--socket-path", path, "--metrics-socket", metrics) as daemon,
    ):
        assert daemon.logged("started")["mtu"] == mtu
        daemon.logged("listening")
        with Guest(path) as guest:
            assert int.from_bytes(guest.frontend.get_config(10, 2), "little") == mtu
            resolve(guest)
            send_udp_segments(guest, linux)
            receive_udp(guest, linux)
            send_tcp_segments(guest, linux)
            receive_nothing_from_strangers(linux, stranger, ours, metrics)
        assert scraped(metrics, "kpoll_net_drops_total", direction="tx", reason="header") == 0
        assert daemon.stop() == 0


def resolve(guest: Guest) -> None:
    """Ask who has Linux's address, which Linux answers."""
    question = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1) + GUEST_MAC + GUEST_IP + bytes(6) + LINUX_IP
    guest.send(b"\xff" * 6 + GUEST_MAC + struct.pack(">H", ARP) + question)
    answer = guest.next_frame(lambda frame: frame[12:14] == struct.pack(">H", ARP) and frame[21] == 2)
    assert answer[:12] == GUEST_MAC + LINUX_MAC
    assert answer[22:42] == LINUX_MAC + LINUX_IP + GUEST_MAC + GUEST_IP


def send_udp_segments(guest: Guest, linux: int) -> None:
    """Send one large frame, which arrives as the datagrams that it is of."""
    with bound(linux, socket.SOCK_DGRAM, 7) as sock:
        guest.ip(socket.IPPROTO_UDP, struct.pack(">HHHH", 5000, 7, 8 + len(TEXT), 0) + TEXT, 6, MSS)
        for at in range(0, len(TEXT), MSS):
            assert sock.recv(65535) == TEXT[at : at + MSS]


def receive_udp(guest: Guest, linux: int) -> None:
    """Receive more datagrams than there are buffers, with right checksums."""
    with bound(linux, socket.SOCK_DGRAM, 7) as sock:
        for number in range(BUFFERS * 3):
            sock.sendto(bytes([number]) * (100 + number), ("10.0.0.1", 5000))
        for number in range(BUFFERS * 3):
            frame = guest.next_frame(is_ipv4(socket.IPPROTO_UDP))
            assert checksum(frame[14:34]) == 0xFFFF
            assert checksum(frame[26:34] + struct.pack(">BBH", 0, 17, len(frame) - 34) + frame[34:]) == 0xFFFF
            assert frame[42:] == bytes([number]) * (100 + number)


def send_tcp_segments(guest: Guest, linux: int) -> None:
    """Send a large frame on a connection, which arrives as the data that is in it."""
    with bound(linux, socket.SOCK_STREAM, 80) as listener:
        listener.listen()
        guest.tcp(SYN, 999, 0)
        answer = guest.next_frame(is_ipv4(socket.IPPROTO_TCP))
        assert answer[47] == SYN | ACK
        (theirs,) = struct.unpack(">I", answer[38:42])
        guest.tcp(ACK, 1000, theirs + 1)
        with listener.accept()[0] as stream:
            stream.settimeout(PATIENCE_S)
            guest.tcp(ACK | PSH, 1000, theirs + 1, TEXT, MSS)
            got = b""
            while len(got) < len(TEXT):
                got += stream.recv(len(TEXT))
            assert got == TEXT


def receive_nothing_from_strangers(linux: int, stranger: str, ours: str, metrics: Path) -> None:
    """Count and drop a third host's frames of the same segment."""
    with bound(linux, socket.SOCK_DGRAM, 0, stranger) as sock:
        sock.sendto(struct.pack(">II", 0x08000000, VNI << 8) + bytes(60), (ours, 4789))
    deadline = time.monotonic() + PATIENCE_S
    while not scraped(metrics, "kpoll_net_drops_total", direction="rx", reason="foreign"):
        assert time.monotonic() < deadline


@in_own_network
def test_two_guests_share_a_segment(tmp_path: Path) -> None:
    set_up("lo")
    ends = ("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")
    with ExitStack() as stack:
        guests = []
        for i, (ours, theirs) in enumerate(ends):
            backend = f"vxlan:vni={VNI},local={ours},remote={theirs}"
            daemon = stack.enter_context(Daemon("net", "--backend", backend, "--socket-path", tmp_path / str(i)))
            daemon.logged("listening")
            guests.append(stack.enter_context(Guest(tmp_path / str(i))))
        for one, other in (guests, guests[::-1]):
            for _ in range(3):
                one.send(FRAME)
                assert other.next_frame(lambda frame: frame == FRAME)
