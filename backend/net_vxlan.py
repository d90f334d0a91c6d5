"""The sockets behind `--backend vxlan:…`: one at our tunnel end point, and one that only knows the way to the other.

The first isn't connected: the other end may send from any port (RFC 7348 §5 wants it chosen by flow).
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .net_config import MTU_MAX, MTU_MIN
from .net_options import Endpoint
from .net_udp import bound_socket, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .net_options import VxlanBackend

_IP_MTU: Final = 14
_IPV6_MTU: Final = 24
# RFC 7348 §5: the outer IP header, UDP's (8), VXLAN's (8), and the guest's own Ethernet header (14).
OVERHEAD: Final = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}


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


def _path_mtu(probe: socket.socket) -> int:
    if probe.family == socket.AF_INET6:
        return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)


@contextlib.contextmanager
def open_vxlan(backend: VxlanBackend) -> Iterator[Tunnel]:
    """Open our end of the tunnel that `backend` names; close it on leaving. Raises KpollError when it can't be had."""
    option = f"--backend {backend}"
    local = backend.local
    with bound_socket(local, option) as sock, bound_socket(Endpoint(local.ip, 0), option) as probe:
        connect(probe, local, backend.remote, option)
        mtu = min(_path_mtu(probe) - OVERHEAD[local.ip.version], MTU_MAX)
        yield Tunnel(sock, probe, mtu if mtu >= MTU_MIN else None)
