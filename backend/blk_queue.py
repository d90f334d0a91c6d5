"""One virtqueue's place in the disk: what Python knows of a C `blk_queue` between two starts, and its counters."""

from __future__ import annotations

import os
from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from kpoll.vhost._core import ffi, lib
from kpoll.vhost.virtqueue import virtq_config

if TYPE_CHECKING:
    from kpoll.vhost.device import VringConfig

    from .worker import Worker

_FAULT_NONE: Final = 0  # VIRTQ_FAULT_NONE


class QueueState(IntEnum):
    """enum queue_state of blk.h."""

    STOPPED = 0
    RUNNING = 1
    STOPPING = 2
    BROKEN = 3


class BlkQueue:
    """A virtqueue and the worker that serves it, for the life of the daemon.

    Attributes:
        index: The vring's number.
        handle: The C side's `struct blk_queue *`.
        lane: The `struct blk_lane *` of its worker.
        faults: How often each kind of fault broke it.
        used: Whether a front-end has ever started it; a queue that was never used has no metrics.

    """

    def __init__(self, index: int, handle: Any, lane: Any, worker: Worker) -> None:
        """Wrap `handle`, which the caller destroys after the worker has ended."""
        self.index = index
        self.handle = handle
        self.lane = lane
        self.worker = worker
        self.faults: Counter[str] = Counter()
        self.used = False
        self._fault_taken = False

    @property
    def state(self) -> QueueState:
        """Whose it is now; Python may touch the virtq's fields freely only while it is STOPPED."""
        return QueueState(lib.blk_queue_state(self.handle))

    @property
    def stats(self) -> Any:
        """`struct blk_stats *`, written by the worker; each counter is read whole."""
        return lib.blk_queue_stats(self.handle)

    @property
    def in_flight(self) -> int:
        """Requests popped and not yet given back."""
        return int(lib.blk_queue_in_flight(self.handle))

    @property
    def calls(self) -> int:
        """Interrupts sent to the driver."""
        return int(self._virtq.calls)

    @property
    def calls_suppressed(self) -> int:
        """Interrupts that the driver said it doesn't need."""
        return int(self._virtq.calls_suppressed)

    @property
    def _virtq(self) -> Any:
        return lib.blk_queue_virtq(self.handle)

    def bind(self, vring: VringConfig) -> None:
        """Bind the queue to the rings of `vring`. Raises OSError when they are misplaced; it then stays unbound."""
        error = -lib.blk_queue_bind(self.handle, virtq_config(vring), vring.memory.handle)
        if error:
            raise OSError(error, os.strerror(error))
        self.used = True
        self._fault_taken = False

    def base(self) -> int:
        """Return where the next binding goes on. Only while STOPPED."""
        return int(lib.virtq_base(self._virtq))

    def take_fault(self) -> str | None:
        """Return the kind of the fault that broke the queue, once per binding; None when there is none to tell.

        Only while BROKEN or STOPPED: the state's change is what makes the worker's verdict visible.
        """
        kind = int(self._virtq.fault)
        if kind == _FAULT_NONE or self._fault_taken:
            return None
        self._fault_taken = True
        name: str = ffi.string(lib.virtq_fault_name(kind)).decode()
        self.faults[name] += 1
        return name
