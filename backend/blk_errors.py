"""A disk that fails its requests: the log tells when that begins and when it is over, never a line per request.

What becomes of a request is decided in C (c/blk_errors.c, --on-error). A worker tells of the first failure through an
eventfd; from then on, until it is over, a look a second. A disk that works costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import trio

from kpoll.vhost._core import lib

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from .blk_device import BlkDevice
    from .config import type_on_error

POLICIES: Final[dict[type_on_error, int]] = {
    "report": lib.BLK_REPORT,
    "retry": lib.BLK_RETRY,
    "stop": lib.BLK_STOP,
}
"""--on-error as the C side's `enum blk_on_error`."""

LOOK_S: Final = 1.0
CALM_S: Final = 5.0  # without a failure, until what the guest is told of counts as over

_IO: Final = int(lib.BLK_E_IO)
_TOLD, _LOGGED = 1, 2  # what `told` may be, beside 0


class ErrorWatch:
    """Tells the story of a disk's failures, and has what waits tried again when the operator says so.

    Resource handling: made while no worker runs; `close` closes its eventfd, when none runs any more.
    """

    def __init__(self, device: BlkDevice, policy: type_on_error, log: FilteringBoundLogger) -> None:
        """Watch `device`, whose failed requests are treated as `policy` says."""
        self._device = device
        self._policy = policy
        self._log = log
        self._dev = device.disk.dev
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._before = (0, 0)  # what _counts() said when all was well last
        self._dev.on_error = POLICIES[policy]
        self._dev.event_fd = self._event_fd

    def close(self) -> None:
        """Close the eventfd."""
        self._dev.event_fd = -1
        os.close(self._event_fd)

    async def run(self) -> None:
        """Log what happens, until cancelled."""
        while True:
            await self._told()
            if self._dev.told:
                await self._episode()

    def resume(self) -> None:
        """Have all that waits tried again now, and what comes let through: where queues were stopped nothing waits."""
        kept = self._kept()
        if kept == 0 and not self._dev.stopped:
            return
        self._log.info("disk_resumed", waiting=kept)
        lib.blk_dev_resume(self._dev)
        for worker in self._device.workers:
            worker.wake()

    def disk_returned(self) -> None:
        """Don't let it wait for the next try; but under `stop` it is the operator who says that all is well."""
        if self._policy == "retry":
            self.resume()

    async def _episode(self) -> None:
        """From the first failure until all is well again."""
        began = trio.current_time()
        failed, last = began, self._before[0]
        while True:
            self._begin()
            with trio.move_on_after(LOOK_S):
                await self._told()
            now = trio.current_time()
            reported, retried = self._counts()
            if reported != last:
                failed, last = now, reported
            if self._kept() or self._dev.stopped:
                continue
            if reported == self._before[0]:
                ended = now
            elif now - failed >= CALM_S:
                ended = failed
            else:
                continue
            if lib.blk_dev_calm(self._dev) and self._kept() == 0:
                break
            self._dev.told = _TOLD  # it has failed again since we looked
        self._log.info(
            "disk_errors_over",
            seconds=round(ended - began, 3),
            reported=reported - self._before[0],
            retried=retried - self._before[1],
        )
        self._before = reported, retried

    def _begin(self) -> None:
        """Log that it fails, unless that was logged: the first time, and when it was resumed and fails again."""
        if self._dev.told != _TOLD:
            return
        self._dev.told = _LOGGED
        self._log.error(
            "disk_errors", error=os.strerror(self._dev.error), on_error=self._policy, stopped=bool(self._dev.stopped)
        )

    async def _told(self) -> None:
        await trio.lowlevel.wait_readable(self._event_fd)
        with contextlib.suppress(BlockingIOError):
            os.read(self._event_fd, 8)

    def _kept(self) -> int:
        return sum(int(queue.stats.kept) for queue in self._device.queues)

    def _counts(self) -> tuple[int, int]:
        """Return how many failures the guest was told of so far, and how many it wasn't."""
        stats = [queue.stats for queue in self._device.queues]
        reported = sum(int(each.errors[op][_IO]) for each in stats for op in range(lib.BLK_OPS))
        return reported, sum(int(each.failures[op]) for each in stats for op in range(lib.BLK_OPS))
