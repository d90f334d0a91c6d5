"""Landlock: this process opens files only where Python's own lie, and creates none (landlock(7)).

What is open already stays open, and so does what comes over a socket: the disk and guest memory don't need any rule.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# The same numbers on every architecture (they came after the tables were unified).
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

_VERSION: Final = 1 << 0
_PATH_BENEATH: Final = 1

_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_FILE: Final = 1 << 5

# How many access rights each ABI knows: all are handled, that is forbidden, unless a rule allows them.
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS: Final = 0b11  # bind and connect TCP, from ABI 4
_NET_ABI: Final = 4


def _call(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock.

    Raises OSError: ENOSYS where the kernel is built without it, EOPNOTSUPP where it was not turned on at boot.
    """
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))


def _ruleset(abi: int) -> int:
    """Make a ruleset that handles everything which `abi` knows of files and TCP."""
    handled_fs = (1 << _FS_RIGHTS[min(abi, max(_FS_RIGHTS))]) - 1
    # struct landlock_ruleset_attr: a kernel of an older ABI wants it shorter.
    attr = struct.pack("=QQ", handled_fs, _NET_RIGHTS) if abi >= _NET_ABI else struct.pack("=Q", handled_fs)
    return _call(_CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), ctypes.c_uint32(0))


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` beneath `path`, if there is such a thing."""
    try:
        fd = os.open(path or ".", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path or "."):  # noqa: PTH112
            rights &= _READ_FILE
        attr = struct.pack("=Qi", rights, fd)  # struct landlock_path_beneath_attr, packed
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), attr, ctypes.c_uint32(0))
    finally:
        os.close(fd)


def restrict_files(*, readable: Iterable[str], removable: Iterable[str]) -> None:
    """Confine this thread, and those it starts: reading beneath `readable`, unlinking beneath `removable`, no more.

    Needs no_new_privs. Raises OSError, ENOSYS or EOPNOTSUPP where there is no Landlock; nothing is restricted then.
    """
    abi = landlock_abi()
    ruleset = _ruleset(abi)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in removable:
            _allow(ruleset, path, _REMOVE_FILE)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
