"""Structured logs: one event per line on stderr, JSON unless a human is watching.

Every line has `timestamp` (ISO 8601, UTC), `level`, `event` (a fixed snake_case name) and `device`; docs/logs.md lists
the events with their fields. There is never a line per request, and a front-end that provokes lines gets no more than
a few per second: what would flood the host's log is counted instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from structlog.typing import FilteringBoundLogger, Processor

    from .config import LogConfig

STDERR_FILENO: Final = 2
_FIRST: Final = ("timestamp", "level", "event", "device")
_BURST: Final = 50  # lines of one event of one device at once
_PER_SECOND: Final = 5  # and then


def _would_block() -> bool:
    """Whether whoever reads stderr has stalled. Never O_NONBLOCK on it: others write there too."""
    poll = select.poll()
    poll.register(STDERR_FILENO, select.POLLOUT)
    return not poll.poll(0)


class _Stderr:
    """Writes finished lines to stderr. A reader that went away costs the lines, never the disk.

    In pieces that a pipe takes whole when it takes anything: a reader that stalls in a long line costs its rest.

    Not through sys.stderr: it would keep what it could not write, fail on it once more at the end, and exit with 120.
    """

    def msg(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while data and not _would_block():
                data = data[os.write(STDERR_FILENO, data[: select.PIPE_BUF]) :]

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _stderr_factory(*_args: Any) -> _Stderr:
    return _Stderr()


@dataclass
class _Bucket:
    tokens: float
    filled_at: float
    suppressed: int = 0


class Gate:
    """Lets a line through that somebody reads and that isn't one too many; the next of its kind says how many weren't.

    No lock: a thread that is stuck must not keep the last line of another from being written.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, stalled: Callable[[], bool] = _would_block) -> None:
        """Begin with full buckets: one for each event of each device."""
        self._clock = clock
        self._stalled = stalled
        self._buckets: dict[tuple[str, str | None], _Bucket] = {}

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Be a structlog processor. Raises DropEvent for a line that doesn't pass."""
        now = self._clock()
        bucket = self._buckets.setdefault((event["event"], event.get("device")), _Bucket(_BURST, now))
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.filled_at) * _PER_SECOND)
        bucket.filled_at = now
        if bucket.tokens < 1 or self._stalled():
            bucket.suppressed += 1
            raise structlog.DropEvent
        bucket.tokens -= 1
        if bucket.suppressed:
            event["suppressed"], bucket.suppressed = bucket.suppressed, 0
        return event


def _what_first(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what every line has in front, in one order."""
    return {key: event[key] for key in _FIRST if key in event} | dict(event)


def setup_logging(config: LogConfig) -> None:
    """Configure structlog for this process: `config.style` auto means console on a terminal, JSON elsewhere."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    console = config.style == "console" or (config.style == "auto" and terminal)
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=terminal) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            Gate(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _what_first,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(config.level.upper())),
        logger_factory=_stderr_factory,
        cache_logger_on_first_use=True,
    )


def device_log(device: str) -> FilteringBoundLogger:
    """Return the logger of one device: `device` stands on each of its lines."""
    log: FilteringBoundLogger = structlog.get_logger()
    return log.bind(device=device)
