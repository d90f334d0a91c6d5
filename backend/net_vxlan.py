"""The sockets behind `--backend vxlan:…`: one at our tunnel end point, and one that only knows the way to the other.

The first isn't connected: the other end may send from any port (RFC 7348 §5 wants it chosen by flow).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .net_options import Endpoint
from .net_udp import bound_socket, connect, guest_mtu

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from .net_options import VxlanBackend

_HEADER: Final = 8  # bytes of VXLAN's own, RFC 7348 §5


@dataclass(frozen=True)
class Tunnel:
    """Our end of a tunnel.

    Attributes:
        sock: Where frames come and go.
        probe: Connected to the other end; nothing is sent from it.
        mtu: The guest's, with which no outer packet needs to be fragmented; None where that can't be had.

    """

    sock: socket.socket
    probe: socket.socket
    mtu: int | None


@contextlib.contextmanager
def open_vxlan(backend: VxlanBackend) -> Iterator[Tunnel]:
    """Open our end of the tunnel that `backend` names; close it on leaving. Raises KpollError when it can't be had."""
    option = f"--backend {backend}"
    local = backend.local
    with bound_socket(local, option) as sock, bound_socket(Endpoint(local.ip, 0), option) as probe:
        connect(probe, local, backend.remote, option)
        yield Tunnel(sock, probe, guest_mtu(probe, header=_HEADER))
