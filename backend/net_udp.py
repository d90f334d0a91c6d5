"""The socket behind `--backend udp:LOCAL,REMOTE`: bound to one end, connected to the other.

Connected, so that the kernel drops what others send, and says when nobody listens at the other end.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

from .errors import KpollError, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .net_options import Endpoint, UdpBackend


def _address(end: Endpoint, backend: UdpBackend) -> tuple[str | int | bytes, ...]:
    """Return the end as the socket calls take it, with an IPv6 zone as a number. Raises KpollError: no such zone."""
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        found = socket.getaddrinfo(str(end.ip), end.port, type=socket.SOCK_DGRAM, flags=flags)
    except socket.gaierror:
        raise KpollError(f"--backend {backend}: {end.ip} names no interface of this host after its %") from None
    return found[0][4]


def _bind_error(error: OSError, backend: UdpBackend) -> KpollError:
    local = backend.local
    match error.errno:
        case errno.EADDRINUSE:
            what = f"port {local.port} is in use at {local.ip}: stop who has it (`ss -lunp`), or use another port"
        case errno.EADDRNOTAVAIL:
            what = f"{local.ip} is no address of this host: give one that `ip address` shows as LOCAL"
        case errno.EACCES:
            what = f"port {local.port} takes the capability CAP_NET_BIND_SERVICE: use one from 1024 on"
        case errno.EINVAL if local.ip.is_link_local:
            what = f"{local.ip} is link-local: say on which interface, such as {local.ip}%eth0"
        case _:
            what = f"{local} can't be bound: {os_reason(error)}"
    return KpollError(f"--backend {backend}: {what}")


def _connect_error(error: OSError, backend: UdpBackend) -> KpollError:
    remote = backend.remote
    match error.errno:
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            what = f"there is no route from {backend.local.ip} to {remote.ip}: see `ip route get {remote.ip}`"
        case errno.EACCES:
            what = f"{remote.ip} is a broadcast address: give the peer's own as REMOTE"
        case errno.EINVAL if remote.ip.is_link_local:
            what = f"{remote.ip} is link-local: say on which interface, such as {remote.ip}%eth0"
        case _:
            what = f"{remote} can't be reached: {os_reason(error)}"
    return KpollError(f"--backend {backend}: {what}")


@contextlib.contextmanager
def open_udp(backend: UdpBackend) -> Iterator[socket.socket]:
    """Open the non-blocking socket between the two ends that `backend` names; close it on leaving.

    Raises KpollError when an end can't be had.
    """
    local, remote = _address(backend.local, backend), _address(backend.remote, backend)
    family = socket.AF_INET6 if backend.local.ip.version == 6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise KpollError(f"--backend {backend}: {os_reason(error)}") from error
    with sock:
        if family == socket.AF_INET6:
            # [::] without the IPv4 port of the same number, which may be somebody else's.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(local)
        except OSError as error:
            raise _bind_error(error, backend) from error
        try:
            sock.connect(remote)
        except OSError as error:
            raise _connect_error(error, backend) from error
        yield sock
