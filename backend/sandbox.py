"""What the daemon gives up once everything is open: so that a bug in it is worth little to a guest.

Four layers, each on its own: no new privileges (execve can't raise any), no capabilities, a seccomp filter without the
system calls that a disk server has no use for, and Landlock for the file system. They bind the calling thread and those
it starts later, so this comes before the first worker. It isn't in the way of anything the daemon does afterwards:
accepting front-ends and scrapes, mapping guest memory it is handed, hearing of size changes, removing its sockets.

io_uring's requests don't pass seccomp; only Landlock sees those that open files.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .landlock import restrict_files
from .seccomp import deny_syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAP_VERSION_3: Final = 0x20080522
_CAP_LAST: Final = 63

# What Python may still want to read: modules imported late, and the host's facts.
_READABLE: Final = ("/usr/lib", "/lib", "/lib64", "/proc", "/sys", "/etc/localtime")


CAP_NET_RAW: Final = 13
CAP_IPC_LOCK: Final = 14


@dataclass(frozen=True)
class Kept:
    """What a device can't give up.

    Attributes:
        capabilities: Their numbers.
        xdp: Whether it opens AF_XDP sockets again and directs frames to them.

    """

    capabilities: frozenset[int] = frozenset()
    xdp: bool = False


NOTHING_KEPT: Final = Kept()


@dataclass(frozen=True)
class Sandbox:
    """What is active, and why the rest isn't (layer: reason)."""

    active: tuple[str, ...]
    missing: dict[str, str]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def set_no_new_privs() -> None:
    """Let no execve(2) raise privileges from here on. Raises OSError."""
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def set_name(name: str) -> None:
    """Name this thread, for ps(1): at most 15 bytes. Raises OSError."""
    _check(_libc().prctl(_PR_SET_NAME, name.encode(), 0, 0, 0))


def set_undumpable() -> None:
    """Leave no core file, and let nobody of the same user look into this process. Raises OSError."""
    _check(_libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def drop_capabilities(kept: frozenset[int] = frozenset()) -> None:
    """Give capabilities up: all the bounding, ambient and inheritable ones, all others but `kept`. Raises OSError."""
    libc = _libc()
    for capability in range(_CAP_LAST + 1):
        # EPERM without CAP_SETPCAP: then there is none to lose; EINVAL beyond the kernel's last.
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of capabilities 0 to 31, then of the others
    _check(libc.capget(header, sets))
    left = sets[1] & sum(1 << capability for capability in kept)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)(left, left)))


def enter_sandbox(*, removable: Iterable[str], kept: Kept) -> Sandbox:
    """Give up what can be given up. Never raises: what this host can't do is in the result.

    Args:
        removable: Directories in which sockets of ours have to be removed at the end.
        kept: What the device needs later on.

    """
    ours = str(Path(__file__).resolve().parents[1])  # an editable install isn't beneath any of sys.path
    readable = {*_READABLE, ours, *sys.path, sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib")}
    layers: tuple[tuple[str, Callable[[], None]], ...] = (
        ("no_new_privs", set_no_new_privs),
        ("capabilities", lambda: drop_capabilities(kept.capabilities)),
        ("landlock", lambda: restrict_files(readable=readable, removable=removable)),
        ("seccomp", lambda: deny_syscalls(xdp=kept.xdp)),
    )
    active: list[str] = []
    missing: dict[str, str] = {}
    for name, apply in layers:
        try:
            apply()
        except OSError as error:
            missing[name] = error.strerror or str(error)
        else:
            active.append(name)
    return Sandbox(tuple(active), missing)
