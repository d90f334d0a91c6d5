"""A driver's split virtqueue written by hand (virtio 1.2 §2.7), so that a test sees, or breaks, every byte of it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.wire.harness import AVAIL, DESC, SIZE, USED

if TYPE_CHECKING:
    from kpoll.vhost.frontend import Memory

NEXT, WRITE, INDIRECT = 1, 2, 4


class SplitRing:
    """A ring of 8 entries at the start of shared memory; buffers are the caller's business."""

    def __init__(self, memory: Memory) -> None:
        """Begin with an empty ring."""
        self._bytes = memory.mmap
        self._avail = 0
        self._used = 0

    def describe(self, slot: int, gpa: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor, sensible or not."""
        struct.pack_into("<QIHH", self._bytes, DESC + 16 * slot, gpa, length, flags, following)

    def offer(self, head: int) -> None:
        """Make a chain available."""
        struct.pack_into("<H", self._bytes, AVAIL + 4 + 2 * (self._avail % SIZE), head)
        self._avail += 1
        struct.pack_into("<H", self._bytes, AVAIL + 2, self._avail % 65536)

    def used(self) -> list[tuple[int, int]]:
        """Collect (head, bytes written) of what was used since the last time."""
        (index,) = struct.unpack_from("<H", self._bytes, USED + 2)
        found = []
        while self._used % 65536 != index:
            found.append(struct.unpack_from("<II", self._bytes, USED + 4 + 8 * (self._used % SIZE)))
            self._used += 1
        return found
