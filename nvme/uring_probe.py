"""What io_uring is allowed to do here, and what this kernel's can: found out by setting rings up.

Nothing is submitted to any device but a command that must be refused: see `_discards`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

DISABLED: Final = Path("/proc/sys/kernel/io_uring_disabled")  # Linux 6.6 and later

# The same numbers on every architecture (they came after the tables were unified).
_SETUP: Final = 425
_ENTER: Final = 426

_SETUP_IOPOLL: Final = 1 << 0
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13
_SETUP_HYBRID_IOPOLL: Final = 1 << 17
_ENTER_GETEVENTS: Final = 1 << 0

# struct io_uring_params: what is asked of it here, by offset. Then io_uring(7)'s mappings.
_PARAMS_SIZE: Final = 120
_CQ_ENTRIES: Final = 4
_FLAGS: Final = 8
_SQ_TAIL, _SQ_ARRAY = 44, 64
_CQ_HEAD, _CQ_CQES = 80, 100
_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x10000000
_CQE: Final = struct.Struct("=QiI")
_SQE: Final = struct.Struct("=BBHiIIQIIQHHIQQ")

_OP_URING_CMD: Final = 46
_BLOCK_URING_CMD_DISCARD: Final = 0x1200  # _IO(0x12, 0), linux/blkdev.h
_NO_SUCH_CMD: Final = 0x12FF

# Whom the question may be put to, best first: to open one of these wakes nothing up.
_NODES: Final = tuple(re.compile(form) for form in (r"loop\d+", r"nvme\d+n\d+", r"zram\d+", r"vd[a-z]+", r"sd[a-z]+"))


@dataclass(frozen=True, kw_only=True)
class UringFacts:
    """What there is of io_uring; of the flags None when there is no io_uring to ask.

    Attributes:
        setup: 0 if a ring can be had; else the errno.
        disabled: The sysctl kernel.io_uring_disabled: 1 leaves it to CAP_SYS_ADMIN and one group, 2 to nobody; None:
            the kernel has no such sysctl.
        defer_taskrun: Whether a ring can be one thread's own (SINGLE_ISSUER, DEFER_TASKRUN).
        iopoll: Whether a ring can poll devices (IOPOLL).
        hybrid_iopoll: Whether it can sleep for a while before it polls (HYBRID_IOPOLL).
        discard: Whether block devices take discards by command (BLOCK_URING_CMD_DISCARD); None as well when this
            user may open no device to ask.

    """

    setup: int = errno.ENOSYS
    disabled: int | None = None
    defer_taskrun: bool | None = None
    iopoll: bool | None = None
    hybrid_iopoll: bool | None = None
    discard: bool | None = None


def probe_uring() -> UringFacts:
    """Ask the kernel; nothing is left behind."""
    disabled = _sysctl(DISABLED)
    if why := _fails(0):
        return UringFacts(setup=why, disabled=disabled)
    return UringFacts(
        setup=0,
        disabled=disabled,
        defer_taskrun=not _fails(_SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN),
        iopoll=not _fails(_SETUP_IOPOLL),
        hybrid_iopoll=not _fails(_SETUP_IOPOLL | _SETUP_HYBRID_IOPOLL),
        discard=_discard(),
    )


def _sysctl(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _call(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@contextmanager
def _ring(flags: int) -> Iterator[tuple[int, bytes]]:
    """Set a ring up for one request. Yields its descriptor and struct io_uring_params. Raises OSError."""
    params = ctypes.create_string_buffer(_PARAMS_SIZE)
    struct.pack_into("=I", params, _FLAGS, flags)
    fd = _call(_SETUP, ctypes.c_uint(1), params)
    try:
        yield fd, params.raw
    finally:
        os.close(fd)


def _fails(flags: int) -> int:
    """Return 0, or the errno."""
    try:
        with _ring(flags):
            return 0
    except OSError as error:
        return error.errno or errno.EIO


def _discard() -> bool | None:
    """Ask the first block device that this user may open for reading."""
    try:
        names = sorted(os.listdir("/sys/block"))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return None
    for form in _NODES:
        for name in filter(form.fullmatch, names):
            try:
                fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                return _discards(fd)
            except OSError:
                return None
            finally:
                os.close(fd)
    return None


def _discards(fd: int) -> bool:
    """Find out whether a block device knows BLOCK_URING_CMD_DISCARD. Raises OSError.

    Nothing can be discarded: `fd` is open for reading only, and the range is empty. A kernel that knows the command
    says EBADF, or EOPNOTSUPP of a device that can't discard; others say so of every command, or EINVAL.
    """
    assert fd >= 0
    refusal, other = _command(fd, _BLOCK_URING_CMD_DISCARD), _command(fd, _NO_SUCH_CMD)
    return refusal == errno.EBADF or (refusal == errno.EOPNOTSUPP and other == errno.EINVAL)


def _command(fd: int, command: int) -> int:
    """Send a device a command about nothing; returns the errno of its answer, or 0. Raises OSError."""
    with _ring(0) as (ring, params):

        def number(offset: int) -> int:
            return int(struct.unpack_from("=I", params, offset)[0])

        cqes = number(_CQ_CQES)
        size = max(cqes + number(_CQ_ENTRIES) * _CQE.size, number(_SQ_ARRAY) + 4)
        # Both rings in one mapping: so it is since Linux 5.4, and URING_CMD came with 5.19.
        with mmap.mmap(ring, size, offset=_OFF_SQ_RING) as rings, mmap.mmap(ring, 4096, offset=_OFF_SQES) as sqes:
            _SQE.pack_into(sqes, 0, _OP_URING_CMD, 0, 0, fd, command, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            struct.pack_into("=I", rings, number(_SQ_ARRAY), 0)
            struct.pack_into("=I", rings, number(_SQ_TAIL), 1)
            _call(_ENTER, ctypes.c_int(ring), 1, 1, ctypes.c_uint(_ENTER_GETEVENTS), None, ctypes.c_size_t(0))
            head = struct.unpack_from("=I", rings, number(_CQ_HEAD))[0]
            assert head == 0
            return -int(_CQE.unpack_from(rings, cqes)[1])
