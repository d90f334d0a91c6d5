"""Whether the kernel polls the network card below (--busy-poll-us), and what keeps it from that, in words.

Two are needed: a socket that may be polled for, and somebody who polls. Under --poll kernel and module that is the
ppoll(2) in which the kernel watches the virtqueues as well; under --poll user the worker asks as it spins.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kpoll.kernel.busy_poll import set_busy_poll

from .net_options import TapBackend, TapFdBackend

if TYPE_CHECKING:
    from kpoll.kernel.probe import KernelFacts

    from .net_options import NetConfig
    from .poll import type_poll

BUDGET: Final = 32  # NET_BATCH: more than one turn receives would only lie in the socket


@dataclass(frozen=True)
class CardPolling:
    """What the log line `busy_poll` says.

    Attributes:
        missing: What is in the way, in words.
        asked: Whether the user wanted it, and so has to be warned of what is missing.
        us: As in BusyPoll, and likewise `prefer` and `budget`.

    """

    missing: tuple[str, ...]
    asked: bool
    us: int = 0
    prefer: bool = False
    budget: int | None = None


def poll_card(config: NetConfig, sock: socket.socket | None, kernel: KernelFacts) -> CardPolling | None:
    """Have the card under `sock` polled as --busy-poll-us says, before a worker waits for it.

    Returns None where there is no socket, and nobody asked.

    Args:
        config: What was asked for.
        sock: The back-end's socket, if it is one.
        kernel: What the kernel's administrator allows.

    """
    us = config.busy_poll_us
    if sock is None:
        if us is None:
            return None
        what = "a tap" if isinstance(config.backend, TapBackend | TapFdBackend) else str(config.backend)
        return CardPolling((f"{what} is no socket, which the kernel could poll for",), bool(us))
    state = set_busy_poll(sock, us, BUDGET)
    missing = list(state.refused)
    if us is None and state.us == 0:
        missing.append("net.core.busy_read is 0, the default, and there is no --busy-poll-us")
    if state.us > 0:
        missing += _nobody_polls(config.poll.strategy, kernel.net_busy_poll_us)
        if _loopback(sock):
            missing.append("the loopback interface has no NAPI")
    return CardPolling(tuple(missing), bool(us), state.us, state.prefer, state.budget)


def _nobody_polls(strategy: type_poll, sysctl_us: int | None) -> list[str]:
    match strategy:
        case "user":
            return []
        case "off":
            return ["--poll off: nobody polls before a sleep"]
        case _ if sysctl_us is None:
            return ["net.core.busy_poll can't be read here (another network namespace?), so polling may be off"]
        case _ if sysctl_us == 0:
            return ["net.core.busy_poll is 0: its administrator turns it on with `sysctl net.core.busy_poll=100`"]
        case _:
            return []


def _loopback(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):  # AF_XDP: a queue of an interface, which has no address
        return False
    host = str(sock.getsockname()[0])
    return host.startswith("127.") or host == "::1"
