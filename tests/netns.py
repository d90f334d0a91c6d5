"""A test in a network of its own: whatever interfaces it makes or breaks there are gone with it.

A network namespace belongs to a thread, and lives as long as anybody uses it. So the test runs in a thread that enters
one and ends: nothing can be left behind, and the host's own network is never seen. A new one has nothing but a loopback
interface that is down. Capabilities are a thread's own as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")

_CLONE_NEWNET = 0x40000000
_CAP_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 0x1


def _check(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def in_own_network(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a new network namespace; skip it for who may not make one."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        def body() -> None:
            try:
                _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET))
            except PermissionError:
                pytest.skip("a network namespace takes root")
            test(*args, **kwargs)

        with ThreadPoolExecutor(1) as executor:
            executor.submit(body).result()

    return run


def give_up_capabilities() -> None:
    """Leave this thread without any capability, as an ordinary user is."""
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    _check(ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()))


def set_up(name: str, *, up: bool = True) -> None:
    """Do what `ip link set dev NAME up` (or down) does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = bytearray(struct.pack("16sH22x", name.encode(), 0))
        fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", request, 16)
        struct.pack_into("H", request, 16, flags | _IFF_UP if up else flags & ~_IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
