"""The disk behind a block device: the opened file or device, its limits, and the C side's `blk_dev` over them."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import ffi, lib

from .blk_config import EXTENT_MAX, LIFETIME_BYTES, DiskLimits
from .blk_namespace import discard_granularity, namespace_serial
from .config import SECTOR, SERIAL_BYTES
from .errors import KpollError
from .image import claim_device, claim_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import BlkConfig


def _open_error(path: str, error: int, *, read_only: bool) -> KpollError:
    """Say in one line why `path` can't be the disk, and what to do."""
    wish = "read" if read_only else "read and write"
    match error:
        case errno.ENOENT:
            what = "no such file: check --blk-file, or make an image with `truncate -s 10G` and the path"
        case errno.EISDIR:
            what = "is a directory: give a file or a block device"
        case errno.ENOTBLK:
            what = "is neither a regular file nor a block device: give one of these"
        case errno.EACCES | errno.EPERM:
            what = f"permission denied: this user has to be allowed to {wish} it"
            what += "" if read_only else " (--read-only needs less)"
        case errno.EROFS if Path(path).is_block_device():
            what = "is read-only (write-protected, or blockdev --setro): use --read-only"
        case errno.EROFS:
            what = "lies on a read-only filesystem: give --read-only"
        case errno.ETXTBSY | errno.EBUSY:
            what = f"{os.strerror(error)}: somebody else uses it exclusively, stop that first"
        case _:
            what = f"{os.strerror(error)}: it can't be opened to {wish}"
    return KpollError(f"{path}: {what}")


class Disk:
    """An open disk. Made by `open_disk`, which also closes it.

    Attributes:
        dev: The C side's `struct blk_dev *`.
        limits: What is underneath, constant while it is open.
        direct: Whether O_DIRECT works.
        polls: Whether it is a block device whose driver has queues to poll.
        nowait: Whether it knows RWF_NOWAIT.

    """

    def __init__(self, dev: Any) -> None:
        """Wrap an opened `dev`."""
        target = dev.target
        self.dev = dev
        self.direct = bool(target.direct) or target.fd < 0
        self.polls = bool(target.polls)
        self.nowait = bool(target.nowait)
        self.limits = DiskLimits(
            read_only=bool(dev.read_only),
            block_device=bool(target.block_device),
            logical_block=target.logical_block,
            physical_block=target.physical_block,
            offset_align=target.offset_align,
            io_min=target.io_min,
            io_opt=target.io_opt,
            alignment_offset=target.alignment_offset,
            discard_max=target.discard_max,
            discard_granularity=_discard_granularity(target),
            write_zeroes_max=target.write_zeroes_max,
            max_bytes=target.max_bytes,
            max_segments=target.max_segments,
            write_cache=bool(target.write_cache),
        )
        dev.max_discard_sectors = self.limits.extent_sectors(self.limits.discard_max)
        dev.max_write_zeroes_sectors = self.limits.extent_sectors(self.limits.write_zeroes_max)

    @property
    def fd(self) -> int:
        """The descriptor of the file or device; -1 for the null disk."""
        return int(self.dev.target.fd)

    @property
    def serial(self) -> bytes:
        """What the guest reads as the serial number, without the zeros that follow."""
        return bytes(ffi.buffer(self.dev.serial)).rstrip(b"\0")

    @property
    def capacity(self) -> int:
        """The size that the guest sees, in sectors."""
        return int(self.dev.capacity)

    @capacity.setter
    def capacity(self, sectors: int) -> None:
        # One aligned 64-bit store: a worker reads either the old or the new one.
        self.dev.capacity = sectors

    @property
    def lifetime(self) -> bytes:
        """What GET_LIFETIME answers; nothing: it isn't offered."""
        raw = int(self.dev.lifetime).to_bytes(8, sys.byteorder)
        return raw[:LIFETIME_BYTES] if any(raw) else b""

    @lifetime.setter
    def lifetime(self, value: bytes) -> None:
        # One aligned 64-bit store, as with the capacity.
        self.dev.lifetime = int.from_bytes(value.ljust(8, b"\0"), sys.byteorder)

    @property
    def write_back(self) -> bool:
        """Whether a write may complete before it is durable."""
        return bool(self.dev.write_back)

    @write_back.setter
    def write_back(self, value: bool) -> None:
        self.dev.write_back = int(value)

    def reopened(self) -> None:
        """Note that the descriptor is another disk's now; lanes heed it when they are joined anew."""
        lib.blk_dev_reopened(self.dev)

    def sync(self) -> None:
        """Make all that was written durable; blocks. Raises OSError."""
        error = -lib.io_target_flush(ffi.addressof(self.dev, "target"))
        if error:
            raise OSError(error, os.strerror(error))

    def sectors_now(self) -> int:
        """Return the size of what is underneath at this moment, in sectors, rounded down to the guest's blocks.

        Raises OSError.
        """
        size = int(lib.io_target_size(ffi.addressof(self.dev, "target")))
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        return size // self.limits.blk_size * self.limits.blk_size // SECTOR


def _open_target(target: Any, config: BlkConfig) -> None:
    """Open what `config` names into `target`. Raises KpollError."""
    if config.blk_file is None:
        lib.io_target_null(target, config.size)
        return
    path = config.blk_file
    error = -lib.io_target_open(target, os.fsencode(path), config.read_only)
    if error:
        raise _open_error(path, error, read_only=config.read_only)


def _check_size(path: str | None, size: int) -> None:
    """Refuse what can't be a disk for its size. Raises KpollError."""
    if size == 0:
        raise KpollError(f"{path}: is empty: give it a size, such as with `truncate -s 10G`")
    if size % SECTOR:
        pad = f"`truncate -s {-(-size // SECTOR) * SECTOR}`"
        raise KpollError(f"{path}: its size, {size} bytes, is no multiple of {SECTOR}: pad it with {pad}")


def _claim(target: Any, config: BlkConfig) -> AbstractContextManager[None]:
    """Keep others from writing to what is open."""
    if config.blk_file is None or (target.block_device and config.read_only):
        return nullcontext()
    if target.block_device:
        return claim_device(config.blk_file)
    return claim_file(config.blk_file, int(target.fd), read_only=config.read_only)


def _serial(target: Any, config: BlkConfig) -> bytes:
    """Return what GET_ID answers: what --serial says, else a namespace's own, else nothing."""
    return config.serial or (namespace_serial(target.fd) if target.block_device else b"")


def _discard_granularity(target: Any) -> int:
    """Return what is freed at once, in bytes: as the kernel has it, or more if a namespace says so.

    One that names more than a request may cover isn't believed.
    """
    known = int(target.discard_granularity)
    if not target.block_device or not target.discard_max:
        return known
    told = discard_granularity(target.fd)
    return told if known < told <= min(target.discard_max, EXTENT_MAX) else known


@contextmanager
def open_disk(config: BlkConfig) -> Iterator[Disk]:
    """Open the disk that `config` describes; close it on leaving, when nothing may use it any more.

    Raises KpollError with what to do when it can't be opened or can't be a disk.
    """
    dev = lib.blk_dev_create()
    if dev == ffi.NULL:
        raise KpollError("out of memory")
    try:
        target = ffi.addressof(dev, "target")
        _open_target(target, config)
        try:
            dev.capacity = target.size // SECTOR
            dev.read_only = config.read_only
            dev.write_back = 0  # until a driver says that it flushes
            ffi.memmove(dev.serial, _serial(target, config).ljust(SERIAL_BYTES, b"\0"), SERIAL_BYTES)
            with _claim(target, config):
                _check_size(config.blk_file, int(target.size))
                yield Disk(dev)
        finally:
            lib.io_target_close(target)
    finally:
        lib.blk_dev_destroy(dev)
