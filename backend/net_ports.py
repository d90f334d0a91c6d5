"""What a card's frames go to and come from, opened: one C port per queue pair, and what is behind them all."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import ffi, lib

from .errors import KpollError, UsageError
from .net_config import NO_OFFLOADS, SOFT_OFFLOADS, NetFeature
from .net_options import EchoBackend, NullBackend, UdpBackend, VxlanBackend, XdpBackend
from .net_rarp import send_by_tap, send_by_udp, send_by_vxlan
from .net_tap import Tap, open_tap
from .net_udp import guest_mtu, open_udp
from .net_vxlan import open_vxlan
from .net_xdp import Xdp, open_xdp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from .net_options import NetConfig
    from .net_rarp import type_send


@dataclass(frozen=True)
class Ports:
    """All that a card needs of its back-end.

    Attributes:
        handles: A `struct net_port *` for each queue pair.
        offloads: What the back-end can do for the guest.
        tap: The tap behind them, if it is one.
        xdp: The interface, if it is one whose queues are ours.
        mtu: What the guest's should be, if the back-end knows.
        udp: The socket, if frames go in datagrams.
        send: Sends one frame, beside what the guest sends; None where that can't be.

    """

    handles: tuple[Any, ...]
    offloads: NetFeature = NO_OFFLOADS
    tap: Tap | None = None
    xdp: Xdp | None = None
    mtu: int | None = None
    udp: socket.socket | None = None
    send: type_send | None = None

    @property
    def path_mtu(self) -> int | None:
        """The largest MTU that nothing behind the card is too narrow for, if we know."""
        return self.mtu if self.tap is None else self.tap.mtu

    @property
    def sock(self) -> socket.socket | None:
        """The socket, if it is one; another one after an interface was gone and is back."""
        return self.udp if self.xdp is None else self.xdp.sockets[0].sock


def _make(create: Callable[..., int], *what: Any, option: str, stack: ExitStack) -> Any:
    """Make a `struct net_port *` by its net_port_*(); `stack` frees it. Raises KpollError."""
    out = ffi.new("struct net_port **")
    error = -create(out, *what)
    if error:
        raise KpollError(f"{option}: {os.strerror(error)}")
    stack.callback(lib.net_port_destroy, out[0])
    return out[0]


@contextmanager
def open_ports(config: NetConfig) -> Iterator[Ports]:
    """Open the back-end of `config`; close it on leaving, when no worker runs any more. Raises KpollError."""
    pairs = config.num_queue_pairs
    with ExitStack() as stack:
        make = partial(_make, option=f"--backend {config.backend}", stack=stack)
        tap = xdp = mtu = udp = send = None
        offloads = NO_OFFLOADS
        match config.backend:
            case NullBackend() as backend:
                handles = [make(lib.net_port_null, backend.size) for _ in range(pairs)]
            case EchoBackend():
                handles = [make(lib.net_port_echo) for _ in range(pairs)]
            case UdpBackend() | VxlanBackend() as backend:
                if pairs > 1:
                    raise UsageError(f"--num-queue-pairs {pairs}: --backend {backend} is one path; use 1")
                offloads = SOFT_OFFLOADS
                if isinstance(backend, UdpBackend):
                    udp = stack.enter_context(open_udp(backend))
                    mtu = guest_mtu(udp)
                    send = send_by_udp(udp)
                    handles = [make(lib.net_port_udp, udp.fileno())]
                else:
                    tunnel = stack.enter_context(open_vxlan(backend))
                    udp, mtu = tunnel.sock, tunnel.mtu
                    send = send_by_vxlan(udp, backend.vni, tunnel.probe.getpeername())
                    handles = [make(lib.net_port_vxlan, udp.fileno(), backend.vni, tunnel.probe.fileno())]
            case XdpBackend() as backend:
                xdp = stack.enter_context(
                    open_xdp(backend, pairs=pairs, mtu=config.mtu, busy_poll_us=config.busy_poll_us)
                )
                handles = list(xdp.handles)
                offloads, mtu = SOFT_OFFLOADS, xdp.mtu
            case backend:
                tap = stack.enter_context(open_tap(backend, pairs=pairs, mac=config.mac))
                offloads = tap.offloads
                send = send_by_tap(tap)
                handles = [make(lib.net_port_tap, fd) for fd in tap.fds]
        yield Ports(tuple(handles), offloads, tap, xdp, mtu, udp, send)
