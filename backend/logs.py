"""Structured logs: one event per line on stderr, JSON unless a human is watching.

Every line has `timestamp` (ISO 8601, UTC), `level`, `event` (a fixed snake_case name) and `device`; docs/logs.md lists
the events with their fields. There is never a line per request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import FilteringBoundLogger, Processor

    from .config import LogConfig

STDERR_FILENO: Final = 2
_FIRST: Final = ("timestamp", "level", "event", "device")


class _Stderr:
    """Writes finished lines to stderr. A reader that went away costs the lines, never the disk.

    Not through sys.stderr: it would keep what it could not write, fail on it once more at the end, and exit with 120.
    """

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(STDERR_FILENO, f"{line}\n".encode(errors="backslashreplace"))

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _stderr_factory(*_args: Any) -> _Stderr:
    return _Stderr()


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
