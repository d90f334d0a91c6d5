"""What an NVMe namespace under a disk is, beyond what the kernel tells of every block device."""

from __future__ import annotations

import os
import stat
from typing import Final

from kpoll.nvme import sysfs
from kpoll.nvme.pages import IdentifyNamespace

_UNKNOWN: Final = 0


def is_nvme(fd: int) -> bool:
    """Whether a descriptor is of an NVMe namespace, or a partition of one; -1 isn't."""
    return fd >= 0 and sysfs.identify(f"/proc/self/fd/{fd}") is not None


def namespace_serial(fd: int) -> bytes:
    """Return a namespace's serial number, at most 20 bytes; nothing for any other disk."""
    status = os.fstat(fd)
    return (sysfs.serial(status.st_rdev) or "").encode() if stat.S_ISBLK(status.st_mode) else b""


def discard_granularity(fd: int) -> int:
    """Return what a namespace says it frees at once, in bytes; 0 for any other disk, and where it can't be asked.

    Linux 6.1 takes that for a block, whatever NPDG says. To ask takes root there; without, the kernel's word stands.
    """
    if not namespace_serial(fd):
        return _UNKNOWN
    from kpoll.nvme.libnvme import StatusError, load  # noqa: PLC0415 - most disks need none of it

    library = load()
    if library is None:
        return _UNKNOWN
    try:
        return IdentifyNamespace.parse(library.identify_namespace(fd)).discard_granularity or _UNKNOWN
    except (OSError, StatusError):
        return _UNKNOWN
