"""Announcing a guest after it has moved here, for one that can't do that itself (VHOST_USER_SEND_RARP).

A broadcast from the guest's address teaches the switches on its way where the guest is now. By convention it is a
request of the Reverse Address Resolution Protocol (RFC 903) for its own address, which nobody answers any more.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from .net_tap import VNET_HDR_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .net_tap import Tap

    type_send = Callable[[bytes], None]

_FRAME_MIN: Final = 60  # of Ethernet, without the check sequence
_HEADER: Final = bytes.fromhex("80350001080006040003")  # Ethertype; Ethernet, IPv4, 6 and 4 bytes, request reverse
_VXLAN_VNI_VALID: Final = 1 << 27  # RFC 7348 §5


def rarp_frame(mac: bytes) -> bytes:
    """Make the frame that announces an address."""
    return (b"\xff" * 6 + mac + _HEADER + (mac + bytes(4)) * 2).ljust(_FRAME_MIN, b"\0")


def send_twice(send: type_send, frame: bytes) -> None:
    """Send a frame, a second time if the first one fails: that may be the error of an earlier datagram. Raises OSError.

    A socket tells of what came back by ICMP (ECONNREFUSED) once, at the next call, which then does nothing else.
    """
    try:
        send(frame)
    except OSError:
        send(frame)


def send_by_tap(tap: Tap) -> type_send:
    """Return what sends a frame out of the guest's end of a tap, raising OSError."""

    def send(frame: bytes) -> None:
        if not tap.attached:  # to all queues: of one that is back our header's size is set last
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        os.write(tap.fds[0], bytes(VNET_HDR_BYTES) + frame)

    return send


def send_by_udp(sock: socket.socket) -> type_send:
    """Return what sends a frame as a datagram of its own, raising OSError."""

    def send(frame: bytes) -> None:
        sock.send(frame, socket.MSG_DONTWAIT)

    return send


def send_by_vxlan(sock: socket.socket, vni: int, remote: tuple[Any, ...]) -> type_send:
    """Return what sends a frame to the socket address that is a VXLAN segment's other end, raising OSError."""
    header = struct.pack(">II", _VXLAN_VNI_VALID, vni << 8)

    def send(frame: bytes) -> None:
        sock.sendmsg([header, frame], [], socket.MSG_DONTWAIT, remote)

    return send
