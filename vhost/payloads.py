"""What vhost-user messages carry: bytes to typed payloads and back, with the bounds of every field.

All numbers are in native byte order. `unpack` refuses what cannot be (MessageError) before anything is made of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

PAYLOAD_MAX = 4096
"""Bytes. The longest payload that is read at all; a header that announces more ends the connection."""
CONFIG_SPACE_MAX = PAYLOAD_MAX - 12
"""Bytes of configuration space that one message may touch, and the end of what may be touched."""
MEMORY_REGIONS_MAX = 8
"""Regions in one SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS)."""

VRING_INDEX_MASK = 0xFF
VRING_NOFD_MASK = 0x100


class MessageError(Exception):
    """What arrived is no valid vhost-user message.

    Attributes:
        fatal: The byte stream can't be trusted any more (as opposed to: this one message is wrong).

    """

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        """Say what is wrong with the message, in words for the log."""
        super().__init__(reason)
        self.fatal = fatal


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise MessageError(f"{what} of {len(data)} bytes, not {layout.size}")
    return layout.unpack(data)


@dataclass(frozen=True)
class Empty:
    """No payload."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Check that there is nothing to read."""
        if data:
            raise MessageError(f"payload of {len(data)} bytes where there is none")
        return cls()

    def pack(self) -> bytes:
        """Give the wire form."""
        return b""


@dataclass(frozen=True)
class U64:
    """A single 64-bit integer."""

    value: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size."""
        return cls(*_unpack(cls.LAYOUT, data, "u64"))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.value)


@dataclass(frozen=True)
class MacAddress:
    """The u64 of SEND_RARP: six bytes in the order of the wire, and two that mean nothing."""

    mac: bytes

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=6s2x")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size."""
        if len(data) != cls.LAYOUT.size:
            raise MessageError(f"MAC address of {len(data)} bytes, not {cls.LAYOUT.size}")
        return cls(*cls.LAYOUT.unpack(data))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.mac)


@dataclass(frozen=True)
class VringFd:
    """The u64 of SET_VRING_KICK, _CALL and _ERR: bits 0-7 the vring index, bit 8 the invalid FD flag."""

    index: int
    has_fd: bool

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size or for bits that mean nothing."""
        (value,) = _unpack(cls.LAYOUT, data, "u64")
        if value & ~(VRING_INDEX_MASK | VRING_NOFD_MASK):
            raise MessageError(f"unknown bits in vring fd word {value:#x}")
        return cls(index=value & VRING_INDEX_MASK, has_fd=not value & VRING_NOFD_MASK)

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.index | (0 if self.has_fd else VRING_NOFD_MASK))


@dataclass(frozen=True)
class VringState:
    """A vring state description."""

    index: int
    num: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size."""
        return cls(*_unpack(cls.LAYOUT, data, "vring state"))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.index, self.num)


@dataclass(frozen=True)
class VringAddr:
    """A vring address description; the addresses are front-end virtual ones, `log` is guest physical."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size."""
        return cls(*_unpack(cls.LAYOUT, data, "vring address"))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.index, self.flags, self.descriptor, self.used, self.available, self.log)


@dataclass(frozen=True)
class MemoryRegion:
    """A region of guest memory: addresses and size in bytes, and where it starts in its file."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQQ")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form.

        Raises:
            MessageError: Another size, an empty region, or one that wraps in either address space or in its file.

        """
        region = cls(*_unpack(cls.LAYOUT, data, "memory region"))
        if not region.size:
            raise MessageError("empty memory region")
        for name in ("guest_address", "user_address", "mmap_offset"):
            if getattr(region, name) + region.size > 1 << 64:
                raise MessageError(f"memory region wraps: {name} {getattr(region, name):#x}, size {region.size:#x}")
        return region

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.guest_address, self.size, self.user_address, self.mmap_offset)


@dataclass(frozen=True)
class MemoryRegions:
    """A memory regions description: the payload of SET_MEM_TABLE."""

    regions: tuple[MemoryRegion, ...]

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form; unused slots may follow, as some front-ends send their fixed array whole.

        Their arrays differ: the specification's eight slots, or two in user-mode Linux (drivers/um/vhost_user.h).

        Raises:
            MessageError: More than MEMORY_REGIONS_MAX regions, fewer bytes than the count says, or a bad region.

        """
        head, step = cls.LAYOUT.size, MemoryRegion.LAYOUT.size
        count, _padding = _unpack(cls.LAYOUT, data[:head], "memory regions' head")
        if count > MEMORY_REGIONS_MAX:
            raise MessageError(f"{count} memory regions, more than {MEMORY_REGIONS_MAX}")
        slots, partial = divmod(len(data) - head, step)
        if partial or not count <= slots <= MEMORY_REGIONS_MAX:
            raise MessageError(f"{count} memory regions in {len(data)} bytes")
        return cls(tuple(MemoryRegion.unpack(data[at : at + step]) for at in range(head, head + count * step, step)))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(len(self.regions), 0) + b"".join(region.pack() for region in self.regions)


@dataclass(frozen=True)
class SingleMemoryRegion:
    """A single memory region description: the payload of ADD_MEM_REG and REM_MEM_REG."""

    region: MemoryRegion

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form. Raises MessageError for another size or a bad region."""
        return cls(MemoryRegion.unpack(data[cls.LAYOUT.size :]))

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(0) + self.region.pack()


@dataclass(frozen=True)
class Config:
    """A piece of the virtio device's configuration space. In a request to read it, `data` may be left out."""

    offset: int
    size: int
    flags: int
    data: bytes

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the wire form.

        Raises:
            MessageError: Beyond CONFIG_SPACE_MAX, or neither no data nor `size` bytes of it.

        """
        head = cls.LAYOUT.size
        offset, size, flags = _unpack(cls.LAYOUT, data[:head], "config header")
        if offset + size > CONFIG_SPACE_MAX:
            raise MessageError(f"configuration space {offset}+{size}, beyond {CONFIG_SPACE_MAX}")
        if len(data) - head not in (0, size):
            raise MessageError(f"{len(data) - head} bytes of configuration space, not {size}")
        return cls(offset, size, flags, data[head:])

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.offset, self.size, self.flags) + self.data


Payload = Empty | U64 | MacAddress | VringFd | VringState | VringAddr | MemoryRegions | SingleMemoryRegion | Config
