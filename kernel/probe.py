"""What the running kernel can do for a worker that waits, found out by asking it."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULE_DEVICE: Final = Path("/dev/eventfd_poll")  # EVENTFD_POLL_DEVICE, kernel/uapi/eventfd_poll_module.h
NET_BUSY_POLL: Final = Path("/proc/sys/net/core/busy_poll")
EVENTFD_BUSY_POLL: Final = Path("/proc/sys/fs/eventfd_busy_poll")

_INFO_BYTES: Final = 56  # struct eventfd_poll_info, kernel/uapi/eventfd_poll.h
_EVENTFD_SET_POLL: Final = 1 << 30 | _INFO_BYTES << 16 | 0xED00  # _IOW(0xED, 0x00, struct eventfd_poll_info)


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """What there is to poll with.

    Attributes:
        set_poll: Whether eventfds know the EVENTFD_SET_POLL ioctl: a patched kernel.
        module: 0 if the eventfd_poll module's device can be opened, else the errno.
        net_busy_poll_us: The sysctl net.core.busy_poll, microseconds; 0 also where it can't be read.
        eventfd_busy_poll_us: The sysctl fs.eventfd_busy_poll, which comes with the patch; likewise.

    """

    set_poll: bool = False
    module: int = errno.ENOENT
    net_busy_poll_us: int = 0
    eventfd_busy_poll_us: int = 0

    @property
    def spin_us(self) -> int:
        """How long a patched kernel spins at most: the larger of the two sysctls."""
        return max(self.net_busy_poll_us, self.eventfd_busy_poll_us)


def probe_kernel() -> KernelFacts:
    """Ask the kernel; what can't be asked isn't there."""
    return KernelFacts(
        set_poll=_has_set_poll(),
        module=_opening_fails(MODULE_DEVICE),
        net_busy_poll_us=_sysctl(NET_BUSY_POLL),
        eventfd_busy_poll_us=_sysctl(EVENTFD_BUSY_POLL),
    )


def _has_set_poll() -> bool:
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _EVENTFD_SET_POLL, bytes(_INFO_BYTES))  # OP_NONE: clears a condition that there isn't
    except OSError as error:
        return error.errno not in {errno.ENOTTY, errno.EPERM, errno.EACCES}
    finally:
        os.close(fd)
    return True


def _opening_fails(device: Path) -> int:
    """Return 0, or the errno."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _sysctl(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
