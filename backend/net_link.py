"""Whether a network interface is up, down or gone, told by the kernel as it happens (rtnetlink.py).

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

from . import rtnetlink

if TYPE_CHECKING:
    from collections.abc import Iterator

_IFLA_IFNAME: Final = 3
_IFF_RUNNING: Final = 0x40

_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, device type, index, IFF_* flags, change mask
_ERROR: Final = struct.Struct("=i")


class LinkState(Enum):
    """What an interface is like, or a card's way to the network."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"  # deleted, or moved to another network namespace


@dataclass(frozen=True)
class LinkEvent:
    """What one message says. `index` is 0 where the kernel answers that there is no interface as we asked for."""

    index: int
    name: str
    state: LinkState


def link_question(index: int = 0, name: str | None = None) -> bytes:
    """Make the body of an RTM_GETLINK: about the interface of this number or name, or about all of them."""
    info = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return info if name is None else info + rtnetlink.attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")


def parse_link_events(data: bytes) -> Iterator[LinkEvent]:
    """Read what a datagram of the kernel says of interfaces.

    A bridge tells of its ports with the same types and another family: to leave a bridge is not to be gone.
    """
    for kind, _, _, body in rtnetlink.messages(data):
        if kind == rtnetlink.NLMSG_ERROR and len(body) >= _ERROR.size and _ERROR.unpack_from(body)[0] == -errno.ENODEV:
            yield LinkEvent(0, "", LinkState.GONE)
        if kind not in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK) or len(body) < _IFINFOMSG.size:
            continue
        family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
        if family != socket.AF_UNSPEC:
            continue
        names = (value for what, value in rtnetlink.attributes(body[_IFINFOMSG.size :]) if what == _IFLA_IFNAME)
        name = os.fsdecode(next(names, b"").rstrip(b"\0"))
        running = LinkState.UP if flags & _IFF_RUNNING else LinkState.DOWN
        yield LinkEvent(index, name, LinkState.GONE if kind == rtnetlink.RTM_DELLINK else running)


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
        self._sock = rtnetlink.RouteSocket(rtnetlink.GROUP_LINK)
        try:
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
            data = await self._sock.receive()
            if data is None:
                self._ask()
                continue
            for event in parse_link_events(data):
                self._apply(event)
        return self._changes.popleft()

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
        question = link_question(name=self._name) if self._index is None else link_question(self._index)
        self._sock.ask(rtnetlink.RTM_GETLINK, question)
