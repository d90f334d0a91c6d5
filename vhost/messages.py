"""The vhost-user wire format, and nothing else: bytes to typed payloads and back, without any I/O.

Every message is a header (request, flags, size; 32 bits each, native byte order) and `size` bytes of payload. What a
request carries, how many file descriptors may come with it and whether the specification gives it a reply stands in
one table, `RULES`; a receiver asks it for the bounds before it allocates anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

VERSION = 1
FLAG_VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

PAYLOAD_MAX = 4096
"""Bytes. The longest payload that is read at all; a header that announces more ends the connection."""
CONFIG_SPACE_MAX = PAYLOAD_MAX - 12
"""Bytes of configuration space that one message may touch, and the end of what may be touched."""
MEMORY_REGIONS_MAX = 8
"""Regions in one SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS)."""
FDS_MAX = 8
"""File descriptors that may accompany any message."""

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


class Request(IntEnum):
    """VHOST_USER_*: requests of the front-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """VHOST_USER_BACKEND_*: requests of the back-end, over the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


@dataclass(frozen=True)
class Header:
    """The 12 bytes before every payload."""

    request: int
    flags: int
    size: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read a header.

        Raises:
            MessageError: Fatal: wrong version, or a size beyond PAYLOAD_MAX: the next header can't be found.

        """
        if len(data) != cls.LAYOUT.size:
            raise MessageError(f"header of {len(data)} bytes", fatal=True)
        header = cls(*cls.LAYOUT.unpack(data))
        if header.flags & FLAG_VERSION_MASK != VERSION:
            raise MessageError(f"protocol version {header.flags & FLAG_VERSION_MASK}, not {VERSION}", fatal=True)
        if header.size > PAYLOAD_MAX:
            raise MessageError(f"payload of {header.size} bytes, more than {PAYLOAD_MAX}", fatal=True)
        return header

    def pack(self) -> bytes:
        """Give the wire form."""
        return self.LAYOUT.pack(self.request, self.flags, self.size)

    @property
    def need_reply(self) -> bool:
        """Whether the sender wants an acknowledgement (VHOST_USER_PROTOCOL_F_REPLY_ACK)."""
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def is_reply(self) -> bool:
        """Whether this answers an earlier message."""
        return bool(self.flags & FLAG_REPLY)

    @property
    def name(self) -> str:
        """The request's name in the specification, for the log."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"


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


Payload = Empty | U64 | VringFd | VringState | VringAddr | MemoryRegions | SingleMemoryRegion | Config


@dataclass(frozen=True)
class Rule:
    """What a request looks like.

    Attributes:
        payload: The type of its payload.
        fds: How many file descriptors may come with it.
        replies: The type of its reply's payload, or None where only NEED_REPLY brings one.

    """

    payload: type[Payload]
    fds: int = 0
    replies: type[Payload] | None = None


RULES: dict[int, Rule] = {
    Request.GET_FEATURES: Rule(Empty, replies=U64),
    Request.SET_FEATURES: Rule(U64),
    Request.SET_OWNER: Rule(Empty),
    Request.RESET_OWNER: Rule(Empty),
    Request.SET_MEM_TABLE: Rule(MemoryRegions, fds=MEMORY_REGIONS_MAX),
    Request.SET_VRING_NUM: Rule(VringState),
    Request.SET_VRING_ADDR: Rule(VringAddr),
    Request.SET_VRING_BASE: Rule(VringState),
    Request.GET_VRING_BASE: Rule(VringState, replies=VringState),
    Request.SET_VRING_KICK: Rule(VringFd, fds=1),
    Request.SET_VRING_CALL: Rule(VringFd, fds=1),
    Request.SET_VRING_ERR: Rule(VringFd, fds=1),
    Request.GET_PROTOCOL_FEATURES: Rule(Empty, replies=U64),
    Request.SET_PROTOCOL_FEATURES: Rule(U64),
    Request.GET_QUEUE_NUM: Rule(Empty, replies=U64),
    Request.SET_VRING_ENABLE: Rule(VringState),
    Request.SET_BACKEND_REQ_FD: Rule(Empty, fds=1),
    Request.GET_CONFIG: Rule(Config, replies=Config),
    Request.SET_CONFIG: Rule(Config),
    Request.RESET_DEVICE: Rule(Empty),
    Request.GET_MAX_MEM_SLOTS: Rule(Empty, replies=U64),
    Request.ADD_MEM_REG: Rule(SingleMemoryRegion, fds=1),
    # "For compatibility with existing incorrect implementations, the back-end MAY accept messages with one fd."
    Request.REM_MEM_REG: Rule(SingleMemoryRegion, fds=1),
    Request.SET_STATUS: Rule(U64),
    Request.GET_STATUS: Rule(Empty, replies=U64),
}
"""Every request that this library serves."""


def parse(header: Header, payload: bytes, fds: int) -> tuple[Request, Payload]:
    """Check a request of the front-end against the specification.

    Args:
        header: Its header.
        payload: Its `header.size` bytes of payload.
        fds: How many file descriptors came with it.

    Returns:
        Which request it is, and what it carries.

    Raises:
        MessageError: An unknown request or one that isn't served, a reply, a bad payload, or surplus descriptors.

    """
    if header.is_reply:
        raise MessageError("a reply where a request belongs", fatal=True)
    rule = RULES.get(header.request)
    if rule is None:
        raise MessageError("request not served")
    if fds > rule.fds:
        raise MessageError(f"{fds} file descriptors, at most {rule.fds} belong to it")
    return Request(header.request), rule.payload.unpack(payload)


def pack_request(request: int, payload: Payload, *, need_reply: bool = False) -> bytes:
    """Put a request into its wire form."""
    data = payload.pack()
    return Header(request, VERSION | (FLAG_NEED_REPLY if need_reply else 0), len(data)).pack() + data


def pack_reply(request: int, payload: Payload) -> bytes:
    """Put the reply to a request into its wire form."""
    data = payload.pack()
    return Header(request, VERSION | FLAG_REPLY, len(data)).pack() + data
