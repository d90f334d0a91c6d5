"""`--backend xdp:IFACE` on a real interface, one end of a veth pair; the host's own stack is at the other end."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.harness import Daemon, refused, scraped, until
from tests.cli.test_net import BUFFERS, FRAME, Card
from tests.cli.test_net_unplug import LINK_UP, MEASURE_S, link_of, load, take
from tests.frames import Host, is_answer, udp, udp_data, who_has
from tests.netns import in_own_network

if TYPE_CHECKING:
    from pathlib import Path

OURS, THEIRS = "xdp0", "host0"
GUEST_MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("525400abcdef")
PORTS = 4000, 4001
FAMILIES = {
    "IPv4": (Host(GUEST_MAC, ipaddress.ip_address("192.0.2.1")), Host(HOST_MAC, ipaddress.ip_address("192.0.2.2"))),
    "IPv6": (Host(GUEST_MAC, ipaddress.ip_address("2001:db8::1")), Host(HOST_MAC, ipaddress.ip_address("2001:db8::2"))),
}
NEEDS_CSUM, GSO_UDP_L4 = 1, 5  # virtio 1.2 §5.1.6

_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17


def ip(*words: str) -> None:
    """Change this network."""
    subprocess.run(["ip", *words], check=True)


def make_cable() -> None:
    """Make both ends, and have the host's stack answer at its own.

    A veth pair passes frames on without the checksums that its sender was to complete: it must not offer to.
    """
    ip("link", "add", OURS, "type", "veth", "peer", "name", THEIRS, "address", HOST_MAC.hex(":"))
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sQ16x", THEIRS.encode(), ctypes.addressof(value)))
    for guest, host in FAMILIES.values():
        bits = guest.ip.max_prefixlen - 8
        ip("address", "add", f"{host.ip}/{bits}", "dev", THEIRS, *(["nodad"] if guest.ip.version == 6 else []))
    ip("link", "set", OURS, "up")
    ip("link", "set", THEIRS, "up")
    for guest, _ in FAMILIES.values():
        ip("neighbour", "add", str(guest.ip), "lladdr", guest.mac.hex(":"), "dev", THEIRS)


def serve(tmp_path: Path, *options: str) -> Daemon:
    """Start the daemon; its socket and metrics are at s and m."""
    sock, metrics = tmp_path / "s", tmp_path / "m"
    mac = GUEST_MAC.hex(":")
    command = ("net", "--backend", f"xdp:{OURS}", "--mac", mac, "--socket-path", sock, "--metrics-socket", metrics)
    return Daemon(*command, *options)


def udp_socket(host: Host) -> socket.socket:
    """Open the host's end of the conversation."""
    sock = socket.socket(socket.AF_INET if host.ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((str(host.ip), PORTS[1]))
    sock.settimeout(30)
    return sock


def arrived(card: Card, guest: Host, host: Host) -> bytes:
    """Wait for a datagram from the host; what else arrives is of no interest."""
    found: list[bytes] = []

    def look() -> bool:
        found.extend(data for frame in take(card) if (data := udp_data(frame, host, guest)) is not None)
        return bool(found)

    until(look)
    [data] = found
    return data


@pytest.mark.parametrize("family", FAMILIES)
@in_own_network
def test_the_host_s_stack_talks_to_the_guest(tmp_path: Path, family: str) -> None:
    guest, host = FAMILIES[family]
    make_cable()
    with serve(tmp_path) as daemon:
        daemon.logged("listening")
        with Card(tmp_path / "s") as card, udp_socket(host) as peer:
            card.send(who_has(guest, host.ip))
            until(lambda: any(is_answer(frame, host, guest) for frame in take(card)))
            for size in (1, 60, 1400):
                data = bytes(range(256)) * 6
                card.send(udp(guest, host, PORTS, data[:size]))
                assert peer.recvfrom(2048) == (data[:size], mine(peer, guest))
                peer.sendto(data[:size], (str(guest.ip), PORTS[0]))
                assert arrived(card, guest, host) == data[:size]
        assert daemon.stop() == 0


def mine(peer: socket.socket, guest: Host) -> tuple[object, ...]:
    """Return the guest's address as the peer sees it."""
    return (str(guest.ip), PORTS[0]) if peer.family == socket.AF_INET else (str(guest.ip), PORTS[0], 0, 0)


@pytest.mark.parametrize("family", FAMILIES)
@in_own_network
def test_what_the_guest_leaves_undone_is_done_before_it_goes_over_the_wire(tmp_path: Path, family: str) -> None:
    guest, host = FAMILIES[family]
    make_cable()
    at = 34 if guest.ip.version == 4 else 54
    with serve(tmp_path) as daemon:
        daemon.logged("listening")
        with Card(tmp_path / "s") as card, udp_socket(host) as peer:
            header = struct.pack("<BBHHHHH", NEEDS_CSUM, 0, 0, 0, at, 6, 0)
            card.send(udp(guest, host, PORTS, b"checksum", partial=True), header)
            assert peer.recv(2048) == b"checksum"
            data = bytes(range(250)) * 5
            header = struct.pack("<BBHHHHH", NEEDS_CSUM, GSO_UDP_L4, at + 8, 500, at, 6, 0)
            card.send(udp(guest, host, PORTS, data, partial=True), header)
            assert [peer.recv(2048) for _ in range(3)] == [data[:500], data[500:1000], data[1000:]]
        assert daemon.stop() == 0


@in_own_network
def test_a_queue_that_is_busy_polled_says_so_and_carries_frames(tmp_path: Path) -> None:
    guest, host = FAMILIES["IPv4"]
    make_cable()
    with serve(tmp_path, "--busy-poll-us", "50") as daemon:
        polled = daemon.logged("busy_poll")
        assert (polled["us"], polled["prefer"], polled["budget"], polled["missing"]) == (50, True, 32, [])
        daemon.logged("listening")
        with Card(tmp_path / "s") as card, udp_socket(host) as peer:
            card.send(udp(guest, host, PORTS, b"polled"))
            assert peer.recv(2048) == b"polled"
            peer.sendto(b"and back", (str(guest.ip), PORTS[0]))
            assert arrived(card, guest, host) == b"and back"
        assert daemon.stop() == 0


@in_own_network
def test_frames_wait_for_a_guest_that_has_no_buffers(tmp_path: Path) -> None:
    make_cable()
    with serve(tmp_path) as daemon, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
        daemon.logged("listening")
        peer.bind((THEIRS, 0))
        with Card(tmp_path / "s") as card:
            frames = [FRAME[:14] + bytes([i]) * 60 for i in range(3 * BUFFERS)]
            for frame in frames:
                peer.send(frame)
            got: list[bytes] = []

            def look() -> bool:
                got.extend(frame for frame in take(card) if frame[12:14] == FRAME[12:14])
                return len(got) == len(frames)

            until(look)
            assert got == frames
        assert scraped(tmp_path / "m", "kpoll_net_drops_total", direction="rx", reason="no_buffer") == 0
        assert daemon.stop() == 0


@in_own_network
def test_a_frame_that_the_mtu_is_too_small_for_is_refused_and_counted(tmp_path: Path) -> None:
    make_cable()
    with serve(tmp_path) as daemon:
        daemon.logged("listening")
        with Card(tmp_path / "s") as card:
            card.send(FRAME.ljust(14 + 4 + 1500 + 1, b"."))
            card.send(FRAME.ljust(14 + 4 + 1500, b"."))
        assert scraped(tmp_path / "m", "kpoll_net_drops_total", direction="tx", reason="refused") == 1
        assert scraped(tmp_path / "m", "kpoll_net_packets_total", direction="tx") == 1
        assert daemon.stop() == 0


@in_own_network
def test_a_daemon_that_was_killed_leaves_the_interface_as_it_was(tmp_path: Path) -> None:
    make_cable()
    with serve(tmp_path) as daemon:
        daemon.logged("listening")
        line = refused("net", "--backend", f"xdp:{OURS}", "--socket-path", tmp_path / "s2", code=1)
        assert f"{OURS} has another XDP program" in line
    (tmp_path / "s").unlink()
    (tmp_path / "m").unlink()
    with serve(tmp_path) as daemon:
        daemon.logged("listening")
        assert daemon.stop() == 0


@in_own_network
def test_an_interface_that_is_deleted_under_load_is_taken_again_when_it_is_back(tmp_path: Path) -> None:
    guest, host = FAMILIES["IPv4"]
    make_cable()
    with serve(tmp_path) as daemon:
        layers = daemon.logged("sandbox")["active"]
        daemon.logged("listening")
        assert daemon.logged("link")["state"] == "up"
        with Card(tmp_path / "s") as card:
            card.frontend.open_backend_channel()
            with (
                udp_socket(host) as peer,
                load(lambda: card.send(udp(guest, host, PORTS, b"load")), lambda: take(card)),
            ):
                assert peer.recv(2048) == b"load"
                ip("link", "delete", OURS)
                until(lambda: daemon.logged("link")["state"] == "gone")
                card.frontend.next_backend_request()  # the configuration has changed
                assert link_of(card) == 0

            before = scraped(tmp_path / "m", "kpoll_worker_cpu_seconds_total")
            time.sleep(MEASURE_S)  # the measurement itself, not a wait for something to happen
            assert scraped(tmp_path / "m", "kpoll_worker_cpu_seconds_total") - before < MEASURE_S / 20

            make_cable()
            until(lambda: daemon.logged("link")["state"] == "up")
            card.frontend.next_backend_request()
            until(lambda: link_of(card) == LINK_UP)
            with udp_socket(host) as peer:
                card.send(udp(guest, host, PORTS, b"again"))
                assert peer.recvfrom(2048) == (b"again", mine(peer, guest))
                peer.sendto(b"and back", (str(guest.ip), PORTS[0]))
                assert arrived(card, guest, host) == b"and back"
        assert [line["event"] for line in daemon.log if line["level"] == "error"] == ["link"]
        assert "seccomp" in layers
        assert "capabilities" in layers
        assert daemon.stop() == 0


@in_own_network
def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    make_cable()
    for backend, options, words in (
        ("xdp:nobody", (), "there is no interface nobody"),
        (f"xdp:{OURS},queue=77", (), "has no queue 77"),
        (f"xdp:{OURS}", ("--num-queue-pairs", "9"), "queue"),
        (f"xdp:{OURS}", ("--mtu", "9000"), f"{OURS} takes 1500"),
    ):
        line = refused("net", "--backend", backend, *options, "--socket-path", tmp_path / "s", code=1)
        assert words in line
    ip("link", "set", OURS, "mtu", "9000")
    assert "MTU of 9000" in refused("net", "--backend", f"xdp:{OURS}", "--socket-path", tmp_path / "s", code=1)
