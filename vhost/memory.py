"""Guest memory: the front-end's files mapped into this process, and the table that C translates addresses with.

A table never changes. SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG make a new one, which shares the mappings that stay;
the session closes the old one after every vring has left it. Nothing here relies on the garbage collector: memory
that a worker may still touch is unmapped when `MemoryTable.close` says so, and not a moment earlier or later.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import ffi, lib
from kpoll.vhost.descriptors import discard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kpoll.vhost.connection import Fds
    from kpoll.vhost.payloads import MemoryRegion

MEM_SLOTS_MAX: int = lib.MEM_REGIONS_MAX
"""Regions that a table can have: the answer to GET_MAX_MEM_SLOTS."""


class GuestMemoryError(OSError):
    """Guest memory can't be had as the front-end describes it; `errno` says why."""


def _check(rc: int, what: str) -> None:
    if rc < 0:
        raise GuestMemoryError(-rc, f"{what}: {os.strerror(-rc)}")


def survive_truncation() -> None:
    """Let this process survive a front-end that truncates its memory; call it once, at the start.

    Without it such a front-end ends the process by SIGBUS. With it the hole reads as zeros and `MemoryTable.broken`
    tells. Signals elsewhere go where they went before.

    Raises:
        GuestMemoryError: sigaction(2) failed.

    """
    _check(lib.mem_sigbus_install(), "SIGBUS can't be handled")


@dataclass(frozen=True, eq=False)
class MappedRegion:
    """A region of guest memory in this process. Made by `map_region`, unmapped by its owner's `unmap`.

    Attributes:
        region: What the front-end said of it.
        handle: cffi's `struct mem_map *`.

    """

    region: MemoryRegion
    handle: Any

    @property
    def broken(self) -> bool:
        """Whether the front-end truncated the file under us."""
        return bool(lib.mem_map_broken(self.handle))

    def unmap(self) -> None:
        """Unmap it. No table may name it any more."""
        lib.mem_map_destroy(self.handle)


def map_region(region: MemoryRegion, fd: int) -> MappedRegion:
    """Map a region of the front-end's memory.

    Any file will do, also one that the front-end serves itself (FUSE): then this call, and later each page fault of
    whoever touches the memory, takes as long as it likes. Nothing but refusing such files would help against that.

    Args:
        region: Where it lies, its size in bytes (any number), where it starts in the file (any offset).
        fd: The file. Stays the caller's, who may close it at once.

    Raises:
        GuestMemoryError: EINVAL for a piece that reaches beyond the file's end, or what mmap(2) says.

    """
    out = ffi.new("struct mem_map **")
    _check(lib.mem_map_create(fd, region.mmap_offset, region.size, out), "memory region can't be mapped")
    return MappedRegion(region, out[0])


class MemoryTable:
    """An immutable set of mapped regions, as C sees it.

    Attributes:
        regions: What it is made of.
        handle: cffi's `struct mem_table *`, valid until `close`.

    """

    def __init__(self, regions: Iterable[MappedRegion]) -> None:
        """Build the table. The mappings stay the caller's until this has succeeded, then they are the table's.

        Raises:
            GuestMemoryError: EINVAL when regions overlap in guest physical space, ENOSPC for more than MEM_SLOTS_MAX.

        """
        self.regions = tuple(regions)
        if len(self.regions) > MEM_SLOTS_MAX:
            raise GuestMemoryError(errno.ENOSPC, f"{len(self.regions)} memory regions, more than {MEM_SLOTS_MAX}")
        self.handle = lib.mem_table_create(len(self.regions))
        if self.handle == ffi.NULL:
            raise GuestMemoryError(errno.ENOMEM, "no memory for the memory table")
        for i, mapped in enumerate(self.regions):
            region = mapped.region
            args = (region.guest_address, region.user_address, region.size, mapped.handle)
            lib.mem_table_set(self.handle, i, *args)
        try:
            _check(lib.mem_table_seal(self.handle), "memory regions overlap")
        except GuestMemoryError:
            lib.mem_table_destroy(self.handle)
            raise

    def close(self, successor: MemoryTable | None = None) -> None:
        """Free the table and unmap its regions, but for those that live on in `successor`.

        No vring may use the table any more.
        """
        kept = {id(mapped) for mapped in successor.regions} if successor else set()
        lib.mem_table_destroy(self.handle)
        self.handle = ffi.NULL
        for mapped in self.regions:
            if id(mapped) not in kept:
                mapped.unmap()
        self.regions = ()

    @property
    def broken(self) -> bool:
        """Whether the front-end truncated any of the files under us."""
        return any(mapped.broken for mapped in self.regions)

    @property
    def size(self) -> int:
        """Bytes of guest memory in all."""
        return sum(mapped.region.size for mapped in self.regions)

    def find(self, region: MemoryRegion) -> MappedRegion | None:
        """Find the region with this guest address, user address and size; the mmap offset is ignored (REM_MEM_REG)."""
        wanted = (region.guest_address, region.user_address, region.size)
        for mapped in self.regions:
            if (mapped.region.guest_address, mapped.region.user_address, mapped.region.size) == wanted:
                return mapped
        return None

    def read(self, gpa: int, length: int) -> bytes:
        """Copy `length` bytes out of guest memory, across regions.

        Raises:
            GuestMemoryError: EFAULT when any byte lies outside of the table.

        """
        if length > self.size:
            raise GuestMemoryError(errno.EFAULT, f"{length} bytes at {gpa:#x} are not all guest memory")
        data = ffi.new("uint8_t[]", length)
        _check(lib.mem_read_gpa(self.handle, data, gpa, length), f"guest address {gpa:#x}")
        return bytes(ffi.buffer(data))


def map_regions(present: Sequence[MappedRegion], regions: Sequence[MemoryRegion], fds: Fds) -> MemoryTable:
    """Map regions and make a table of them and those already present; on failure nothing is left mapped of it."""
    mapped: list[MappedRegion] = []
    try:
        for region in regions:
            fd = fds.take()
            try:
                mapped.append(map_region(region, fd))
            finally:
                discard(fd)
        return MemoryTable([*present, *mapped])
    except BaseException:
        for region_mapped in mapped:
            region_mapped.unmap()
        raise
