"""Having the kernel poll a network card's queue for a socket, instead of waiting for its interrupts (socket(7)).

SO_BUSY_POLL lets whoever waits for the socket run the card's NAPI in the meantime. Which NAPI that is, the socket
learns from the packets that arrive; some interfaces have none: loopback, and veth whose GRO is off. A tap is no socket
at all.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NETSTAT: Final = Path("/proc/net/netstat")  # of this process's network namespace

# asm-generic/socket.h; the socket module has no names for them
_SO_BUSY_POLL: Final = 46
_SO_INCOMING_NAPI_ID: Final = 56
_SO_PREFER_BUSY_POLL: Final = 69
_SO_BUSY_POLL_BUDGET: Final = 70

_OPTIONS: Final = {
    _SO_BUSY_POLL: "SO_BUSY_POLL",
    _SO_PREFER_BUSY_POLL: "SO_PREFER_BUSY_POLL",
    _SO_BUSY_POLL_BUDGET: "SO_BUSY_POLL_BUDGET",
}


@dataclass(frozen=True, kw_only=True)
class BusyPoll:
    """How a socket is polled.

    Attributes:
        us: Longest time that a blocking call on it would spin, in microseconds; 0: its card is never polled.
        prefer: Whether the card's interrupts are put off while it is polled often enough.
        budget: Most packets that one look at the card takes; None: as the kernel has it.
        refused: What was asked for and can't be had, and why.

    """

    us: int
    prefer: bool
    budget: int | None
    refused: tuple[str, ...]


def set_busy_poll(sock: socket.socket, us: int | None, budget: int) -> BusyPoll:
    """Have a socket's card polled, and find out what came of it.

    Args:
        sock: The socket, before anybody waits for it.
        us: For how long at most, in microseconds; 0: not at all; None: as net.core.busy_read has it.
        budget: Most packets to take in one look.

    """
    wanted = {}
    if us is not None:
        wanted[_SO_BUSY_POLL] = us
    if us:
        wanted |= {_SO_PREFER_BUSY_POLL: 1, _SO_BUSY_POLL_BUDGET: budget}
    refused = {option: error for option, value in wanted.items() if (error := _set(sock, option, value))}
    return BusyPoll(
        us=_get(sock, _SO_BUSY_POLL),
        prefer=bool(_get(sock, _SO_PREFER_BUSY_POLL)),
        budget=budget if us and _SO_BUSY_POLL_BUDGET not in refused else None,  # it can be set, but not asked for
        refused=tuple(f"{_OPTIONS[option]}: {_why(error)}" for option, error in refused.items()),
    )


def incoming_napi_id(sock: socket.socket) -> int:
    """Return the number of the NAPI that the socket's last packet came through; 0: none, or no packet has come yet."""
    return _get(sock, _SO_INCOMING_NAPI_ID)


def busy_poll_rx_packets() -> int | None:
    """Return how many packets busy polling has found, in this network namespace; None where that can't be read."""
    try:
        return parse_netstat(NETSTAT.read_text(), "TcpExt", "BusyPollRxPackets")
    except OSError:
        return None


def parse_netstat(text: str, table: str, name: str) -> int | None:
    """Find a counter in /proc/net/netstat, which has a line of names above each line of values."""
    lines = [line.split() for line in text.splitlines() if line.startswith(f"{table}:")]
    found = dict(zip(*lines[:2], strict=False)) if len(lines) >= 2 else {}
    return int(found[name]) if name in found else None


def _set(sock: socket.socket, option: int, value: int) -> int:
    """Return 0, or the errno."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _get(sock: socket.socket, option: int) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option)
    except OSError:  # a kernel that can't poll at all
        return 0


def _why(error: int) -> str:
    match error:
        case errno.EPERM:
            return "raising it takes the capability CAP_NET_ADMIN in the initial user namespace"
        case errno.ENOPROTOOPT:
            return "this kernel has no such option"
        case _:
            return os.strerror(error)
