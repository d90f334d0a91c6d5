"""What may block in the kernel for longer than anybody wants to wait, in a process of its own."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 65536
_DEATH_S = 1.0


class TooLateError(Exception):
    """It took too long; its process was killed."""


def bounded(work: Callable[[], object], seconds: float) -> object:
    """Return what `work` returns in a process that is forked for it, and that has so long.

    Only for a process without other threads. What the kernel doesn't let be interrupted goes on there by itself.

    Args:
        work: What to do; what it returns or raises comes back by way of pickle.
        seconds: After that it is killed.

    Raises:
        TooLateError: It was.

    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _carry_out(work, write)
    os.close(write)
    try:
        answer = _read_all(read, time.monotonic() + seconds)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its
        _bury(child)
    if answer is None:
        raise TooLateError
    ok, value = pickle.loads(answer)  # noqa: S301 - a process of our own wrote it
    if not ok:
        raise value
    return value


def _carry_out(work: Callable[[], object], write: int) -> NoReturn:
    """Be the process. Nothing of the one that it was forked from runs here: no handler, no clean-up, no exit hook."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            answer = True, work()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asked
            answer = False, error
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def _read_all(fd: int, deadline: float) -> bytes | None:
    """Read until the end; None if that doesn't come in time, or too early."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(fd, _CHUNK)
        if not part:
            return b"".join(parts) or None
        parts.append(part)


def _bury(child: int) -> None:
    """Wait for a killed process, unless the kernel holds it: then it is init's when we end."""
    deadline = time.monotonic() + _DEATH_S
    while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
