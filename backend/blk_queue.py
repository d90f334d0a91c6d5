"""One virtqueue's place in the disk: a queue whose requests are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import lib

from .queue import Queue

if TYPE_CHECKING:
    from .worker import Worker


class BlkQueue(Queue):
    """A virtqueue of a disk."""

    def __init__(self, index: int, blk_queue: Any, lane: Any, worker: Worker) -> None:
        """Wrap a `struct blk_queue *`, which the caller destroys after the worker has ended."""
        super().__init__(index, lib.blk_queue_base(blk_queue), lane, worker)
        self._blk_queue = blk_queue

    @property
    def stats(self) -> Any:
        """`struct blk_stats *`, written by the worker; each counter is read whole."""
        return lib.blk_queue_stats(self._blk_queue)

    def _bind(self, config: Any, memory: Any) -> int:
        return int(lib.blk_queue_bind(self._blk_queue, config, memory))
