"""Makes and deletes taps as `ip tuntap` and `ip link` do; for tests in a network of their own (netns.py)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

TUN_PATH = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x0100, 0x1000, 0x4000
IFF_QEMU = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR  # how QEMU opens its taps

_RTM_DELLINK = 17
_NLM_F_REQUEST_ACK = 0x5


def attach(name: str, flags: int = IFF_QEMU) -> int:
    """Open an interface, and make it if there is none; one that was made so goes with its last descriptor."""
    fd = os.open(TUN_PATH, os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


def make(name: str, flags: int = IFF_QEMU, *, owner: int | None = None) -> None:
    """Make an interface that stays without a descriptor, as `ip tuntap add` does."""
    fd = attach(name, flags)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    if owner is not None:
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
    os.close(fd)


def delete(name: str) -> None:
    """Delete an interface, also while somebody has it open, as `ip link del` does."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as rtnl:
        info = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
        rtnl.send(struct.pack("=IHHII", 16 + len(info), _RTM_DELLINK, _NLM_F_REQUEST_ACK, 1, 0) + info)
        (error,) = struct.unpack_from("=i", rtnl.recv(4096), 16)
        assert error == 0, os.strerror(-error)
