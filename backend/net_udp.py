"""The socket behind `--backend udp:LOCAL,REMOTE`: bound to one end, connected to the other.

Connected, so that the kernel drops what others send, and says when nobody listens at the other end.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from .errors import KpollError, os_reason
from .net_config import MTU_MIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .net_options import Endpoint, UdpBackend

# Large frames are in flight as a whole, and the network sends in bursts: more than net.core.[rw]mem_default.
BUFFER_BYTES: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24

# What is in front of the guest's packets in ours: IP's header, UDP's (8), and their own Ethernet header (14).
_IN_FRONT: Final = {4: 20 + 8 + 14, 6: 40 + 8 + 14}


def _address(end: Endpoint, option: str) -> tuple[str | int | bytes, ...]:
    """Return the end as the socket calls take it, with an IPv6 zone as a number. Raises KpollError: no such zone."""
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        found = socket.getaddrinfo(str(end.ip), end.port, type=socket.SOCK_DGRAM, flags=flags)
    except socket.gaierror:
        raise KpollError(f"{option}: {end.ip} names no interface of this host after its %") from None
    return found[0][4]


def _bind_error(error: OSError, local: Endpoint, option: str) -> KpollError:
    match error.errno:
        case errno.EADDRINUSE:
            what = f"port {local.port} is in use at {local.ip}: stop who has it (`ss -lunp`), or use another port"
        case errno.EADDRNOTAVAIL:
            what = f"{local.ip} is no address of this host: give one that `ip address` shows as the local one"
        case errno.EACCES:
            what = f"port {local.port} takes the capability CAP_NET_BIND_SERVICE: use one from 1024 on"
        case errno.EINVAL if local.ip.is_link_local:
            what = f"{local.ip} is link-local: say on which interface, such as {local.ip}%eth0"
        case _:
            what = f"{local} can't be bound: {os_reason(error)}"
    return KpollError(f"{option}: {what}")


def _connect_error(error: OSError, local: Endpoint, remote: Endpoint, option: str) -> KpollError:
    match error.errno:
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            what = f"there is no route from {local.ip} to {remote.ip}: see `ip route get {remote.ip}`"
        case errno.EACCES:
            what = f"{remote.ip} is a broadcast address: give the peer's own as the remote one"
        case errno.EINVAL if remote.ip.is_link_local:
            what = f"{remote.ip} is link-local: say on which interface, such as {remote.ip}%eth0"
        case _:
            what = f"{remote} can't be reached: {os_reason(error)}"
    return KpollError(f"{option}: {what}")


def _enlarge(sock: socket.socket) -> None:
    """Let more wait in the socket: as much as we want where we may, else as much as net.core.[rw]mem_max allows."""
    for force, ask in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, ask, BUFFER_BYTES)


@contextlib.contextmanager
def bound_socket(local: Endpoint, option: str) -> Iterator[socket.socket]:
    """Open a non-blocking socket at `local`; close it on leaving. Raises KpollError that begins with `option`."""
    address = _address(local, option)
    family = socket.AF_INET6 if local.ip.version == 6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise KpollError(f"{option}: {os_reason(error)}") from error
    with sock:
        if family == socket.AF_INET6:
            # [::] without the IPv4 port of the same number, which may be somebody else's.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise _bind_error(error, local, option) from error
        _enlarge(sock)
        yield sock


def connect(sock: socket.socket, local: Endpoint, remote: Endpoint, option: str) -> None:
    """Connect a socket of `bound_socket` to the other end. Raises KpollError."""
    address = _address(remote, option)
    try:
        sock.connect(address)
    except OSError as error:
        raise _connect_error(error, local, remote, option) from error


def guest_mtu(connected: socket.socket, *, header: int = 0) -> int | None:
    """Return the MTU of a guest whose packets need not be fragmented on the way; None where there can't be one.

    Args:
        connected: A socket to the other end, which knows the path's MTU as far as it was found out.
        header: Bytes that are in front of each frame.

    """
    if connected.family == socket.AF_INET6:
        version, path = 6, connected.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    else:
        version, path = 4, connected.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    mtu = path - _IN_FRONT[version] - header  # the kernel never says more than IP has
    return mtu if mtu >= MTU_MIN else None


@contextlib.contextmanager
def open_udp(backend: UdpBackend) -> Iterator[socket.socket]:
    """Open the non-blocking socket between the two ends that `backend` names; close it on leaving.

    Raises KpollError when an end can't be had.
    """
    option = f"--backend {backend}"
    with bound_socket(backend.local, option) as sock:
        connect(sock, backend.local, backend.remote, option)
        yield sock
