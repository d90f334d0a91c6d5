"""What the running kernel can do for a worker that waits, found out by asking it."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from typing import Final

_INFO_BYTES: Final = 56  # struct eventfd_poll_info, kernel/uapi/eventfd_poll.h
_EVENTFD_SET_POLL: Final = 1 << 30 | _INFO_BYTES << 16 | 0xED00  # _IOW(0xED, 0x00, struct eventfd_poll_info)


@dataclass(frozen=True)
class KernelFacts:
    """`set_poll`: whether eventfds know the EVENTFD_SET_POLL ioctl."""

    set_poll: bool


def probe_kernel() -> KernelFacts:
    """Ask the kernel; what can't be asked isn't there."""
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        return KernelFacts(set_poll=False)
    try:
        fcntl.ioctl(fd, _EVENTFD_SET_POLL, bytes(_INFO_BYTES))  # OP_NONE: clears a condition that there isn't
    except OSError as error:
        return KernelFacts(set_poll=error.errno not in {errno.ENOTTY, errno.EPERM, errno.EACCES})
    finally:
        os.close(fd)
    return KernelFacts(set_poll=True)
