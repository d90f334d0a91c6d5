"""What a benchmark run found, as numbers, as a table for people, and as JSON for scripts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kpoll.vhost._core import lib

if TYPE_CHECKING:
    from collections.abc import Sequence


def percentile(buckets: Sequence[int], fraction: float) -> float:
    """Find a percentile in a histogram of bench_blk.h's buckets.

    Args:
        buckets: How many values fell into each.
        fraction: 0 < fraction <= 1.

    Returns:
        Nanoseconds, within 1 % of the value that this fraction of all values does not exceed; NaN without values.

    """
    wanted = fraction * sum(buckets)
    seen = 0
    for bucket, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return float(lib.bench_bucket_ns(bucket))
    return float("nan")


def number(value: float) -> str:
    """Write a number with about three digits, as people compare them; `-` for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long requests took, from the moment before they were published until they were found used; nanoseconds."""

    mean: float
    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, result: Any) -> Latency:
        """Take it from a `struct bench_result *`."""
        buckets = list(result.latency)
        count = result.reads + result.writes
        return cls(
            mean=result.latency_sum_ns / count if count else float("nan"),
            p50=percentile(buckets, 0.5),
            p99=percentile(buckets, 0.99),
            p999=percentile(buckets, 0.999),
            max=float(result.latency_max_ns),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one run.

    Attributes:
        seconds: How long was measured.
        reads: Requests that came back, failed ones too.
        writes: Likewise.
        errors: Requests of all phases with a status other than OK.
        block_size: Bytes of a request.
        latency: Of the measured requests.
        backend_cpu_ns: CPU time of the back-end's whole process while measuring; None: not known.
        kicks: Notifications sent to the back-end.
        calls: Notifications (interrupts) it sent.
        checked: Reads whose contents were compared; None: not asked for.
        mismatches: Of these, with wrong contents.
        first_mismatch: Byte offset on the disk of the first wrong one.

    """

    seconds: float
    reads: int
    writes: int
    errors: int
    block_size: int
    latency: Latency
    backend_cpu_ns: int | None
    kicks: int
    calls: int
    checked: int | None = None
    mismatches: int | None = None
    first_mismatch: int | None = None

    @property
    def requests(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes

    @property
    def iops(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def cpu_ns_per_io(self) -> float | None:
        """CPU nanoseconds that the back-end spent per request."""
        return None if self.backend_cpu_ns is None else self.backend_cpu_ns / self.requests

    @property
    def complaint(self) -> str | None:
        """Why the run counts as failed, in one line; None when all is well."""
        if self.mismatches:
            where = f"the first at byte {self.first_mismatch}"
            return f"{self.mismatches} of {self.checked} reads returned wrong data, {where}"
        if self.errors:
            return f"{self.errors} requests failed"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Give the numbers under the names that --json promises; microseconds and seconds."""
        cpu = self.cpu_ns_per_io
        values: dict[str, Any] = {
            "iops": round(self.iops, 1),
            "bytes_per_second": round(self.iops * self.block_size),
            "latency_us": {
                "mean": round(self.latency.mean / 1000, 3),
                "p50": round(self.latency.p50 / 1000, 3),
                "p99": round(self.latency.p99 / 1000, 3),
                "p99.9": round(self.latency.p999 / 1000, 3),
                "max": round(self.latency.max / 1000, 3),
            },
            "backend_cpu_us_per_io": None if cpu is None else round(cpu / 1000, 4),
            "kicks_per_io": round(self.kicks / self.requests, 6),
            "calls_per_io": round(self.calls / self.requests, 6),
            "requests": self.requests,
            "reads": self.reads,
            "writes": self.writes,
            "errors": self.errors,
            "seconds": round(self.seconds, 6),
        }
        if self.checked is not None:
            values["verify"] = {
                "checked": self.checked,
                "mismatches": self.mismatches,
                "first_mismatch_byte": self.first_mismatch,
            }
        return values

    def as_json(self, **more: Any) -> str:
        """Give one JSON object, with `more` (what was asked for) in front."""
        return json.dumps({**more, **self.as_dict()}, indent=2)

    def as_table(self, title: str) -> Table:
        """Give the table that people see."""
        cpu = self.cpu_ns_per_io
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_row("IOPS", f"{self.iops:,.0f}")
        table.add_row("throughput", f"{self.iops * self.block_size / (1 << 20):,.1f} MiB/s")
        table.add_row("latency mean", f"{self.latency.mean / 1000:.2f} µs")
        table.add_row("latency p50", f"{self.latency.p50 / 1000:.2f} µs")
        table.add_row("latency p99", f"{self.latency.p99 / 1000:.2f} µs")
        table.add_row("latency p99.9", f"{self.latency.p999 / 1000:.2f} µs")
        table.add_row("back-end CPU per I/O", "not known" if cpu is None else f"{cpu / 1000:.3f} µs")
        table.add_row("kicks per I/O", f"{self.kicks / self.requests:.4f}")
        table.add_row("interrupts per I/O", f"{self.calls / self.requests:.4f}")
        table.add_row("requests", f"{self.requests:,} in {self.seconds:.2f} s")
        table.add_row("errors", f"{self.errors:,}")
        if self.checked is not None:
            table.add_row("reads verified", f"{self.checked:,}")
            table.add_row("wrong data", f"{self.mismatches:,}")
        return table
