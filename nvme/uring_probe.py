"""What io_uring is allowed to do here, and whether it can poll devices: found out by setting rings up."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DISABLED: Final = Path("/proc/sys/kernel/io_uring_disabled")  # Linux 6.6 and later

_SETUP: Final = 425  # the same number on every architecture (it came after the tables were unified)
_SETUP_IOPOLL: Final = 1 << 0

# struct io_uring_params: what is asked of it here, by offset.
_PARAMS_SIZE: Final = 120
_FLAGS: Final = 8


@dataclass(frozen=True, kw_only=True)
class UringFacts:
    """What there is of io_uring.

    Attributes:
        setup: 0 if a ring can be had; else the errno.
        disabled: The sysctl kernel.io_uring_disabled: 1 leaves it to CAP_SYS_ADMIN and one group, 2 to nobody; None:
            the kernel has no such sysctl.
        iopoll: Whether a ring can poll devices (IOPOLL); None: there is no io_uring to ask.

    """

    setup: int = errno.ENOSYS
    disabled: int | None = None
    iopoll: bool | None = None


def probe_uring() -> UringFacts:
    """Ask the kernel; nothing is left behind."""
    disabled = _sysctl(DISABLED)
    if why := _fails(0):
        return UringFacts(setup=why, disabled=disabled)
    return UringFacts(setup=0, disabled=disabled, iopoll=not _fails(_SETUP_IOPOLL))


def _sysctl(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fails(flags: int) -> int:
    """Set a ring up for one request, and close it. Returns 0, or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(_PARAMS_SIZE)
    struct.pack_into("=I", params, _FLAGS, flags)
    fd = int(libc.syscall(ctypes.c_long(_SETUP), ctypes.c_uint(1), params))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0
