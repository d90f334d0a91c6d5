"""Whether the connection below a disk over NVMe/TCP stands, told in the log when it is lost and when it is back.

The kernel tells nobody that a controller's state has changed. So the state is read each second, by a descriptor that
was opened before the sandbox closed.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_S: Final = 1.0
_LIVE: Final = "live"
_GONE: Final = "gone"


class ConnectionWatch:
    """Tells of one controller."""

    def __init__(self, controller: str, state_fd: int, log: FilteringBoundLogger) -> None:
        """Begin with a controller that is live.

        Args:
            controller: The kernel's name for it, such as nvme1.
            state_fd: Its `state` in sysfs.
            log: What to tell.

        """
        self._controller = controller
        self._state_fd = state_fd
        self._log = log
        self._lost: float | None = None

    async def run(self) -> None:
        """Look until the controller is gone for good: a new one gets another file."""
        while self.look() != _GONE:  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(LOOK_S)

    def look(self) -> str:
        """Look once; return the state: the kernel's word for it, such as `live` or `connecting`, or `gone`."""
        state = self._state()
        if state != _LIVE and self._lost is None:
            self._lost = time.monotonic()
            self._log.warning("nvme_connection_lost", controller=self._controller, state=state)
        elif state == _LIVE and self._lost is not None:
            seconds = round(time.monotonic() - self._lost, 1)
            self._lost = None
            self._log.info("nvme_connection_restored", controller=self._controller, seconds=seconds)
        return state

    def _state(self) -> str:
        try:
            return os.pread(self._state_fd, 64, 0).decode(errors="replace").strip() or _GONE
        except OSError:  # ENODEV: its device was removed
            return _GONE
