"""What a benchmark run on a network card found, as numbers, as a table for people, and as JSON for scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kpoll.backend.bench.report import Latency, percentile

if TYPE_CHECKING:
    from kpoll.backend.bench.net import type_mode


@dataclass(frozen=True, kw_only=True)
class RoundTrip(Latency):
    """How long frames were under way, from the moment before they were published until they were found; nanoseconds."""

    @classmethod
    def of(cls, result: Any) -> RoundTrip:
        """Take it from a `struct bench_net_result *`."""
        buckets = list(result.rtt)
        return cls(
            mean=result.rtt_sum_ns / result.received if result.received else float("nan"),
            p50=percentile(buckets, 0.5),
            p99=percentile(buckets, 0.99),
            p999=percentile(buckets, 0.999),
            max=float(result.rtt_max_ns),
        )


@dataclass(frozen=True, kw_only=True)
class NetReport:
    """The outcome of one run, in which at least one frame got through.

    Attributes:
        mode: As asked for.
        size: Bytes of a frame that was sent.
        seconds: How long was measured.
        sent: Frames that the back-end took.
        received: Frames that came; in echo ours only.
        received_bytes: Their bytes.
        lost: Frames that did not come back (echo), or are missing between those that came (rx); None: nobody knows.
        foreign: Frames that were not ours, or came twice.
        mismatches: Of ours, with other contents.
        first_mismatch: The number of the first one.
        rtt: Round trips (echo).
        backend_cpu_ns: CPU time of the back-end's whole process while measuring; None: not known.
        idle_cpu: Its share of a CPU when there was nothing to do; None: not measured.
        kicks: Notifications sent to the back-end.
        calls: Notifications (interrupts) it sent.

    """

    mode: type_mode
    size: int
    seconds: float
    sent: int
    received: int
    received_bytes: int
    lost: int | None
    foreign: int
    mismatches: int
    first_mismatch: int | None
    rtt: RoundTrip | None
    backend_cpu_ns: int | None
    idle_cpu: float | None
    kicks: int
    calls: int

    @property
    def packets(self) -> int:
        """Frames that count: those that arrived, where we can see that."""
        return self.sent if self.mode == "tx" else self.received

    @property
    def pps(self) -> float:
        """Frames per second; in echo each counts once."""
        return self.packets / self.seconds

    @property
    def bits_per_second(self) -> float:
        """Their bits; headers of virtio and gaps on a wire apart."""
        return (self.sent * self.size if self.mode == "tx" else self.received_bytes) * 8 / self.seconds

    @property
    def cpu_ns_per_packet(self) -> float | None:
        """CPU nanoseconds that the back-end spent per frame."""
        return None if self.backend_cpu_ns is None else self.backend_cpu_ns / self.packets

    @property
    def complaint(self) -> str | None:
        """Why the run counts as failed, in one line; None when all is well. Networks lose frames: that is no reason."""
        if self.mismatches:
            first = f"the first is number {self.first_mismatch}"
            return f"{self.mismatches} of {self.received} frames had wrong contents, {first}"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Give the numbers under the names that --json promises; microseconds and seconds."""
        cpu = self.cpu_ns_per_packet
        values: dict[str, Any] = {
            "pps": round(self.pps, 1),
            "gbps": round(self.bits_per_second / 1e9, 4),
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "foreign": self.foreign,
            "mismatches": self.mismatches,
            "backend_cpu_us_per_packet": None if cpu is None else round(cpu / 1000, 4),
            "backend_cpu_idle": None if self.idle_cpu is None else round(self.idle_cpu, 5),
            "kicks_per_packet": round(self.kicks / self.packets, 6),
            "calls_per_packet": round(self.calls / self.packets, 6),
            "seconds": round(self.seconds, 6),
        }
        if self.rtt is not None:
            values["rtt_us"] = {
                "mean": round(self.rtt.mean / 1000, 3),
                "p50": round(self.rtt.p50 / 1000, 3),
                "p99": round(self.rtt.p99 / 1000, 3),
                "p99.9": round(self.rtt.p999 / 1000, 3),
                "max": round(self.rtt.max / 1000, 3),
            }
        return values

    def as_json(self, **more: Any) -> str:
        """Give one JSON object, with `more` (what was asked for) in front."""
        return json.dumps({**more, **self.as_dict()}, indent=2)

    def as_table(self, title: str) -> Table:
        """Give the table that people see."""
        cpu = self.cpu_ns_per_packet
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_row("packets per second", f"{self.pps:,.0f}")
        table.add_row("throughput", f"{self.bits_per_second / 1e9:,.3f} Gb/s")
        if self.rtt is not None:
            table.add_row("round trip mean", f"{self.rtt.mean / 1000:.2f} µs")
            table.add_row("round trip p50", f"{self.rtt.p50 / 1000:.2f} µs")
            table.add_row("round trip p99", f"{self.rtt.p99 / 1000:.2f} µs")
        table.add_row("back-end CPU per packet", "not known" if cpu is None else f"{cpu / 1000:.3f} µs")
        if self.idle_cpu is not None:
            table.add_row("back-end CPU when idle", f"{self.idle_cpu:.2%}")
        table.add_row("kicks per packet", f"{self.kicks / self.packets:.4f}")
        table.add_row("interrupts per packet", f"{self.calls / self.packets:.4f}")
        table.add_row("packets", f"{self.packets:,} in {self.seconds:.2f} s")
        if self.lost is not None:
            table.add_row("lost", f"{self.lost:,}")
        if self.mode == "echo":
            table.add_row("wrong contents", f"{self.mismatches:,}")
        return table
