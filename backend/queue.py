"""A virtqueue in a worker's hands: what Python knows of a C `struct queue` between two starts, whatever the device."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
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
    """enum queue_state of lane.h."""

    STOPPED = 0
    RUNNING = 1
    STOPPING = 2
    BROKEN = 3


class Queue(ABC):
    """A virtqueue and the worker that serves it, for the life of the daemon.

    Attributes:
        index: The vring's number.
        handle: The C side's `struct queue *`.
        lane: The `struct lane *` of its worker.
        worker: Who serves it.
        faults: How often each kind of fault broke it.
        used: Whether a front-end has ever started it; a queue that was never used has no metrics.

    """

    def __init__(self, index: int, handle: Any, lane: Any, worker: Worker) -> None:
        """Wrap `handle`, which the caller frees, with the device's queue around it, after the worker has ended."""
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
        return QueueState(lib.queue_state(self.handle))

    @property
    def in_flight(self) -> int:
        """Chains popped and not yet given back."""
        return int(lib.queue_in_flight(self.handle))

    @property
    def calls(self) -> int:
        """Interrupts sent to the driver."""
        return int(self.handle.vq.calls)

    @property
    def calls_suppressed(self) -> int:
        """Interrupts that the driver said it doesn't need."""
        return int(self.handle.vq.calls_suppressed)

    @abstractmethod
    def _bind(self, config: Any, memory: Any) -> int:
        """Bind the device's queue to a `struct virtq_config *` and a `struct mem_table *`. Returns 0 or -errno."""

    def bind(self, vring: VringConfig) -> None:
        """Bind the queue to the rings of `vring`. Raises OSError when they are misplaced; it then stays unbound."""
        error = -self._bind(virtq_config(vring), vring.memory.handle)
        if error:
            raise OSError(error, os.strerror(error))
        self.used = True
        self._fault_taken = False

    def base(self) -> int:
        """Return where the next binding goes on. Only while STOPPED."""
        return int(lib.virtq_base(ffi.addressof(self.handle, "vq")))

    def take_fault(self) -> str | None:
        """Return the kind of the fault that broke the queue, once per binding; None when there is none to tell.

        Only while BROKEN or STOPPED: the state's change is what makes the worker's verdict visible.
        """
        kind = int(self.handle.vq.fault)
        if kind == _FAULT_NONE or self._fault_taken:
            return None
        self._fault_taken = True
        name: str = ffi.string(lib.virtq_fault_name(kind)).decode()
        self.faults[name] += 1
        return name
