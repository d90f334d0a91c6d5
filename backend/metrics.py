"""The metrics of one block device, read from the counters that the workers keep (names: docs/metrics.md).

Nothing is counted here but faults and the connection: a scrape reads C's counters, and between scrapes this costs
nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kpoll.vhost._core import lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .blk_device import BlkDevice
    from .blk_queue import BlkQueue

# Labels of enum blk_metric_op and enum blk_metric_error, in their order.
OPS: Final = ("read", "write", "flush", "discard", "write_zeroes", "get_id", "other")
ERROR_KINDS: Final = ("io", "unsupported", "range", "read_only")

# Bucket i counts what took less than 1 µs << i; the last one has no upper bound.
BUCKET_BOUNDS: Final = (*(f"{(1 << i) / 1e6:g}" for i in range(lib.BLK_BUCKETS - 1)), "+Inf")


def cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """Turn counts per bucket into Prometheus's buckets, each of which includes all smaller ones."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(BUCKET_BOUNDS, counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


@dataclass(frozen=True)
class Identity:
    """What kpoll_info says, and the `device` label of everything."""

    device: str
    version: str
    engine: str
    poll: str


class BlkCollector(Collector):
    """Reads a block device's counters at each scrape."""

    def __init__(self, identity: Identity, device: BlkDevice) -> None:
        """Collect from `device`."""
        self._identity = identity
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        yield from self._device_metrics()
        yield from self._worker_metrics()
        queues = [queue for queue in self._device.queues if queue.used]
        yield from self._request_metrics(queues)
        yield from self._queue_metrics(queues)

    def _device_metrics(self) -> Iterator[Metric]:
        me = self._identity
        info = InfoMetricFamily("kpoll", "What runs here", labels=["device"])
        info.add_metric([me.device], {"version": me.version, "engine": me.engine, "poll": me.poll})
        yield info
        connected = GaugeMetricFamily("kpoll_connected", "1 while a front-end is connected", labels=["device"])
        connected.add_metric([me.device], int(self._device.connected))
        yield connected

    def _worker_metrics(self) -> Iterator[Metric]:
        device = self._identity.device
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

    def _request_metrics(self, queues: list[BlkQueue]) -> Iterator[Metric]:
        labels = ["device", "queue", "op"]
        requests = CounterMetricFamily("kpoll_requests", "Requests answered", labels=labels)
        sizes = CounterMetricFamily("kpoll_request_bytes", "Bytes read or written by requests", labels=labels)
        errors = CounterMetricFamily("kpoll_request_errors", "Requests that failed", labels=[*labels, "kind"])
        seconds = HistogramMetricFamily(
            "kpoll_request_duration_seconds", "Time from popping a request to answering it", labels=labels
        )
        for queue in queues:
            stats: Any = queue.stats
            for i, op in enumerate(OPS):
                key = [self._identity.device, str(queue.index), op]
                requests.add_metric(key, stats.requests[i])
                sizes.add_metric(key, stats.bytes[i])
                seconds.add_metric(key, cumulated(list(stats.latency[i])), stats.latency_sum_ns[i] / 1e9)
                for j, kind in enumerate(ERROR_KINDS):
                    errors.add_metric([*key, kind], stats.errors[i][j])
        yield from (requests, sizes, errors, seconds)

    def _queue_metrics(self, queues: list[BlkQueue]) -> Iterator[Metric]:
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
            key = [self._identity.device, str(queue.index)]
            in_flight.add_metric(key, queue.in_flight)
            calls.add_metric(key, queue.calls)
            suppressed.add_metric(key, queue.calls_suppressed)
            for kind, count in queue.faults.items():
                faults.add_metric([*key, kind], count)
        yield from (in_flight, calls, suppressed, faults)
