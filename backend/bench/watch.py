"""Watches a back-end while C drives it: that it stays, that it gives no queue up, what CPU time it takes."""

from __future__ import annotations

import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from kpoll.backend.errors import KpollError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kpoll.vhost.frontend import Frontend

T = TypeVar("T")


class Stoppable(Protocol):
    """A load that runs in a thread.

    Attributes:
        err_fds: Readable when the back-end gave that queue up.

    """

    err_fds: list[int]

    def stop(self) -> None:
        """Make it end at once. From any thread."""


def process_cpu_ns(pid: int) -> int | None:
    """Read the CPU time of all threads of a process, in nanoseconds; None where this host doesn't tell."""
    try:
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        return None
    return sum(int(text.split()[0]) for text in texts) if texts else None


def peer_pid(sock: socket.socket) -> int:
    """Tell who listens at the other end (0: a process outside of our PID namespace)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def watched(frontend: Frontend, bench: Stoppable, run: Callable[[], T]) -> T:
    """Call `run` in a thread, and stop its load when the back-end leaves or gives a queue up, or on Ctrl-C.

    Raises:
        KpollError: As `run` did, or because of the back-end.
        KeyboardInterrupt: Ctrl-C; the load has stopped.

    """
    try:
        return trio.run(_watched, frontend, bench, run)
    except BaseExceptionGroup as e:
        if e.subgroup(KeyboardInterrupt):  # from inside the nursery
            raise KeyboardInterrupt from e
        raise


async def _watched(frontend: Frontend, bench: Stoppable, run: Callable[[], T]) -> T:
    lost: list[str] = []
    interrupted: list[int] = []
    outcome: list[T | KpollError] = []

    async def watch_signal(*, task_status: trio.TaskStatus[None]) -> None:
        """Trio's own KeyboardInterrupt would wait for the thread's end, since a thread can't be cancelled."""
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                interrupted.append(number)
                bench.stop()

    async def watch(fd: int, what: str) -> None:
        try:
            await trio.lowlevel.wait_readable(fd)
            lost.append(what)
        finally:
            bench.stop()

    def guarded() -> T | KpollError:
        try:
            return run()
        except KpollError as e:
            return e

    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signal)
        nursery.start_soon(watch, frontend.sock.fileno(), "the back-end hung up in the middle of the run")
        for index, fd in enumerate(bench.err_fds):
            nursery.start_soon(watch, fd, f"the back-end gave queue {index} up: it reported an error on the vring")
        outcome.append(await trio.to_thread.run_sync(guarded))
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    if lost:
        raise KpollError(lost[0])
    if isinstance(outcome[0], KpollError):
        raise outcome[0]
    return outcome[0]
