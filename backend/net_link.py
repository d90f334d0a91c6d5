"""Whether a network interface is up, down or gone, told by the kernel as it happens (rtnetlink(7)).

By a netlink socket of our own, as in resize.py: pyroute2 runs asyncio underneath, which trio's loop has no place for,
and what we need of a message are two fixed headers and a name. There is no timer: an idle daemon doesn't wake up.

A guest's link is up while the interface is *running*: its administrator has set it up, and it has a carrier.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_ROUTE: Final = 0
_RTMGRP_LINK: Final = 0x1
_NLM_F_REQUEST: Final = 0x1
_NLMSG_ERROR: Final = 2
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_IFLA_IFNAME: Final = 3
_IFF_RUNNING: Final = 0x40
_FROM_KERNEL: Final = 0  # nl_pid of the sender
_MESSAGE_BYTES: Final = 65536

_NLMSGHDR: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, device type, index, IFF_* flags, change mask
_RTATTR: Final = struct.Struct("=HH")  # length, type
_ERROR: Final = struct.Struct("=i")


class LinkState(Enum):
    """What an interface is like."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"  # deleted, or moved to another network namespace


@dataclass(frozen=True)
class LinkEvent:
    """What one message says. `index` is 0 where the kernel answers that there is no interface as we asked for."""

    index: int
    name: str
    state: LinkState


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


def parse_link_events(data: bytes) -> Iterator[LinkEvent]:
    """Read what a datagram of the kernel says of interfaces.

    A bridge tells of its ports with the same types and another family: to leave a bridge is not to be gone.
    """
    for (_, kind, *_), body in _pieces(data, _NLMSGHDR):
        if kind == _NLMSG_ERROR and len(body) >= _ERROR.size and _ERROR.unpack_from(body)[0] == -errno.ENODEV:
            yield LinkEvent(0, "", LinkState.GONE)
        if kind not in (_RTM_NEWLINK, _RTM_DELLINK) or len(body) < _IFINFOMSG.size:
            continue
        family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
        if family != socket.AF_UNSPEC:
            continue
        names = (value for (_, what), value in _pieces(body[_IFINFOMSG.size :], _RTATTR) if what == _IFLA_IFNAME)
        name = os.fsdecode(next(names, b"").rstrip(b"\0"))
        running = LinkState.UP if flags & _IFF_RUNNING else LinkState.DOWN
        yield LinkEvent(index, name, LinkState.GONE if kind == _RTM_DELLINK else running)


class LinkWatch:
    """Follows one interface: by its number while it is there, and by its name once it is gone, until it is back.

    Resource handling: `close` closes the socket, which is opened at once, while we still may.
    """

    def __init__(self, name: str, index: int) -> None:
        """Watch interface `name`, whose number is `index`. Raises OSError."""
        self._name = name
        self._index: int | None = index
        self._state: LinkState | None = None
        self._changes: deque[LinkState] = deque()
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        try:
            self._sock.bind((0, _RTMGRP_LINK))
            self._ask()
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    async def changed(self) -> LinkState:
        """Wait until the interface is other than was told last; the first call tells what it is like.

        GONE is told whenever it was gone, even when it was back at once: it is another interface then.
        """
        while not self._changes:
            await trio.lowlevel.wait_readable(self._sock)
            self._receive()
        return self._changes.popleft()

    def _receive(self) -> None:
        try:
            data, sender = self._sock.recvfrom(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # Messages were lost, ours may be among them. The answer finds no room either while others lie there.
            self._discard()
            self._ask()
            return
        if sender[0] != _FROM_KERNEL:
            return
        for event in parse_link_events(data):
            self._apply(event)

    def _discard(self) -> None:
        while True:
            try:
                self._sock.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _apply(self, event: LinkEvent) -> None:
        if self._index is None:
            if event.name != self._name or event.state is LinkState.GONE:
                return
            self._index = event.index
        elif event.index not in (self._index, 0):
            return
        elif event.state is LinkState.GONE:
            self._index = None
            self._ask()  # an interface of that name may be back already
        if event.state is not self._state:
            self._state = event.state
            self._changes.append(event.state)

    def _ask(self) -> None:
        """Have the kernel tell what our interface is like, as one more message."""
        info = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, self._index or 0, 0, 0)
        if self._index is None:
            name = os.fsencode(self._name) + b"\0"
            info += _RTATTR.pack(_RTATTR.size + len(name), _IFLA_IFNAME) + name.ljust(_aligned(len(name)), b"\0")
        self._sock.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(info), _RTM_GETLINK, _NLM_F_REQUEST, 0, 0) + info)
