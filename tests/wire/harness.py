"""A device that remembers what it was told, and a back-end thread that serves it to a front-end."""

from __future__ import annotations

import gc
import socket
import threading
from contextlib import contextmanager
from enum import IntFlag
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio
from structlog.testing import LogCapture

from kpoll.vhost._core import ffi
from kpoll.vhost.descriptors import wait_discarded
from kpoll.vhost.device import Device, DeviceError, VringConfig
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import Frontend, Memory, Vring
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import VringAddr, VringFd, VringState
from kpoll.vhost.serve import serve_connection
from kpoll.vhost.virtqueue import Virtqueue

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 10
ALL = ~0
CONFIG = bytes(range(1, 61))

# A split ring of 8 entries within a page of shared memory.
SIZE = 8
DESC, AVAIL, USED = 0, 256, 512


class RecordingFeature(IntFlag):
    """Feature bits of a device's own."""

    RECORDING_F_TAPE = 1 << 6


class RecordingDevice(Device):
    """Binds real virtqueues, serves nothing, and writes down every call.

    Attributes:
        calls: (method, arguments …) in order.
        running: What runs right now: its configuration and its virtqueue.
        told: Which vrings run, as it was told each time.
        stopping: Set when `stop_vring` begins, if `hold_stops`.
        release: Lets a held `stop_vring` end.

    """

    num_queues = 2
    queue_size_max = 1024

    def __init__(self) -> None:
        """Begin with nothing running."""
        self.calls: list[tuple[Any, ...]] = []
        self.running: dict[int, tuple[VringConfig, Virtqueue]] = {}
        self.told: list[frozenset[int]] = [frozenset()]
        self.hold_stops = False
        self.extra_protocol_features = 0
        self.stopping = threading.Event()
        self.release = threading.Event()

    def features(self) -> int:
        """Offer what rings need, and a bit of a device's own."""
        return VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VIRTIO_F_EVENT_IDX | 1 << 6

    def feature_names(self) -> type[IntFlag]:
        """Name the bit of its own."""
        return RecordingFeature

    def protocol_features(self) -> int:
        """Offer what only some devices do."""
        return self.extra_protocol_features

    def get_config(self, offset: int, size: int) -> bytes:
        """Give a space of 60 bytes, and an error beyond 1024."""
        if offset > 1024:
            raise DeviceError("there is nothing")
        return CONFIG[offset : offset + size]

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Take anything at offset 32, refuse the rest."""
        if offset != 32:
            raise DeviceError("read-only")
        self.calls.append(("set_config", offset, data, flags))

    def set_features(self, features: int) -> None:
        """Write it down; no vring runs meanwhile."""
        assert not self.running
        self.calls.append(("set_features", features))

    def set_mtu(self, mtu: int) -> None:
        """Take what a jumbo frame holds."""
        if mtu > 9000:
            raise DeviceError("too much")
        self.calls.append(("set_mtu", mtu))

    def send_rarp(self, mac: bytes) -> None:
        """Write it down."""
        self.calls.append(("send_rarp", mac))

    async def start_vring(self, vring: VringConfig) -> None:
        """Bind a virtqueue, which checks the addresses."""
        assert vring.index not in self.running, "started twice"
        self.running[vring.index] = (vring, Virtqueue(vring))
        self.calls.append(("start", vring.index, vring.base))

    async def stop_vring(self, index: int) -> int:
        """Unbind it, as late as the test wants; memory must still be there."""
        vring, queue = self.running[index]
        if self.hold_stops:
            self.stopping.set()
            await trio.to_thread.run_sync(partial(self.release.wait, TIMEOUT_S))
        assert vring.memory.handle != ffi.NULL, "memory went away under a running vring"
        queue.close()
        del self.running[index]
        self.calls.append(("stop", index))
        return queue.base

    def set_running(self, running: frozenset[int]) -> None:
        """Write it down; it is the truth, and news."""
        assert running == set(self.running) != self.told[-1]
        self.told.append(running)

    async def reset(self) -> None:
        """Write it down; no vring runs any more."""
        assert not self.running
        self.calls.append(("reset",))

    def count(self, method: str, *arguments: Any) -> int:
        """How often a method was called with (at least) these first arguments."""
        wanted = (method, *arguments)
        return sum(call[: len(wanted)] == wanted for call in self.calls)


class Backend:
    """A back-end thread with one device; front-ends connect one after the other."""

    def __init__(self, device: Device) -> None:
        """Serve nobody yet."""
        self.device = device
        self.log = LogCapture()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Give the log lines of one kind."""
        return [dict(entry) for entry in self.log.entries if entry["event"] == name]

    @contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """Give a raw connection; in the end the session must have ended in order, and have given everything back."""
        gc.collect()  # what earlier tests left in cycles must not go while we count
        held = resources()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(TIMEOUT_S)
        failures: list[BaseException] = []
        log = structlog.wrap_logger(
            structlog.PrintLogger(), [self.log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )

        def serve() -> None:
            try:
                trio.run(serve_connection, theirs, self.device, log, 1)
            except BaseException as e:  # noqa: BLE001 - whatever it is, the test has to see it
                failures.append(e)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ours
        finally:
            ours.close()
            thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the session did not end"
        if failures:
            raise failures[0]
        assert wait_discarded(TIMEOUT_S)
        assert resources() == held, "descriptors or mappings leaked"

    @contextmanager
    def frontend(self) -> Iterator[Frontend]:
        """Connect a front-end that has negotiated nothing yet."""
        with self.socket() as sock, Frontend(sock, timeout=TIMEOUT_S) as frontend:
            yield frontend
            for memory in frontend.memory:
                memory.mmap.close()  # which has a descriptor of its own

    @contextmanager
    def negotiated(self, protocol_features: int = ALL) -> Iterator[Frontend]:
        """Connect a front-end that has negotiated all there is."""
        with self.frontend() as frontend:
            wanted = protocol_features & frontend.protocol_features & ~ProtocolFeature.STATUS
            frontend.negotiate(frontend.features, wanted)
            yield frontend


def resources() -> tuple[int, int]:
    """Count this process's open descriptors and its mappings of shared guest memory."""
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return descriptors, Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:guest")


def add_ring_memory(frontend: Frontend) -> Memory:
    """Share a page for a ring."""
    return frontend.add_memory(4096)


def set_up(frontend: Frontend, memory: Memory, index: int = 0, *, enable: bool = True, base: int = 0) -> Vring:
    """Set a split ring of 8 entries up at the start of `memory`."""
    vring = frontend.setup_vring(index, SIZE, memory.uva + DESC, memory.uva + AVAIL, memory.uva + USED, base=base)
    if enable:
        frontend.enable(index)
    return vring


def set_addr(frontend: Frontend, memory: Memory, index: int = 0, at: int = 0) -> None:
    """SET_VRING_ADDR to a ring `at` bytes into `memory`."""
    start = memory.uva + at
    frontend.request(Request.SET_VRING_ADDR, VringAddr(index, 0, start + DESC, start + USED, start + AVAIL, 0))


def set_kick(frontend: Frontend, fd: int | None, index: int = 0) -> None:
    """SET_VRING_KICK; None sets the invalid FD flag."""
    frontend.request(Request.SET_VRING_KICK, VringFd(index, has_fd=fd is not None), [] if fd is None else [fd])


def set_call(frontend: Frontend, fd: int | None, index: int = 0) -> None:
    """SET_VRING_CALL; None sets the invalid FD flag."""
    frontend.request(Request.SET_VRING_CALL, VringFd(index, has_fd=fd is not None), [] if fd is None else [fd])


def set_num(frontend: Frontend, num: int, index: int = 0) -> None:
    """SET_VRING_NUM."""
    frontend.request(Request.SET_VRING_NUM, VringState(index, num))
