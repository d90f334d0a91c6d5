"""A disk that was deleted under us is served again as soon as it is back (blk_opener.py says how it is opened).

The kernel tells of every new block device (uevents), so nobody looks in vain. The new descriptor takes the old one's
number in one step (dup3), and so all who use that number from then on use the new disk.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .blk_opener import device_bytes, is_gone
from .config import SECTOR
from .resize import open_uevents

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from .blk_device import BlkDevice
    from .blk_opener import Opener

_DRAIN_BYTES: Final = 65536
_TRIES: Final = 50  # the node in /dev comes after the event, and udev opens it too
_TRY_S: Final = 0.1
_SERVE_S: Final = 1.0  # what a worker lacks, descriptors or memory, may be there then


class ReturnWatch:
    """Opens a disk again that was deleted and is back.

    Resource handling: `close` closes what `open` and `run` got.
    """

    def __init__(
        self,
        device: BlkDevice,
        opener: Opener | None,
        returned: Callable[[], Awaitable[None]],
        log: FilteringBoundLogger,
    ) -> None:
        """Watch the disk behind `device`, which `opener` can open again; `returned` is called when it has been."""
        self._device = device
        self._disk = device.disk
        self._opener = opener
        self._returned = returned
        self._log = log
        self._uevents: socket.socket | None = None
        self._claim: int | None = None
        self._missing = False
        self._refused = -1  # bytes, of one that was too small: told once
        self._looking = trio.Lock()

    def open(self) -> None:
        """Get what it takes while we still may; without it, SIGHUP makes us look."""
        if self._opener is not None:
            try:
                self._uevents = open_uevents()
            except OSError:
                self._uevents = None  # ResizeWatch has logged why

    def close(self) -> None:
        """Close the descriptors."""
        if self._uevents is not None:
            self._uevents.close()
        if self._claim is not None:
            os.close(self._claim)

    async def run(self) -> None:
        """Open the disk again whenever it has gone and come, until cancelled."""
        if self._uevents is None:
            return
        while True:
            await trio.lowlevel.wait_readable(self._uevents)
            try:
                message, sender = self._uevents.recvfrom(_DRAIN_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                message, sender = b"", (0, 0)  # ENOBUFS: some were lost
            if sender[0] == 0 and (not message or b"SUBSYSTEM=block" in message.split(b"\0")):
                await self.look(tries=_TRIES if message.startswith(b"add@") else 1)

    async def look(self, tries: int = 1) -> None:
        """If the disk is gone, try to have it back, so often; nothing if somebody is at it already."""
        if self._looking.locked():
            return
        async with self._looking:
            await self._look(tries)

    async def _look(self, tries: int) -> None:
        if self._opener is None or not self._gone():
            return
        if not self._missing:
            self._missing = True
            self._log.error("disk_gone")
        for _ in range(tries):
            found = await trio.to_thread.run_sync(self._opener.ask, abandon_on_cancel=True)
            if found is not None and await self._take(self._opener, *found):
                return
            if tries > 1:
                await trio.sleep(_TRY_S)

    def _gone(self) -> bool:
        status = os.fstat(self._disk.fd)
        return stat.S_ISBLK(status.st_mode) and is_gone(status.st_rdev)

    async def _take(self, opener: Opener, fd: int, claim: int) -> bool:
        """Put a disk in the old one's place; returns whether it is there, and served."""
        fits = self._is_large_enough(fd)
        outdated: int | None = claim
        if fits:
            os.dup2(fd, self._disk.fd, inheritable=False)
            outdated, self._claim = self._claim, claim
        os.close(fd)
        if outdated is not None:
            os.close(outdated)
        await trio.to_thread.run_sync(partial(opener.settle, taken=fits), abandon_on_cancel=True)
        if not fits or not await self._serve():
            return False
        self._missing = False
        self._log.info("disk_returned", namespace=os.path.basename(os.readlink(f"/proc/self/fd/{claim}")))  # noqa: PTH115, PTH119
        await self._returned()
        return True

    async def _serve(self) -> bool:
        """Have the workers use it, which may take several tries; returns False when it has gone again meanwhile."""
        told = False
        while True:
            try:
                await self._device.reopened()
            except OSError as error:
                if not told:
                    self._log.error(
                        "disk_return_failed", error=f"a worker can't take it: {error}: tried again each second"
                    )
                told = True
            else:
                return True
            await trio.sleep(_SERVE_S)
            if self._gone():
                return False

    def _is_large_enough(self, fd: int) -> bool:
        """Whether it has all that the guest knows of."""
        try:
            size = device_bytes(fd)
        except OSError:
            size = 0
        if size == 0:  # it has gone again
            return False
        if size >= self._disk.capacity * SECTOR:
            self._refused = -1
            return True
        if size != self._refused:
            self._refused = size
            error = f"has {size // SECTOR} sectors now, and the guest knows of {self._disk.capacity}"
            self._log.error("disk_return_failed", error=f"{error}: make it as large again")
        return False
