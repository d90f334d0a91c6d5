"""A disk whose completions were to be polled for, and aren't any more: the log says so, once, and I/O goes on.

The device refuses (a layer above it, more likely), which an engine tells by an eventfd; or it was deleted and is back,
and its driver has no poll queues now: older kernels don't refuse then, but raise interrupts.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import trio

from kpoll.nvme import sysfs
from kpoll.nvme.poll_queues import polls

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from .blk_device import BlkDevice


class UnpolledWatch:
    """Tells of it.

    Resource handling: made while no worker runs; `close` closes its eventfd, when none runs any more.
    """

    def __init__(self, device: BlkDevice, log: FilteringBoundLogger, sys: Path = sysfs.SYS) -> None:
        """Watch the disk behind `device`, of which there is nothing to tell if it isn't polled; sysfs is at `sys`."""
        self._device = device
        self._disk = device.disk
        self._log = log
        self._sys = sys
        self._told = False
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._disk.dev.target.unpolled_fd = self._event_fd

    def close(self) -> None:
        """Close the eventfd."""
        self._disk.dev.target.unpolled_fd = -1
        os.close(self._event_fd)

    async def run(self) -> None:
        """Log that it is refused, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._event_fd)
            with contextlib.suppress(BlockingIOError):
                os.read(self._event_fd, 8)
            self._tell("the device, or a layer above it, refuses to be polled")

    def returned(self) -> None:
        """Look at the disk anew: it was deleted, and is back."""
        if not self._device.engine.iopoll:
            return
        self._told = False
        folder = sysfs.block_folder(os.fstat(self._disk.fd).st_rdev, self._sys)
        if polls(folder.resolve().name, self._sys) is False:
            self._tell("it is back, and its driver has no poll queues now")

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._log.warning("iopoll_lost", error=f"{why}: completions come by interrupt")
