"""Descriptors from a stranger: telling what they are, and letting go of them, without ever waiting.

Whoever sends a descriptor may own what is behind it: a file served by FUSE, a TCP socket that lingers, a pipe or
socket with a writer asleep in it, a unix socket with more of the like in its queue. fstat(2), getsockname(2) and
close(2) may then take as long as the sender likes, and the thread that steers serves others too. So kinds are told by
what the kernel itself says of the open file, and only what surely has nobody behind it is closed on the spot.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from outcome import Outcome

_settled = threading.Condition()
_closing = 0  # descriptors on their way out in threads


def _name(fd: int) -> str:
    # A file's path begins with "/": it can't pass for anything else. (A Path would swallow what looks like "./".)
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115


def is_unix_socket(fd: int) -> bool:
    """Whether it is an AF_UNIX socket. Not by getsockname(2), which waits for the lock of a TCP socket."""
    return _name(fd).startswith("socket:[") and os.getxattr(fd, "system.sockprotoname").startswith(b"UNIX")


def is_doorbell(fd: int) -> bool:
    """Whether it is an eventfd, a pipe, or a unix socket (user-mode Linux's idea of a pipe)."""
    name = _name(fd)
    return name == "anon_inode:[eventfd]" or name.startswith("pipe:[") or is_unix_socket(fd)


def discard(fd: int) -> None:
    """Close a descriptor: eventfds and memory at once, others in a thread that nobody waits for."""
    global _closing  # noqa: PLW0603 - threads have no other place to meet
    if _closes_at_once(fd):
        os.close(fd)
        return
    with _settled:
        _closing += 1
    trio.lowlevel.start_thread_soon(lambda: os.close(fd), _closed, name="discard")


def _closes_at_once(fd: int) -> bool:
    if _name(fd) == "anon_inode:[eventfd]":
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # memfd, tmpfs or hugetlbfs
    except OSError:
        return False
    return True


def _closed(_: Outcome[None]) -> None:
    global _closing  # noqa: PLW0603 - as above
    with _settled:
        _closing -= 1
        _settled.notify_all()


def wait_discarded(timeout: float) -> bool:
    """Wait until all that was discarded is closed, for those who count descriptors. False: not within `timeout`."""
    with _settled:
        return _settled.wait_for(lambda: _closing == 0, timeout)
