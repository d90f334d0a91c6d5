"""Whether a local address can be sent from, told by the kernel as it happens (rtnetlink.py).

The address's link is what its interface's is (net_link.py), whichever has it: it may move. It is down while duplicate
address detection hasn't approved it (RFC 4862 §5.4), and gone while no interface has it. A socket bound to it survives
that, and is heard again once it is back.

Some addresses stand in no interface's list:

- Of 127.0.0.0/8 all are the host's own while the loopback interface has 127.0.0.1/8: any prefix around one counts.
- A wildcard (0.0.0.0, ::) is every interface's at once, and can't be followed. A connected socket has none any more:
  connect(2) chose an address for it.
- A route of type local, or ip_nonlocal_bind, lets others be bound: nothing is told of one until an interface has it.

A link-local address is one interface's alone, by number. An interface of the same name that is made anew is another
one, of which the socket doesn't hear.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import rtnetlink
from .net_link import LinkState, link_question, parse_link_events

if TYPE_CHECKING:
    from collections.abc import Iterator

type_ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_GROUPS: Final = rtnetlink.GROUP_LINK | rtnetlink.GROUP_IPV4_ADDRESS | rtnetlink.GROUP_IPV6_ADDRESS
_IFADDRMSG: Final = struct.Struct("=BBBBi")  # family, bits of the prefix, IFA_F_* flags, scope, index
_U32: Final = struct.Struct("=I")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2  # where it is point to point, and _IFA_ADDRESS the peer's
_IFA_FLAGS: Final = 8  # all of them, where eight bits don't hold them
_IFA_F_OPTIMISTIC: Final = 0x04  # RFC 4429: used while it is tentative
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_TENTATIVE: Final = 0x40
_SIZES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}

# The kernel answers one question for all there are at a time.
_QUESTIONS: Final = (
    (rtnetlink.RTM_GETLINK, link_question()),
    (rtnetlink.RTM_GETADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)),
)


@dataclass(frozen=True)
class AddressEvent:
    """What one message says of an address.

    Attributes:
        index: The number of the interface.
        ip: The address.
        bits: Of its prefix.
        there: Whether the interface has it (still).
        usable: Whether it may be sent from.

    """

    index: int
    ip: type_ip
    bits: int
    there: bool
    usable: bool


def parse_address_events(data: bytes) -> Iterator[AddressEvent]:
    """Read what a datagram of the kernel says of addresses."""
    for kind, _, _, body in rtnetlink.messages(data):
        if kind not in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR) or len(body) < _IFADDRMSG.size:
            continue
        family, bits, flags, _, index = _IFADDRMSG.unpack_from(body)
        found = dict(rtnetlink.attributes(body[_IFADDRMSG.size :]))
        address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS) or b""
        if len(address) != _SIZES.get(family):
            continue
        if len(found.get(_IFA_FLAGS, b"")) == _U32.size:
            (flags,) = _U32.unpack(found[_IFA_FLAGS])
        waits = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
        there = kind == rtnetlink.RTM_NEWADDR
        usable = there and not waits and not flags & _IFA_F_DADFAILED
        yield AddressEvent(index, ipaddress.ip_address(address), bits, there, usable)


class AddressWatch:
    """Follows one address, whichever interface has it.

    Resource handling: `close` closes the socket, which is opened at once, while we still may.
    """

    def __init__(self, ip: type_ip, index: int = 0) -> None:
        """Watch an address; a link-local one on the interface of this number, any other with 0. Raises OSError."""
        self._ip = ip
        self._index = index
        self._state: LinkState | None = None
        self._changes: deque[LinkState] = deque()
        self._running: set[int] = set()  # the interfaces that are
        self._held: dict[tuple[int, type_ip, int], bool] = {}  # our address wherever it is, and whether it is usable
        self._sequence = 0  # of the last question
        self._answered = 0  # how many questions are; while not all, we don't know enough to tell anything
        self._interrupted = False
        self._sock = rtnetlink.RouteSocket(_GROUPS)
        try:
            self._ask_all()
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    async def changed(self) -> LinkState:
        """Wait until the address is other than was told last; the first call tells what it is like, if it is there."""
        while not self._changes:
            data = await self._sock.receive()
            if data is None:
                self._ask_all()
            else:
                self._read(data)
        return self._changes.popleft()

    def _read(self, data: bytes) -> None:
        for link in parse_link_events(data):
            if link.state is LinkState.UP:
                self._running.add(link.index)
            else:
                self._running.discard(link.index)
            self._tell()
        for address in parse_address_events(data):
            key = address.index, address.ip, address.bits
            if not address.there:
                self._held.pop(key, None)
            elif self._is_ours(address):
                self._held[key] = address.usable
            self._tell()
        for message in rtnetlink.messages(data):
            self._go_on(message)

    def _is_ours(self, address: AddressEvent) -> bool:
        if self._index not in (0, address.index):
            return False
        if address.ip == self._ip:
            return True
        of_loopback = self._ip.version == 4 and self._ip.is_loopback
        return of_loopback and self._ip in ipaddress.ip_network((address.ip, address.bits), strict=False)

    def _tell(self) -> None:
        """Tell what has changed, if we know."""
        if self._answered < len(_QUESTIONS):
            return
        if any(usable and index in self._running for (index, *_), usable in self._held.items()):
            state = LinkState.UP
        elif self._held:
            state = LinkState.DOWN
        elif self._state is None:
            return  # no interface has had it yet: it is none of those that can be followed
        else:
            state = LinkState.GONE
        if state is not self._state:
            self._state = state
            self._changes.append(state)

    def _ask_all(self) -> None:
        """Find out anew what is there."""
        self._running.clear()
        self._held.clear()
        self._answered = 0
        self._interrupted = False
        self._ask()

    def _ask(self) -> None:
        kind, body = _QUESTIONS[self._answered]
        self._sequence += 1
        self._sock.ask(kind, body, flags=rtnetlink.NLM_F_DUMP, sequence=self._sequence)

    def _go_on(self, message: rtnetlink.Message) -> None:
        """Ask the next question, or all of them again, when an answer is complete.

        That is another question's when ours was refused, as the kernel was still busy with that one.
        """
        ours = message.sequence == self._sequence
        self._interrupted |= ours and bool(message.flags & rtnetlink.NLM_F_DUMP_INTR)
        if message.kind != rtnetlink.NLMSG_DONE:
            return
        if self._interrupted or not ours:
            self._ask_all()
            return
        self._answered += 1
        if self._answered < len(_QUESTIONS):
            self._ask()
        else:
            self._tell()


def watch_address_of(sock: socket.socket) -> AddressWatch | None:
    """Watch the local address of a bound socket; None for a wildcard. Raises OSError."""
    host, _, *rest = sock.getsockname()
    ip = ipaddress.ip_address(host.partition("%")[0])
    return None if ip.is_unspecified else AddressWatch(ip, rest[1] if rest else 0)
