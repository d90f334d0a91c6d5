"""One virtqueue of a network card: a queue whose frames are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kpoll.vhost._core import lib

from .queue import Queue

if TYPE_CHECKING:
    from kpoll.vhost.device import VringConfig

    from .worker import Worker


class NetQueue(Queue):
    """A virtqueue of a card: the even ones receive, the odd ones send (virtio 1.2 §5.1.2)."""

    def __init__(self, index: int, net_queue: Any, lane: Any, worker: Worker) -> None:
        """Wrap a `struct net_queue *`, which the caller destroys after the worker has ended."""
        super().__init__(index, lib.net_queue_base(net_queue), lane, worker)
        self._net_queue = net_queue

    @property
    def direction(self) -> str:
        """The guest's word for what it carries: rx or tx."""
        return "tx" if self.index % 2 else "rx"

    @property
    def stats(self) -> Any:
        """`struct net_stats *`, written by the worker; each counter is read whole."""
        return lib.net_queue_stats(self._net_queue)

    def bind(self, vring: VringConfig) -> None:
        """Bind as every queue; one that sends drops what it is given while it is disabled. Raises OSError."""
        super().bind(vring)
        lib.net_queue_discard(self._net_queue, not vring.enabled)

    def _bind(self, config: Any, memory: Any) -> int:
        return int(lib.net_queue_bind(self._net_queue, config, memory))
