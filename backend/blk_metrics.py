"""What a disk counts: its requests, by kind, with their sizes, errors and latencies (names: docs/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kpoll.vhost._core import lib

from .blk_smart import smart_metrics
from .metrics import DeviceCollector, Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .blk_device import BlkDevice
    from .blk_health import Health

# Labels of enum blk_metric_op and enum blk_metric_error, in their order.
OPS: Final = ("read", "write", "flush", "discard", "write_zeroes", "get_id", "other")
ERROR_KINDS: Final = ("io", "unsupported", "range", "read_only", "memory")

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


class BlkCollector(DeviceCollector):
    """Reads a block device's counters at each scrape."""

    def __init__(self, identity: Identity, device: BlkDevice, health: Health) -> None:
        """Collect from `device`, and the health of what is under it."""
        super().__init__(identity, device)
        self._disk = device
        self._health = health

    def own_metrics(self) -> Iterator[Metric]:
        """Yield the families of requests, and of the NVMe device below."""
        yield from self._requests()
        if self._health.log is not None:
            yield from smart_metrics(self.identity.device, self._health.log)

    def _requests(self) -> Iterator[Metric]:
        labels = ["device", "queue", "op"]
        requests = CounterMetricFamily("kpoll_requests", "Requests answered", labels=labels)
        sizes = CounterMetricFamily("kpoll_request_bytes", "Bytes read or written by requests", labels=labels)
        errors = CounterMetricFamily("kpoll_request_errors", "Requests that failed", labels=[*labels, "kind"])
        retries = CounterMetricFamily("kpoll_request_retries", "Failures that the guest wasn't told of", labels=labels)
        kept = GaugeMetricFamily(
            "kpoll_requests_kept", "Requests that failed or came after one, and wait", labels=["device", "queue"]
        )
        seconds = HistogramMetricFamily(
            "kpoll_request_duration_seconds", "Time from popping a request to answering it", labels=labels
        )
        for queue in (queue for queue in self._disk.queues if queue.used):
            stats: Any = queue.stats
            kept.add_metric([self.identity.device, str(queue.index)], stats.kept)
            for i, op in enumerate(OPS):
                key = [self.identity.device, str(queue.index), op]
                requests.add_metric(key, stats.requests[i])
                sizes.add_metric(key, stats.bytes[i])
                retries.add_metric(key, stats.failures[i])
                seconds.add_metric(key, cumulated(list(stats.latency[i])), stats.latency_sum_ns[i] / 1e9)
                for j, kind in enumerate(ERROR_KINDS):
                    errors.add_metric([*key, kind], stats.errors[i][j])
        yield from (requests, sizes, errors, retries, kept, seconds)
