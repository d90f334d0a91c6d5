"""Signals, heard by a thread of their own: so that SIGTERM ends the process whatever the others are stuck in.

A front-end owns descriptors that we write to, and a disk can stop answering; either may hold a worker or the steering
thread in a system call for ever. So the signals are blocked everywhere and this thread alone waits for them. It passes
them on, and should the orderly end take too long, or a second demand come, it ends the process by force.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
SIGNALS: Final = ENDING | {signal.SIGHUP}
GRACE_S: Final = 10.0  # for an orderly end
_ECHO_S: Final = 0.1  # timeout(1) and terminals may send one demand twice


class SignalThread:
    """Passes signals on, and ends the process when the orderly end fails. SIGNALS have to be blocked in all threads."""

    def __init__(self, hear: Callable[[int], None], force: Callable[[str], object]) -> None:
        """Start to wait.

        Args:
            hear: Called in the thread with each signal; must not block.
            force: Called in the thread with the reason; ends the process.

        """
        self._hear = hear
        self._force = force
        threading.Thread(target=self._run, name="kpoll-signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            self._hear(number)
            if number in ENDING:
                self._force(_why_end_failed())


def _why_end_failed() -> str:
    """Wait for the orderly end, in which this thread ends too; returns why it has to be by force."""
    told = time.monotonic()
    while (left := told + GRACE_S - time.monotonic()) > 0:
        again = signal.sigtimedwait(SIGNALS, left)
        if again is not None and again.si_signo in ENDING and time.monotonic() > told + _ECHO_S:
            return f"{signal.Signals(again.si_signo).name} came again"
    return f"not ended {GRACE_S:.0f} s after the signal"
