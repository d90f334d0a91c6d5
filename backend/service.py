"""What the daemon runs, whatever the kind of device: the device, its workers, and what belongs to it.

A kind of device (blk_service.py) opens one of these; the daemon does what is the same for all: sockets, sandbox,
signals, metrics, the order of things.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kpoll.vhost.device import Device

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from prometheus_client.registry import Collector

    from .config import LogConfig, MetricsConfig, SocketConfig
    from .poll import PollConfig
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
        workers: All of them; the daemon runs them around everything that uses the device.

    """

    workers: tuple[Worker, ...]

    @abstractmethod
    async def stop_all(self) -> None:
        """Take every queue back from its worker; returns when nothing is in flight."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A device that is open, but that nobody can reach yet.

    Attributes:
        device: What front-ends are served with.
        facts: What the log line `started` says beside what it says of every device.
        collector: Reads its metrics.
        ready: Called once all else that can fail has been opened, before the sandbox closes.
        watch: Runs as long as front-ends are served.
        refresh: Called on SIGHUP.

    """

    device: WorkerDevice
    facts: Mapping[str, object]
    collector: Collector
    ready: Callable[[], None]
    watch: Callable[[], Awaitable[None]]
    refresh: Callable[[], Awaitable[None]]
