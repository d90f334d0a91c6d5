"""Why a card's frames are dropped, for the log: what its ports were told by the kernel.

Nobody wakes up for it. It is looked at when somebody looks anyway: at a scrape, which shows drops, and when the link
changes or a virtqueue stops.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from kpoll.vhost._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

_QUIET_S: Final = 60.0  # after that an error that comes again is news


class PortErrors:
    """The errors of a card's ports, each told once as long as it goes on."""

    def __init__(
        self,
        ports: Iterable[Any],
        log: FilteringBoundLogger,
        *,
        take: Callable[[Any], int] = lib.net_port_take_error,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at `ports`, the `struct net_port *` of each queue pair, which stay until others take their place.

        Args:
            ports: By number of the pair.
            log: Where errors are told.
            take: Gives a port's last errno, and forgets it; 0: none.
            clock: In seconds.

        """
        self._ports = list(ports)
        self._log = log
        self._take = take
        self._clock = clock
        self._seen: dict[tuple[int, int], float] = {}  # when a pair's errno was last seen

    def plugged(self, pair: int, port: Any) -> None:
        """Look at another port from now on."""
        self._ports[pair] = port

    def tell(self) -> None:
        """Log what was met since the last look, unless it was told and never went away for long."""
        now = self._clock()
        for pair, port in enumerate(self._ports):
            number = self._take(port)
            if number == 0:
                continue
            before = self._seen.get((pair, number))
            self._seen[pair, number] = now
            if before is None or now - before > _QUIET_S:
                self._log.warning("port_error", pair=pair, error=os.strerror(number))
