"""What the running kernel can do for a worker that waits, found out by asking it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULE_DEVICE: Final = Path("/dev/eventfd_poll")  # EVENTFD_POLL_DEVICE, kernel/uapi/eventfd_poll_module.h
NET_BUSY_POLL: Final = Path("/proc/sys/net/core/busy_poll")
EVENTFD_BUSY_POLL: Final = Path("/proc/sys/fs/eventfd_busy_poll")

_INFO: Final = struct.Struct("=QIIQQIIQQ")  # struct eventfd_poll_info, kernel/uapi/eventfd_poll.h
_OP_NOT_EQUAL: Final = 2
_F_ARM: Final = 1
_EVENTFD_SET_POLL: Final = 1 << 30 | _INFO.size << 16 | 0xED00  # _IOW(0xED, 0x00, struct eventfd_poll_info)
_EVENTFD_POLL_WRAP: Final = 0xED01  # _IO(0xED, 0x01), kernel/uapi/eventfd_poll_module.h


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """What there is to poll with.

    Attributes:
        patch: 0 if an eventfd takes a condition with an arm word, as a patched kernel's do; else the errno.
        module: 0 if the eventfd_poll module takes a condition; else the errno.
        net_busy_poll_us: The sysctl net.core.busy_poll, microseconds; None where it can't be read. So it is in every
            network namespace but the initial one, a container's for instance, though it holds there too.
        eventfd_busy_poll_us: The sysctl fs.eventfd_busy_poll, which comes with the patch; likewise.

    """

    patch: int = errno.ENOTTY
    module: int = errno.ENOENT
    net_busy_poll_us: int | None = None
    eventfd_busy_poll_us: int | None = None

    @property
    def set_poll(self) -> bool:
        """Whether eventfds know the EVENTFD_SET_POLL ioctl, and this process may use it."""
        return self.patch == 0

    @property
    def spin_us(self) -> int | None:
        """How long a patched kernel spins at most, as far as known: the larger sysctl. None: perhaps not at all."""
        sysctls = (self.net_busy_poll_us, self.eventfd_busy_poll_us)
        return max(us or 0 for us in sysctls) or (None if None in sysctls else 0)


def probe_kernel() -> KernelFacts:
    """Ask the kernel; what can't be asked isn't there."""
    return KernelFacts(
        patch=_patch_fails(),
        module=_module_fails(),
        net_busy_poll_us=_sysctl(NET_BUSY_POLL),
        eventfd_busy_poll_us=_sysctl(EVENTFD_BUSY_POLL),
    )


def _set_poll(fd: int, flags: int) -> None:
    """Have words of our own watched and, with F_ARM, written, as a worker will: any less might work where that doesn't.

    Raises OSError.
    """
    words = (ctypes.c_uint32 * 2)()
    word = ctypes.addressof(words)
    arm = word + ctypes.sizeof(ctypes.c_uint32) if flags & _F_ARM else 0
    fcntl.ioctl(fd, _EVENTFD_SET_POLL, _INFO.pack(word, 4, _OP_NOT_EQUAL, 0, 0, flags, 1, arm, 0))


def _patch_fails() -> int:
    """Return 0, or the errno."""
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            _set_poll(fd, _F_ARM)
        finally:
            os.close(fd)  # and with it the condition; nobody has polled, so its words were never written
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _module_fails() -> int:
    """Return 0, or the errno."""
    opened: list[int] = []
    try:
        opened.append(os.open(MODULE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        opened.append(os.eventfd(0, os.EFD_CLOEXEC))
        opened.append(fcntl.ioctl(opened[0], _EVENTFD_POLL_WRAP, opened[1]))
        _set_poll(opened[2], 0)
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        for fd in reversed(opened):
            os.close(fd)
    return 0


def _sysctl(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
