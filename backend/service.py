"""What the daemon runs, whatever the kind of device: the device, its workers, and what belongs to it.

A kind of device (blk_service.py) opens one of these; the daemon does what is the same for all: sockets, sandbox,
signals, metrics, the order of things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kpoll.vhost.device import Device, DeviceError

from .errors import KpollError
from .sandbox import NOTHING_KEPT, Kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from prometheus_client.registry import Collector

    from kpoll.vhost.device import VringConfig

    from .config import LogConfig, MetricsConfig, SocketConfig
    from .poll import PollConfig
    from .queue import Queue
    from .worker import Worker


class DeviceConfig(Protocol):
    """What every kind of device is configured with, beside its own."""

    @property
    def socket(self) -> SocketConfig:
        """Where front-ends come from."""

    @property
    def metrics(self) -> MetricsConfig:
        """Who may scrape, and where."""

    @property
    def log(self) -> LogConfig:
        """How log lines look."""

    @property
    def poll(self) -> PollConfig:
        """Who polls."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """The workers' CPUs, or none."""

    @property
    def sandbox(self) -> bool | None:
        """Whether to close it; None: as far as this host can."""

    @property
    def device(self) -> str:
        """The `device` of logs and metrics."""


class WorkerDevice(Device):
    """A device whose queues are served by worker threads.

    Attributes:
        queues: All virtqueues, by index.
        workers: Who serves them; the daemon runs them around everything that uses the device.

    """

    queues: tuple[Queue, ...]
    workers: tuple[Worker, ...]

    @property
    def connected(self) -> bool:
        """Whether a front-end is there."""
        return self._session is not None

    async def start_vring(self, vring: VringConfig) -> None:
        """Bind the queue to its rings and hand it to its worker.

        Raises OSError when the rings are misplaced, DeviceError when the worker can't take it.
        """
        queue = self.queues[vring.index]
        queue.bind(vring)
        try:
            await queue.worker.start_queue(queue, vring.kick_fd)
        except KpollError as error:
            raise DeviceError(str(error)) from error

    async def stop_vring(self, index: int) -> int:
        """Take the queue back from its worker; returns its vring base."""
        queue = self.queues[index]
        await queue.worker.stop_queue(queue)
        return queue.base()

    async def stop_all(self) -> None:
        """Take every queue back, whoever forgot it; returns when nothing is in flight."""
        for queue in self.queues:
            await queue.worker.stop_queue(queue)


def nothing() -> None:
    """Have nothing to let go of."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A device that is open, but that nobody can reach yet.

    Attributes:
        device: What front-ends are served with.
        facts: What the log line `started` says beside what it says of every device.
        collector: Reads its metrics.
        ready: Called once all else that can fail has been opened, before the sandbox closes.
        watch: Runs as long as front-ends are served.
        refresh: Called on SIGHUP, perhaps while the last call hasn't returned.
        abandon: Called in a thread when the device doesn't come to rest at the end: let go of what it waits for.
        kept: What the sandbox leaves.

    """

    device: WorkerDevice
    facts: Mapping[str, object]
    collector: Collector
    ready: Callable[[], None]
    watch: Callable[[], Awaitable[None]]
    refresh: Callable[[], Awaitable[None]]
    abandon: Callable[[], None] = nothing
    kept: Kept = NOTHING_KEPT
