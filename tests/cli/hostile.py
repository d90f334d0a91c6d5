"""A virtqueue written by hand, for drivers that break a rule, and the rules that hold whatever the device."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kpoll.vhost.driver import Driver
from kpoll.vhost.features import VirtioFeature

if TYPE_CHECKING:
    from kpoll.vhost.frontend import Frontend

RING = VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VIRTIO_F_INDIRECT_DESC
NEXT, WRITE, INDIRECT = 1, 2, 4
PACKED_AVAIL = 1 << 7
SIZE = 16
TABLE, DATA = 0x1000, 0x4000  # in the data memory
MANY = 300  # more buffers than any device takes in one chain
FAR = 1 << 40  # a guest physical address that no region has


class RingByHand:
    """The first lap of a virtqueue's rings, over what `Driver` laid out."""

    def __init__(self, frontend: Frontend, index: int) -> None:
        """Set the queue up, of SIZE entries, and memory for its buffers."""
        self.packed = bool(frontend.acked_features & VirtioFeature.VIRTIO_F_RING_PACKED)
        self.driver = Driver(frontend, index, size=SIZE)
        self.data = frontend.add_memory(1 << 16)

    def desc(self, i: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        """Write a descriptor: `following` is next (split) or the buffer id (packed)."""
        self._write(self.driver.memory.mmap, self.driver.layout.desc + 16 * i, addr, length, flags, following)

    def table(self, i: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        """Write an entry of the indirect table at TABLE."""
        self._write(self.data.mmap, TABLE + 16 * i, addr, length, flags, following, entry=True)

    def _write(
        self, memory: object, at: int, addr: int, length: int, flags: int, following: int, *, entry: bool = False
    ) -> None:
        words = (following, flags | (0 if entry else PACKED_AVAIL)) if self.packed else (flags, following)
        struct.pack_into("<QIHH", memory, at, addr, length, *words)  # type: ignore[arg-type]

    def offer(self, head: int = 0, idx: int = 1) -> None:
        """Split: make `head` available, with avail.idx as given. Packed rings need no more than their descriptors."""
        if not self.packed:
            struct.pack_into("<HHH", self.driver.memory.mmap, self.driver.layout.avail, 0, idx, head)
        self.driver.vring.kick()

    @property
    def gpa(self) -> int:
        """Where data buffers may lie."""
        return self.data.gpa + DATA


def loop(ring: RingByHand) -> None:
    for i in range(SIZE):
        ring.desc(i, ring.gpa, 16, NEXT, (i + 1) % SIZE)


def outside(ring: RingByHand) -> None:
    ring.desc(0, FAR, 16, 0)


def wrapping(ring: RingByHand) -> None:
    ring.desc(0, 2**64 - 8, 16, 0)


def beyond_the_end(ring: RingByHand) -> None:
    ring.desc(0, ring.data.gpa + ring.data.size - 8, 16, 0)


def zero_length(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 0, 0)


def too_many(ring: RingByHand) -> None:
    ring.desc(0, ring.data.gpa + TABLE, 16 * MANY, INDIRECT)
    for i in range(MANY):
        ring.table(i, ring.gpa, 16, NEXT if i < MANY - 1 else 0, i + 1)


def indirect_in_indirect(ring: RingByHand) -> None:
    ring.desc(0, ring.data.gpa + TABLE, 16, INDIRECT)
    ring.table(0, ring.data.gpa + TABLE, 16, INDIRECT)


def indirect_and_next(ring: RingByHand) -> None:
    ring.desc(0, ring.data.gpa + TABLE, 16, INDIRECT | NEXT, 1)


def indirect_odd_length(ring: RingByHand) -> None:
    ring.desc(0, ring.data.gpa + TABLE, 17, INDIRECT)


def indirect_outside(ring: RingByHand) -> None:
    ring.desc(0, FAR, 16, INDIRECT)


def readable_after_writable(ring: RingByHand) -> None:
    ring.desc(0, ring.gpa, 16, WRITE | NEXT, 1)
    ring.desc(1, ring.gpa, 16, 0)


CHAINS = [
    (loop, "loop"),
    (outside, "address"),
    (wrapping, "address"),
    (beyond_the_end, "address"),
    (zero_length, "zero_length"),
    (too_many, "too_many"),
    (indirect_in_indirect, "indirect_nested"),
    (indirect_and_next, "indirect_nested"),
    (indirect_odd_length, "indirect_length"),
    (indirect_outside, "address"),
    (readable_after_writable, "order"),
]
