"""A tap is attached to, made or taken over, carries frames with virtio's header, and what can't be is told in one line.

Each test that has a real tap runs in a network of its own, which is gone at its end.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from kpoll.backend.config import SocketConfig
from kpoll.backend.errors import KpollError
from kpoll.backend.net_config import NO_OFFLOADS, OFFLOADS, NetFeature
from kpoll.backend.net_device import open_device
from kpoll.backend.net_options import NetConfig, TapBackend, TapFdBackend, mac_text
from kpoll.backend.net_ports import open_ports
from kpoll.backend.net_tap import TUN_PATH, Tap, open_tap, tun_offload
from kpoll.backend.poll import PollConfig
from tests.netns import give_up_capabilities, in_own_network, set_up
from tests.taps import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_QEMU, IFF_TAP, IFF_TUN, IFF_VNET_HDR, attach, delete, make
from tests.unit.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kpoll.backend.net_device import NetDevice

MAC = bytes.fromhex("525400123456")
ANYBODY = 65534
PATIENCE_S = 30.0

TUNSETOFFLOAD, TUNGETIFF, IFF_DETACH_QUEUE = 0x400454D0, 0x800454D2, 0x0400
SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_GTSO = 0x8946, 0x16, 0x1E

ETH_P_TEST = 0x88B5  # IEEE 802 Local Experimental
HEADER = bytes(12)

ioctl = fcntl.ioctl


@contextlib.contextmanager
def opened(name: str = "vm1", *, pairs: int = 1) -> Iterator[Tap]:
    with open_tap(TapBackend(name), pairs=pairs, mac=MAC) as tap:
        yield tap


@contextlib.contextmanager
def device_on(name: str, *, pairs: int = 1, log: LogCapture | None = None) -> Iterator[NetDevice]:
    """Make a card on a tap; its workers don't run."""
    config = NetConfig(
        socket=SocketConfig(path="s"),
        poll=PollConfig(strategy="off", why=""),
        backend=TapBackend(name),
        mac=MAC,
        num_queue_pairs=pairs,
    )
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), [log or LogCapture()], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    with open_ports(config) as ports, open_device(config, ports, logger) as device:
        yield device


def refused(backend: TapBackend | TapFdBackend, *, pairs: int = 1, mac: bytes = MAC) -> str:
    return refusal(open_tap(backend, pairs=pairs, mac=mac), backend)


def exists(name: str) -> bool:
    return name in [name for _, name in socket.if_nameindex()]


def ethtool(name: str, command: int) -> int:
    value = array.array("I", [command, 0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), value.buffer_info()[0]))
    return value[1]


def frame(number: int) -> bytes:
    return MAC + b"\2\0\0\0\0\1" + struct.pack("!HI", ETH_P_TEST, number) + bytes(42)


def detached(fd: int) -> bool:
    """Whether the kernel deals no frames to this queue."""
    (flags,) = struct.unpack_from("H", fcntl.ioctl(fd, TUNGETIFF, bytes(40)), 16)
    return bool(flags & IFF_DETACH_QUEUE)


@contextlib.contextmanager
def host_end(name: str) -> Iterator[socket.socket]:
    set_up(name)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_TEST)) as host:
        host.bind((name, ETH_P_TEST))
        host.settimeout(PATIENCE_S)
        yield host


def next_frame(fd: int) -> bytes:
    """Read until one of ours comes: the host's IPv6 speaks up by itself."""
    while select.select([fd], [], [], PATIENCE_S)[0]:
        got = os.read(fd, 65535)
        if got[24:26] == struct.pack("!H", ETH_P_TEST):
            return got
    raise TimeoutError


@in_own_network
def test_a_tap_that_does_not_exist_is_made_and_gone_at_the_end() -> None:
    with opened() as tap:
        assert exists("vm1")
        assert tap.attached
        assert tap.index == socket.if_nametoindex("vm1")
        assert [os.get_blocking(fd) for fd in tap.fds] == [False]
        assert [os.get_inheritable(fd) for fd in tap.fds] == [False]
    assert not exists("vm1")


@in_own_network
def test_a_tap_that_exists_is_attached_to_and_stays() -> None:
    make("vm1")
    before = socket.if_nametoindex("vm1")
    with opened() as tap:
        assert tap.index == before
    assert exists("vm1")


@in_own_network
def test_frames_carry_the_header_of_virtio_1_both_ways() -> None:
    with opened() as tap, host_end("vm1") as host:
        host.send(frame(1))
        assert next_frame(tap.fds[0]) == HEADER + frame(1)
        os.write(tap.fds[0], HEADER + frame(2))
        assert host.recv(65535) == frame(2)


@in_own_network
def test_each_queue_pair_has_a_descriptor_that_carries_frames() -> None:
    with opened(pairs=3) as tap, host_end("vm1") as host:
        assert len(set(tap.fds)) == 3
        for number, fd in enumerate(tap.fds):
            os.write(fd, HEADER + frame(number))
            assert host.recv(65535) == frame(number)


@in_own_network
def test_one_queue_of_a_tap_that_has_several_will_do() -> None:
    make("vm1", IFF_QEMU | IFF_MULTI_QUEUE)
    with opened() as tap, host_end("vm1") as host:
        os.write(tap.fds[0], HEADER + frame(1))
        assert host.recv(65535) == frame(1)


@in_own_network
def test_several_queues_of_a_tap_that_has_one_are_refused() -> None:
    make("vm1")
    line = refused(TapBackend("vm1"), pairs=2)
    assert "vm1 exists and is no tap with several queues" in line
    assert "`ip tuntap del dev vm1 mode tap && ip tuntap add dev vm1 mode tap user root multi_queue`" in line


@in_own_network
def test_the_kernel_leaves_to_the_guest_what_it_negotiated_and_nothing_before() -> None:
    with opened() as tap:
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (0, 0)
        tap.set_features(NetFeature.VIRTIO_NET_F_GUEST_CSUM)
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (1, 0)
        tap.set_features(tap.offloads)
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (1, 1)
        tap.set_features(NO_OFFLOADS)
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (["GUEST_CSUM", "CSUM"], 0x01),
        (["GUEST_TSO4", "HOST_TSO4"], 0x03),
        (["GUEST_TSO6", "HOST_TSO6"], 0x05),
        (["GUEST_ECN", "HOST_ECN"], 0x0B),
        (["GUEST_UFO", "HOST_UFO"], 0x11),
        (["GUEST_USO4", "GUEST_USO6", "HOST_USO"], 0x61),
    ],
)
@in_own_network
def test_what_the_tap_offers_is_what_this_kernel_takes(kind: list[str], bits: int) -> None:
    with opened() as tap:
        try:
            fcntl.ioctl(tap.fds[0], TUNSETOFFLOAD, bits)
            taken = True
        except OSError:
            taken = False
        assert [bool(tap.offloads & NetFeature[f"VIRTIO_NET_F_{name}"]) for name in kind] == [taken] * len(kind)


CSUM, GUEST_CSUM = NetFeature.VIRTIO_NET_F_CSUM, NetFeature.VIRTIO_NET_F_GUEST_CSUM
TSO4, TSO6 = NetFeature.VIRTIO_NET_F_GUEST_TSO4, NetFeature.VIRTIO_NET_F_GUEST_TSO6
ECN, UFO = NetFeature.VIRTIO_NET_F_GUEST_ECN, NetFeature.VIRTIO_NET_F_GUEST_UFO
USO4, USO6 = NetFeature.VIRTIO_NET_F_GUEST_USO4, NetFeature.VIRTIO_NET_F_GUEST_USO6


@pytest.mark.parametrize(
    ("negotiated", "bits"),
    [
        (0, 0x00),
        (CSUM | NetFeature.VIRTIO_NET_F_HOST_TSO4 | NetFeature.VIRTIO_NET_F_MRG_RXBUF, 0x00),
        (GUEST_CSUM, 0x01),
        (TSO4 | TSO6 | UFO | USO4 | USO6, 0x00),
        (GUEST_CSUM | TSO4, 0x03),
        (GUEST_CSUM | TSO6 | ECN, 0x0D),
        (GUEST_CSUM | ECN, 0x01),
        (GUEST_CSUM | UFO, 0x11),
        (GUEST_CSUM | USO4, 0x01),
        (GUEST_CSUM | USO4 | USO6, 0x61),
        (OFFLOADS, 0x7F),
    ],
)
def test_the_kernel_is_told_of_no_offload_without_what_it_requires(negotiated: int, bits: int) -> None:
    assert tun_offload(negotiated) == bits


@in_own_network
def test_frames_are_dealt_to_the_pairs_that_are_wanted_and_the_first() -> None:
    with opened(pairs=4) as tap, host_end("vm1") as host:
        for pairs in ([2], [], [0, 1, 2, 3], [1, 3]):
            tap.deal_to(pairs)
            assert [fd for fd in tap.fds if detached(fd)] == [
                fd for i, fd in enumerate(tap.fds) if i not in {0, *pairs}
            ]
            assert tap.attached
        os.write(tap.fds[2], HEADER + frame(2))
        assert host.recv(65535) == frame(2), "a queue that is left out still sends"


@in_own_network
def test_a_guest_that_changes_its_mind_costs_a_system_call_for_a_pair_that_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("kpoll.backend.net_tap._set_queue", lambda _fd, *, attach: asked.append(attach))
    with device_on("vm1", pairs=4, log=LogCapture()) as device:
        for running, calls in (
            ({0, 1}, [False] * 3),
            ({0}, []),  # a tx vring is nothing to a tap
            ({0, 1, 4}, [True]),
            ({0, 1, 4, 5}, []),
            ({0, 1, 2, 4, 5}, [True]),
            ({0, 1, 2}, [False]),
        ):
            device.set_running(frozenset(running))
            assert asked == calls, running
            asked.clear()


@in_own_network
def test_a_kernel_that_refuses_to_deal_otherwise_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_fd: int, **_attach: bool) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("kpoll.backend.net_tap._set_queue", refuse)
    log = LogCapture()
    with device_on("vm1", pairs=2, log=log) as device:
        device.set_running(frozenset({0, 1}))
        device.set_running(frozenset({0, 1, 2, 3}))
        device.set_running(frozenset())
    [line] = log.entries
    assert (line["event"], line["interface"]) == ("queues_not_set", "vm1")
    assert line["error"] == "Operation not permitted"


@in_own_network
def test_a_tap_that_was_deleted_deals_to_nobody_and_then_to_all() -> None:
    with opened(pairs=2) as tap:
        tap.deal_to([])
        delete("vm1")
        tap.deal_to([1])
        tap.attach_again()
        assert not any(detached(fd) for fd in tap.fds)


@in_own_network
def test_a_tap_that_was_deleted_is_attached_to_again_when_it_is_back() -> None:
    make("vm1", IFF_QEMU | IFF_MULTI_QUEUE)
    with opened(pairs=2) as tap:
        tap.set_features(tap.offloads)
        delete("vm1")
        assert not exists("vm1")
        assert not tap.attached
        make("vm1", IFF_QEMU | IFF_MULTI_QUEUE)
        tap.attach_again()
        tap.attach_again()  # what is attached stays so
        assert tap.attached
        assert ethtool("vm1", ETHTOOL_GTSO) == 1
        with host_end("vm1") as host:
            for fd in tap.fds:
                os.write(fd, HEADER + frame(fd))
                assert host.recv(65535) == frame(fd)


@in_own_network
def test_what_is_negotiated_while_the_tap_is_gone_is_what_it_does_when_it_is_back() -> None:
    with device_on("vm1") as device:
        tap = device.ports.tap
        assert tap is not None
        device.set_features(NetFeature.VIRTIO_NET_F_GUEST_CSUM)
        delete("vm1")
        device.set_features(NetFeature.VIRTIO_NET_F_GUEST_CSUM | NetFeature.VIRTIO_NET_F_GUEST_TSO4)
        tap.attach_again()
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (1, 1)
        delete("vm1")
        trio.run(device.reset)  # its guest has left
        tap.attach_again()
        assert (ethtool("vm1", ETHTOOL_GTXCSUM), ethtool("vm1", ETHTOOL_GTSO)) == (0, 0)


@in_own_network
def test_a_tap_that_goes_just_before_it_is_told_what_was_negotiated_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told_late(fd: int, request: int, argument: bytes | int) -> object:
        if request == TUNSETOFFLOAD and exists("vm1"):
            delete("vm1")
        return ioctl(fd, request, argument)

    with device_on("vm1") as device:
        monkeypatch.setattr("kpoll.backend.net_tap.fcntl.ioctl", told_late)
        trio.run(device.reset)
    assert not exists("vm1")


@in_own_network
def test_a_kernel_that_refuses_what_was_negotiated_fails_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, request: int, argument: bytes | int) -> object:
        if request == TUNSETOFFLOAD:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return ioctl(fd, request, argument)

    with opened() as tap:
        monkeypatch.setattr("kpoll.backend.net_tap.fcntl.ioctl", refuse)
        with pytest.raises(OSError, match="Operation not permitted"):
            tap.set_features(tap.offloads)


@in_own_network
def test_a_tap_that_was_deleted_and_came_back_as_something_else_is_refused() -> None:
    make("vm1")
    with opened() as tap:
        delete("vm1")
        make("vm1", IFF_TUN)
        with pytest.raises(KpollError, match="vm1 exists and is no tap"):
            tap.attach_again()


@in_own_network
def test_a_tap_that_came_back_with_fewer_queues_is_left_to_others() -> None:
    make("vm1", IFF_QEMU | IFF_MULTI_QUEUE)
    with opened(pairs=2) as tap:
        delete("vm1")
        make("vm1")
        for _ in range(2):
            with pytest.raises(KpollError, match="vm1 exists and is no tap with several queues"):
                tap.attach_again()
        os.close(attach("vm1"))


@in_own_network
def test_a_busy_tap() -> None:
    with contextlib.closing(os.fdopen(attach("vm1"), "r+b", 0)):
        assert "vm1 is busy: stop the other process" in refused(TapBackend("vm1"))


@in_own_network
def test_a_tap_that_was_made_for_one_queue_pair_is_nobody_elses() -> None:
    with opened():
        assert "vm1 is busy" in refused(TapBackend("vm1"))


@pytest.mark.parametrize("pairs", [1, 2])
@in_own_network
def test_what_is_no_tap(pairs: int) -> None:
    assert "lo exists and is no tap" in refused(TapBackend("lo"), pairs=pairs)
    make("tun0", IFF_TUN)
    assert "tun0 exists and is no tap" in refused(TapBackend("tun0"), pairs=pairs)


@in_own_network
def test_making_a_tap_takes_a_capability_or_somebody_who_has_it() -> None:
    give_up_capabilities()
    line = refused(TapBackend("vm1"))
    assert "`ip tuntap add dev vm1 mode tap user root`" in line
    assert "CAP_NET_ADMIN" in line
    assert "mode tap user root multi_queue`" in refused(TapBackend("vm1"), pairs=2)


@in_own_network
def test_a_tap_without_as_many_queues_left() -> None:
    with opened(pairs=128), opened(pairs=127):
        assert "vm1 has no 2 queues left" in refused(TapBackend("vm1"), pairs=2)


def test_no_driver_for_taps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kpoll.backend.net_tap.TUN_PATH", str(tmp_path / "tun"))
    assert f"there is no {tmp_path}/tun: `modprobe tun`" in refused(TapBackend("vm1"))


@in_own_network
def test_a_driver_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tun").touch(0)
    monkeypatch.setattr("kpoll.backend.net_tap.TUN_PATH", str(tmp_path / "tun"))
    give_up_capabilities()
    assert f"this user may not open {tmp_path}/tun" in refused(TapBackend("vm1"))


@in_own_network
def test_a_tap_of_this_user_takes_no_capability_and_one_of_another_user_does() -> None:
    make("mine", owner=os.geteuid())
    make("other", owner=ANYBODY)
    give_up_capabilities()
    with opened("mine") as tap:
        tap.set_features(tap.offloads)
    assert "CAP_NET_ADMIN" in refused(TapBackend("other"))


@in_own_network
def test_the_guest_does_not_get_the_address_of_the_hosts_end() -> None:
    make("vm1")
    with opened() as tap:
        mac = tap.mac
    assert f"--mac {mac_text(mac)}: is the address of vm1" in refused(TapBackend("vm1"), mac=mac)


@in_own_network
def test_a_passed_tap_carries_frames_and_takes_no_capability() -> None:
    fd = attach("vm1")
    os.set_inheritable(fd, True)
    set_up("vm1")
    give_up_capabilities()
    with open_tap(TapFdBackend(fd), pairs=1, mac=MAC) as tap:
        assert (tap.name, tap.fds, tap.index) == ("vm1", (fd,), socket.if_nametoindex("vm1"))
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        tap.set_features(tap.offloads)
        assert ethtool("vm1", ETHTOOL_GTSO) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@in_own_network
def test_a_passed_tap_of_another_network_has_no_number_here() -> None:
    fd = attach("vm1")

    @in_own_network
    def elsewhere() -> None:
        make("vm1")  # of the same name, and another one
        with open_tap(TapFdBackend(fd), pairs=1, mac=MAC) as tap:
            assert (tap.name, tap.index) == ("vm1", None)

    elsewhere()


def passed_and_refused(fd: int) -> str:
    line = refused(TapFdBackend(fd))
    os.fstat(fd)  # what isn't taken over stays open
    os.close(fd)
    return line


@in_own_network
def test_a_passed_descriptor_that_is_no_tap() -> None:
    assert "is no open descriptor" in refused(TapFdBackend(999))
    assert "is no tap" in passed_and_refused(os.open(os.devnull, os.O_RDWR))
    assert "is no tap" in passed_and_refused(socket.socket().detach())
    assert "has no interface" in passed_and_refused(os.open(TUN_PATH, os.O_RDWR))
    assert "vm1 is a tun" in passed_and_refused(attach("vm1", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))


@pytest.mark.parametrize("flags", [IFF_TAP, IFF_TAP | IFF_NO_PI])
@in_own_network
def test_a_passed_tap_whose_frames_have_no_header(flags: int) -> None:
    assert "vm1 has no vnet_hdr; open it with IFF_NO_PI and IFF_VNET_HDR" in passed_and_refused(attach("vm1", flags))
