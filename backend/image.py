"""Before a file or device is served: that it is what it is taken for, and that nobody else writes to it.

A regular file gets QEMU's byte-range locks (block/file-posix.c), so that QEMU's programs and ours keep out of each
other's images: for each permission that one has, a shared lock on byte 100 + its bit; for each that one doesn't grant
to others, on byte 200 + its bit. Who then finds somebody else's lock in the way steps back. A block device that we
write to is opened O_EXCL, which a mounted one, and one that somebody else opened so, refuses.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from .errors import KpollError, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid

_HAS: Final = 100  # RAW_LOCK_PERM_BASE
_DENIES: Final = 200  # RAW_LOCK_SHARED_BASE
_CONSISTENT_READ: Final = 0  # bits of BLK_PERM_*
_WRITE: Final = 1

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# Images that are no raw disk: name, where the magic is, what it is.
_MAGICS: Final = (
    ("qcow2", 0, b"QFI\xfb"),
    ("VMDK", 0, b"KDMV"),
    ("VHDX", 0, b"vhdxfile"),
    ("VDI", 0x40, b"\x7f\x10\xda\xbe"),
    ("QED", 0, b"QED\0"),
)
_HEAD: Final = 512


def image_format(head: bytes) -> str | None:
    """Name the format of an image that begins with `head`; None for raw data."""
    for name, at, magic in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    return None


def _lock(fd: int, command: int, kind: int, at: int) -> int:
    """Set a lock on one byte, or ask who is in its way. Returns the kind found. Raises OSError."""
    flock = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
    return int(_FLOCK.unpack(flock)[0])


def _lock_file(fd: int, *, read_only: bool) -> bool:
    """Take the locks of one who reads, and writes unless `read_only`, and lets nobody else write.

    Returns whether nobody is in the way. Raises OSError when this filesystem has no locks.
    """
    has = [_CONSISTENT_READ] if read_only else [_CONSISTENT_READ, _WRITE]
    try:
        for at in [*(_HAS + bit for bit in has), _DENIES + _WRITE]:
            _lock(fd, _F_OFD_SETLK, fcntl.F_RDLCK, at)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    conflicts = [*(_DENIES + bit for bit in has), _HAS + _WRITE]
    return all(_lock(fd, _F_OFD_GETLK, fcntl.F_WRLCK, at) == fcntl.F_UNLCK for at in conflicts)


@contextlib.contextmanager
def claim_file(path: str, target: int, *, read_only: bool) -> Iterator[None]:
    """Check a regular file, and keep other writers out until the end. Raises KpollError.

    Args:
        path: Its name, for messages.
        target: A descriptor of it.
        read_only: Whether we only read it; readers share.

    """
    # A descriptor of our own: the target's may be O_DIRECT, and what is behind `path` may be another file by now.
    try:
        fd = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KpollError(f"{path}: can't be opened again for its lock: {os_reason(error)}") from error
    try:
        try:
            free = _lock_file(fd, read_only=read_only)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise KpollError(f"{path}: can't be locked: {os_reason(error)}") from error
            free = True  # nothing can be done about it here, and QEMU goes on likewise
        if not free:
            raise KpollError(f"{path}: another process has this image open (QEMU or kpoll): stop that first")
        try:
            kind = image_format(os.pread(fd, _HEAD, 0))
        except OSError as error:
            raise KpollError(f"{path}: can't be read: {os_reason(error)}") from error
        if kind is not None:
            raise KpollError(
                f"{path}: is a {kind} image, only raw ones are served: convert it with `qemu-img convert -O raw`; "
                "if it is a raw one whose guest wrote that, serve it through a loop device (losetup)"
            )
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def claim_device(path: str) -> Iterator[None]:
    """Keep mounts and other exclusive users off a block device until the end. Raises KpollError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        what = "is mounted or used exclusively: unmount it or stop that first (--read-only would share it)"
        raise KpollError(f"{path}: {what if error.errno == errno.EBUSY else os_reason(error)}") from error
    try:
        yield
    finally:
        os.close(fd)
