"""A worker thread of the data plane, seen from trio.

The thread spends its life inside one C call, worker_run(), with the GIL released. It is told things through its
mailbox (worker_start_queue() ...) and answers by changing a queue's state and writing an eventfd, which one trio task
here waits on. Nothing else is shared.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from kpoll.vhost._core import ffi, lib

from .errors import KpollError
from .queue import QueueState

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from .poll import PollConfig
    from .queue import Queue

STRATEGIES: Final[dict[str, int]] = {
    "off": lib.WAIT_OFF,
    "user": lib.WAIT_USER,
    "module": lib.WAIT_MODULE,
    "kernel": lib.WAIT_KERNEL,
}
"""--poll's strategies as the wait set's `enum wait_strategy`."""

# What a thread may not have blocked: a fault of its own instructions (a guest memfd that was truncated is a SIGBUS).
_SYNCHRONOUS: Final = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}


@dataclass(frozen=True)
class WorkerStats:
    """Counters of one worker since its start; `cpu_ns` is CPU time in nanoseconds."""

    hits: int
    gave_way: int
    timeouts: int
    sleeps: int
    kicks: int
    cpu_ns: int


class Worker:
    """One worker thread and its queues.

    Resource handling: `close` frees the C side; before that, `run` must have returned.

    Error handling: when the thread fails, `run` raises KpollError and so does everybody who waits for a queue of it.
    """

    def __init__(self, index: int, poll: PollConfig, cpu: int | None, log: FilteringBoundLogger) -> None:
        """Prepare worker number `index`, to be pinned to `cpu` if that isn't None. Raises KpollError."""
        out = ffi.new("struct worker **")
        error = -lib.worker_create(out, STRATEGIES[poll.strategy], poll.max_us)
        if error:
            raise KpollError(f"a worker that waits with --poll {poll.strategy} can't be made: {os.strerror(error)}")
        self.index = index
        self.handle = out[0]
        self._cpu = cpu
        self._log = log
        self._queues: set[Queue] = set()
        self._changed = trio.Event()
        self._ended = False

    def add_lane(self, lane: Any) -> None:
        """Give the worker its share of a device, a `struct lane *`, before `run`. Raises KpollError."""
        error = -lib.worker_add_lane(self.handle, lane)
        if error:
            raise KpollError(f"a worker can't take its share of the device: {os.strerror(error)}")

    def close(self) -> None:
        """Free the C side. The thread must have ended."""
        lib.worker_destroy(self.handle)
        self.handle = ffi.NULL

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, whatever is cancelled meanwhile: guest memory is unmapped by those who wait for us.

        Raises KpollError when the thread fails.
        """
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                task_status.started()
                try:
                    error = await trio.to_thread.run_sync(
                        self._thread, thread_name=f"kpoll-w{self.index}", limiter=trio.CapacityLimiter(1)
                    )
                finally:
                    self._ended = True
                    self._announce()
                    nursery.cancel_scope.cancel()
        if error:
            raise KpollError(f"worker {self.index} ended: {os.strerror(error)}")

    def stop(self) -> None:
        """Let `run` return, once every queue has been stopped. Raises OSError."""
        if not self._ended:
            _check(lib.worker_stop(self.handle))

    def wake(self) -> None:
        """Have it take another turn, whatever it waits for."""
        lib.worker_wake(self.handle)

    async def start_queue(self, queue: Queue, kick_fd: int | None) -> None:
        """Hand a bound queue over; returns when the worker has it. `kick_fd` stays the caller's and open till the end.

        Raises OSError, or KpollError when the worker has ended.
        """
        _check(lib.worker_start_queue(self.handle, queue.lane, queue.handle, -1 if kick_fd is None else kick_fd))
        self._queues.add(queue)
        await self._until(lambda: queue.state is not QueueState.STOPPED)

    async def stop_queue(self, queue: Queue) -> None:
        """Take a queue back; returns when nothing of it is in flight and its memory may go.

        A queue that isn't the worker's is left alone. Raises OSError, or KpollError when the worker has ended.
        """
        if queue not in self._queues:
            return
        _check(lib.worker_stop_queue(self.handle, queue.handle))
        await self._until(lambda: queue.state is QueueState.STOPPED)
        self._tell_fault(queue)
        self._queues.discard(queue)

    async def join_lane(self, lane: Any) -> None:
        """Have the worker take a lane as it is prepared now, between two turns; returns when it has.

        Raises OSError, or KpollError when the worker has ended.
        """
        error = ffi.new("int *")
        before = lib.lane_joined(lane, error)
        _check(lib.worker_join_lane(self.handle, lane))
        await self._until(lambda: lib.lane_joined(lane, error) != before)
        _check(error[0])

    def stats(self) -> WorkerStats:
        """Read the counters."""
        out = ffi.new("struct worker_stats *")
        lib.worker_stats(self.handle, out)
        wait = out.wait
        return WorkerStats(
            hits=wait.hits,
            gave_way=wait.gave_way,
            timeouts=wait.timeouts,
            sleeps=wait.sleeps,
            kicks=out.kicks,
            cpu_ns=out.cpu_ns,
        )

    def _thread(self) -> int:
        """Run in the worker's thread. Returns an errno, 0 when all is well."""
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - _SYNCHRONOUS)
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})  # 0: this thread
        return -int(lib.worker_run(self.handle))

    async def _watch(self) -> None:
        """Turn the worker's eventfd into `_changed`, and faults into log lines."""
        event_fd = lib.worker_event_fd(self.handle)
        while True:
            await trio.lowlevel.wait_readable(event_fd)
            with contextlib.suppress(BlockingIOError):
                os.read(event_fd, 8)
            for queue in self._queues:
                if queue.state is QueueState.BROKEN:
                    self._tell_fault(queue)
            self._announce()

    def _tell_fault(self, queue: Queue) -> None:
        kind = queue.take_fault()
        if kind is not None:
            self._log.error("queue_fault", queue=queue.index, kind=kind)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait for a state, shielded: half a start or half a stop would leave nobody owning the memory."""
        with trio.CancelScope(shield=True):
            while not reached():
                if self._ended:
                    raise KpollError(f"worker {self.index} has ended")
                await self._changed.wait()


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
