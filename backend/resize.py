"""A disk that grows under a running guest: who tells us, and what we do then.

A file's size changes are told by inotify(7), a block device's by the kernel's uevents, and SIGHUP works for both.
There is no timer: an idle daemon doesn't wake up. Writes of our own make inotify speak too, so after each look we turn
away for a second, and a disk that is written all day costs one fstat() a second at most.

Shrinking isn't passed on. The guest's filesystem may reach to the old end; what it asks for there gets IOERR.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from .blk_device import BlkDevice

THROTTLE_S: Final = 1.0

_IN_MODIFY: Final = 0x2
_IN_CLOSE_WRITE: Final = 0x8
_NETLINK_KOBJECT_UEVENT: Final = 15
_UEVENT_KERNEL_GROUP: Final = 1
_DRAIN_BYTES: Final = 65536
_FROM_KERNEL: Final = 0  # nl_pid of the sender


def watch_file(fd: int) -> int:
    """Watch the open file behind `fd` for writes and truncation.

    Returns an inotify descriptor, which the caller closes. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    # Through /proc, so that it is the file that we opened, whatever its name stands for by now.
    path = f"/proc/self/fd/{fd}".encode()
    if inotify < 0 or libc.inotify_add_watch(inotify, path, _IN_MODIFY | _IN_CLOSE_WRITE) < 0:
        error = ctypes.get_errno()
        if inotify >= 0:
            os.close(inotify)
        raise OSError(error, os.strerror(error))
    return int(inotify)


def open_uevents() -> socket.socket:
    """Open a netlink socket that receives the kernel's uevents. Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
    try:
        sock.bind((0, _UEVENT_KERNEL_GROUP))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def is_change_of(message: bytes, device: int) -> bool:
    """Whether a uevent says that block device `device` (a dev_t) changed.

    Not every driver puts RESIZE=1 into it (device-mapper doesn't), so any change is a reason to look.
    """
    fields = message.split(b"\0")
    return (
        b"ACTION=change" in fields
        and b"SUBSYSTEM=block" in fields
        and b"MAJOR=%d" % os.major(device) in fields
        and b"MINOR=%d" % os.minor(device) in fields
    )


class ResizeWatch:
    """Keeps the guest's idea of the disk's size true.

    Resource handling: `close` closes the descriptors that `open` got.
    """

    def __init__(self, device: BlkDevice, log: FilteringBoundLogger) -> None:
        """Watch the disk behind `device`, once `open` was called."""
        self._device = device
        self._log = log
        self._inotify: int | None = None
        self._uevents: socket.socket | None = None
        self._told = device.disk.capacity  # sectors, the last size that we acted on
        self._looking = trio.Lock()

    def open(self) -> None:
        """Get the descriptors, while we still may. What can't be had is logged; SIGHUP always works."""
        fd = self._device.disk.fd
        if fd < 0:
            return
        try:
            status = os.fstat(fd)
            if stat.S_ISBLK(status.st_mode):
                self._uevents = open_uevents()
            else:
                self._inotify = watch_file(fd)
        except OSError as error:
            self._log.warning("resize_unwatched", error=str(error))

    def close(self) -> None:
        """Close the descriptors."""
        if self._inotify is not None:
            os.close(self._inotify)
        if self._uevents is not None:
            self._uevents.close()

    async def run(self) -> None:
        """Look at the size whenever somebody says that it may have changed, until cancelled."""
        if self._inotify is not None:
            await self._run_file(self._inotify)
        elif self._uevents is not None:
            await self._run_device(self._uevents)

    async def check(self) -> None:
        """Compare the size underneath with what the guest knows, and pass growth on."""
        async with self._looking:
            disk = self._device.disk
            try:
                sectors = disk.sectors_now()
            except OSError as error:
                self._log.error("resize_failed", error=str(error))
                return
            if sectors == self._told:
                return
            self._told = sectors
            if sectors <= disk.capacity:
                if sectors < disk.capacity:
                    self._log.warning("shrunk", sectors=sectors, capacity=disk.capacity)
                return
            disk.capacity = sectors
            self._log.info("resized", capacity=sectors)
            await self._device.config_changed()

    async def _run_file(self, inotify: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(inotify)
            with contextlib.suppress(BlockingIOError):
                os.read(inotify, _DRAIN_BYTES)
            await self.check()
            await trio.sleep(THROTTLE_S)  # what happens meanwhile stays queued, and wakes us then

    def _device_number(self) -> int:
        """Return what is behind the descriptor now: a disk that came back may have another number (blk_return.py)."""
        return os.fstat(self._device.disk.fd).st_rdev

    async def _run_device(self, uevents: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(uevents)
            try:
                message, sender = uevents.recvfrom(_DRAIN_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                await self.check()  # ENOBUFS: some were lost, ours may be among them
                continue
            if sender[0] == _FROM_KERNEL and is_change_of(message, self._device_number()):
                await self.check()
