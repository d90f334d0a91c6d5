"""rtnetlink(7): how the kernel is asked about interfaces and addresses, and tells of them as they change.

By a netlink socket of our own, as in resize.py: pyroute2 runs asyncio underneath, which trio's loop has no place for,
and what we need of a message are two fixed headers and a few attributes. There is no timer: an idle daemon doesn't
wake up.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_LINK: Final = 0x1  # RTMGRP_*
GROUP_IPV4_ADDRESS: Final = 0x10
GROUP_IPV6_ADDRESS: Final = 0x100

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22

NLM_F_DUMP_INTR: Final = 0x10  # of an answer: something changed meanwhile, and may be missing
NLM_F_DUMP: Final = 0x300  # of a question: tell of all there are

_NETLINK_ROUTE: Final = 0
_NLM_F_REQUEST: Final = 0x1
_FROM_KERNEL: Final = 0  # nl_pid of the sender
_MESSAGE_BYTES: Final = 65536

_NLMSGHDR: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_RTATTR: Final = struct.Struct("=HH")  # length, type


class Message(NamedTuple):
    """One message of a datagram. `sequence` is that of the question it answers, or 0."""

    kind: int
    flags: int
    sequence: int
    body: bytes


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _pieces(data: bytes, header: struct.Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Split messages or attributes, which begin with their own length; what is cut short ends the last one."""
    while len(data) >= header.size:
        fields = header.unpack_from(data)
        length = fields[0]
        if length < header.size:
            return
        yield fields, data[header.size : length]
        data = data[_aligned(length) :]


def messages(data: bytes) -> Iterator[Message]:
    """Split a datagram of the kernel."""
    for (_, kind, flags, sequence, _), body in _pieces(data, _NLMSGHDR):
        yield Message(kind, flags, sequence, body)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split what follows a message's own header: the type of each, and its value."""
    for (_, kind), value in _pieces(data, _RTATTR):
        yield kind, value


def attribute(kind: int, value: bytes) -> bytes:
    """Make one to send."""
    return _RTATTR.pack(_RTATTR.size + len(value), kind) + value.ljust(_aligned(len(value)), b"\0")


class RouteSocket:
    """A socket of rtnetlink that belongs to groups, by which it is told of changes.

    Resource handling: `close` closes it. It is opened at once, while we still may.
    """

    def __init__(self, groups: int) -> None:
        """Open it. Raises OSError."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        try:
            self._sock.bind((0, groups))
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._sock.close()

    def ask(self, kind: int, body: bytes, *, flags: int = 0, sequence: int = 0) -> None:
        """Ask the kernel, whose answer comes among what else it tells. Raises OSError."""
        header = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, _NLM_F_REQUEST | flags, sequence, 0)
        self._sock.send(header + body)

    async def receive(self) -> bytes | None:
        """Wait for the next datagram of the kernel.

        None: messages were lost, answers may be among them. All others were thrown away then: no answer finds room
        while they lie there.
        """
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data, sender = self._sock.recvfrom(_MESSAGE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._discard()
                return None
            if sender[0] == _FROM_KERNEL:
                return data

    def _discard(self) -> None:
        while True:
            try:
                self._sock.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
