"""The metrics of any device, read from the counters that the workers keep (names: docs/metrics.md).

Nothing is counted here but faults and the connection: a scrape reads C's counters, and between scrapes this costs
nothing at all. What a kind of device counts beside that is its own (blk_metrics.py).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .queue import Queue
    from .service import WorkerDevice


@dataclass(frozen=True)
class Identity:
    """What kpoll_info says, and the `device` label of everything."""

    device: str
    version: str
    engine: str
    poll: str


class DeviceCollector(Collector):
    """Reads a device's counters at each scrape."""

    def __init__(self, identity: Identity, device: WorkerDevice) -> None:
        """Collect from `device`."""
        self.identity = identity
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        yield from self._device_metrics()
        yield from self._worker_metrics()
        yield from self.own_metrics()
        yield from self._queue_metrics([queue for queue in self._device.queues if queue.used])

    @abstractmethod
    def own_metrics(self) -> Iterator[Metric]:
        """Yield the families that only this kind of device has."""

    def _device_metrics(self) -> Iterator[Metric]:
        me = self.identity
        info = InfoMetricFamily("kpoll", "What runs here", labels=["device"])
        info.add_metric([me.device], {"version": me.version, "engine": me.engine, "poll": me.poll})
        yield info
        connected = GaugeMetricFamily("kpoll_connected", "1 while a front-end is connected", labels=["device"])
        connected.add_metric([me.device], int(self._device.connected))
        yield connected

    def _worker_metrics(self) -> Iterator[Metric]:
        device = self.identity.device
        stats = [worker.stats() for worker in self._device.workers]
        polls = CounterMetricFamily("kpoll_polls", "Spins of workers, by how they ended", labels=["device", "result"])
        polls.add_metric([device, "hit"], sum(s.hits for s in stats))
        polls.add_metric([device, "gave_way"], sum(s.gave_way for s in stats))
        polls.add_metric([device, "timeout"], sum(s.timeouts for s in stats))
        yield polls
        for name, text, value in (
            ("kpoll_sleeps", "Waits of workers that reached the sleeping system call", sum(s.sleeps for s in stats)),
            ("kpoll_kicks", "Kicks received from the driver", sum(s.kicks for s in stats)),
            ("kpoll_worker_cpu_seconds", "CPU time of the workers", sum(s.cpu_ns for s in stats) / 1e9),
        ):
            counter = CounterMetricFamily(name, text, labels=["device"])
            counter.add_metric([device], value)
            yield counter

    def _queue_metrics(self, queues: list[Queue]) -> Iterator[Metric]:
        labels = ["device", "queue"]
        in_flight = GaugeMetricFamily("kpoll_requests_in_flight", "Requests taken and not yet answered", labels=labels)
        calls = CounterMetricFamily("kpoll_calls", "Interrupts sent to the driver", labels=labels)
        suppressed = CounterMetricFamily(
            "kpoll_calls_suppressed", "Interrupts that the driver had no need of", labels=labels
        )
        faults = CounterMetricFamily(
            "kpoll_queue_faults",
            "Times that a queue was stopped for what the driver put into it",
            labels=[*labels, "kind"],
        )
        for queue in queues:
            key = [self.identity.device, str(queue.index)]
            in_flight.add_metric(key, queue.in_flight)
            calls.add_metric(key, queue.calls)
            suppressed.add_metric(key, queue.calls_suppressed)
            for kind, count in queue.faults.items():
                faults.add_metric([*key, kind], count)
        yield from (in_flight, calls, suppressed, faults)
