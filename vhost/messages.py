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

from kpoll.vhost.payloads import (
    MEMORY_REGIONS_MAX,
    PAYLOAD_MAX,
    U64,
    Config,
    Empty,
    MacAddress,
    MemoryRegions,
    MessageError,
    Payload,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)

VERSION = 1
FLAG_VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

FDS_MAX = 8
"""File descriptors that may accompany any message."""


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
    Request.SEND_RARP: Rule(MacAddress),
    Request.NET_SET_MTU: Rule(U64),
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
