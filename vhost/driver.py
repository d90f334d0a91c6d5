"""The driver side of a virtqueue, over a front-end's shared memory: what a guest's kernel is to a device.

For the benchmark, whose C takes the rings over (`Driver.handle`), and for tests that drive a device from Python: add
requests, publish them, poll or wait for what comes back. Tests that want to be hostile write the rings themselves:
`Driver.layout` tells where they lie in `Driver.memory`.

    with Frontend(path) as frontend:
        frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1)
        driver = Driver(frontend, 0)
        driver.add([Buffer(header, 16)], [Buffer(data, 512), Buffer(status, 1)], token=7)
        driver.publish()
        [used] = driver.wait()
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import ffi, lib
from kpoll.vhost.features import VirtioFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kpoll.vhost.frontend import Frontend, Memory, Vring

SIZE_DEFAULT = 128
CHAIN_DEFAULT = 16
POLL_BATCH = 64
TIMEOUT_S = 10.0


class DriverError(Exception):
    """The device did what no device may: it used what it was not given, or nothing at all in time."""


@dataclass(frozen=True)
class Buffer:
    """A piece of a request: guest physical address and bytes. Goes to the ring as it is, sensible or not."""

    addr: int
    len: int


@dataclass(frozen=True)
class Used:
    """A request that came back: the token it was added with, and the bytes that the device says it wrote."""

    token: int
    len: int


@dataclass(frozen=True)
class Layout:
    """Where a queue's parts lie, as offsets into its memory.

    Attributes:
        desc: Split: descriptor table; packed: descriptor ring.
        avail: Split: available ring; packed: driver event suppression.
        used: Split: used ring; packed: device event suppression.
        tables: Indirect tables.
        end: The first byte after all of them.

    """

    desc: int
    avail: int
    used: int
    tables: int
    end: int


def lay_out(size: int, features: int, chain_max: int = CHAIN_DEFAULT, offset: int = 0) -> Layout:
    """Plan the memory of a queue.

    Args:
        size: Entries, 1 .. 32768; a power of two unless packed.
        features: Negotiated virtio feature bits.
        chain_max: Most buffers of one request.
        offset: Where it starts, a multiple of 64.

    Raises:
        ValueError: Such a queue can't be.

    """
    at = ffi.new("struct driver_layout *")
    if lib.driver_lay_out(at, size, features, chain_max):
        msg = f"no virtqueue can have {size} entries and chains of up to {chain_max}"
        raise ValueError(msg)
    return Layout(at.desc + offset, at.avail + offset, at.used + offset, at.tables + offset, at.bytes + offset)


class Driver:
    """A virtqueue's driver, set up and enabled at the back-end.

    One thread at a time. It lives as long as the front-end's memory; `close` (or the garbage collector) frees only
    its own bookkeeping.

    Attributes:
        vring: The doorbells.
        memory: Where the rings lie.
        layout: And where in it.
        handle: cffi's `struct driver *`.

    """

    def __init__(
        self,
        frontend: Frontend,
        index: int,
        *,
        size: int = SIZE_DEFAULT,
        chain_max: int = CHAIN_DEFAULT,
        indirect: bool = True,
        memory: Memory | None = None,
        offset: int = 0,
    ) -> None:
        """Lay an empty queue out in shared memory and hand it to the back-end.

        Args:
            frontend: Connected and negotiated.
            index: The queue's number.
            size: Entries, 1 .. 32768; a power of two unless packed.
            chain_max: Most buffers of one request.
            indirect: Use indirect tables if that was negotiated.
            memory: Where to put the rings; by default memory of their own.
            offset: Where in it, in bytes, a multiple of 64.

        Raises:
            ValueError: Such a queue can't be, or doesn't fit into the memory.
            FrontendError: The back-end refuses it.

        """
        features = frontend.acked_features
        self.layout = lay_out(size, features, chain_max, offset)
        self.memory = frontend.add_memory(self.layout.end) if memory is None else memory
        if self.layout.end > self.memory.size:
            msg = f"a virtqueue that ends at {self.layout.end} doesn't fit into {self.memory.size} bytes"
            raise ValueError(msg)
        self._bytes = ffi.from_buffer("uint8_t[]", self.memory.mmap)  # keeps the mapping alive as long as we are
        config = ffi.new("struct driver_config *")
        config.size = size
        config.chain_max = chain_max
        config.features = features
        config.no_indirect = not indirect
        config.area = self._bytes + offset
        config.area_gpa = self.memory.gpa + offset
        # The rings must be empty before the back-end sees them, and the kick fd is known only after.
        config.kick_fd = -1
        packed = bool(features & VirtioFeature.VIRTIO_F_RING_PACKED)
        self.handle = self._create(config)
        uva = self.memory.uva
        self.vring: Vring = frontend.setup_vring(
            index,
            size,
            uva + self.layout.desc,
            uva + self.layout.avail,
            uva + self.layout.used,
            0x80008000 if packed else 0,
        )
        lib.driver_set_kick_fd(self.handle, self.vring.kick_fd)
        frontend.enable(index)
        self._used = ffi.new("struct driver_used[]", POLL_BATCH)

    @staticmethod
    def _create(config: Any) -> Any:
        out = ffi.new("struct driver **")
        rc = lib.driver_create(out, config)
        if rc:
            raise OSError(-rc, f"virtqueue driver: {os.strerror(-rc)}")
        return ffi.gc(out[0], lib.driver_destroy)

    def close(self) -> None:
        """Free the bookkeeping. The device may still write into the memory."""
        ffi.release(self.handle)

    @property
    def room(self) -> int:
        """Free descriptors of the ring."""
        return int(lib.driver_room(self.handle))

    @property
    def in_flight(self) -> int:
        """Requests added and not taken back."""
        return int(lib.driver_in_flight(self.handle))

    @property
    def kicks(self) -> int:
        """How often the device has been notified."""
        return int(lib.driver_kicks(self.handle))

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int) -> None:
        """Write a request's descriptors. The device sees it after `publish`.

        Args:
            out: Device-readable buffers.
            in_: Device-writable buffers.
            token: A number, 0 .. 2**64 - 1, that comes back with the request.

        Raises:
            OSError: ENOSPC when the ring has no room now, EINVAL for no buffers or too many.

        """
        bufs = ffi.new("struct driver_buf[]", [(buffer.addr, buffer.len) for buffer in (*out, *in_)])
        rc = lib.driver_add(self.handle, bufs, len(out), len(in_), token)
        if rc:
            raise OSError(-rc, f"request of {len(out)} + {len(in_)} buffers: {os.strerror(-rc)}")

    def publish(self) -> bool:
        """Show the device what was added. Tells whether it had to be kicked."""
        rc = lib.driver_publish(self.handle)
        if rc < 0:
            raise OSError(-rc, f"kick: {os.strerror(-rc)}")
        return bool(rc)

    def poll(self) -> list[Used]:
        """Take back what the device has used, without waiting.

        Raises:
            DriverError: The device used what it was not given.

        """
        taken: list[Used] = []
        while n := lib.driver_poll_used(self.handle, self._used, POLL_BATCH):
            if n < 0:
                raise DriverError("the device used what it was not given")
            taken.extend(Used(self._used[i].token, self._used[i].len) for i in range(n))
        return taken

    def wait(self, count: int = 1, timeout: float = TIMEOUT_S) -> list[Used]:
        """Take back at least `count` requests, sleeping until the device calls.

        Raises:
            DriverError: They did not come within `timeout` seconds, or see `poll`.

        """
        taken = self.poll()
        deadline = time.monotonic() + timeout
        while len(taken) < count:
            if not self.interrupts_on() and not self.vring.wait_call(max(0.0, deadline - time.monotonic())):
                raise DriverError(f"{len(taken)} of {count} requests came back within {timeout} s")
            taken += self.poll()
        return taken

    def interrupts_off(self) -> None:
        """Ask the device not to call."""
        lib.driver_interrupts_off(self.handle)

    def interrupts_on(self) -> bool:
        """Ask the device to call at the next used request. True: one is there already, so don't wait for a call."""
        return bool(lib.driver_interrupts_on(self.handle))
