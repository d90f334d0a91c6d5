"""What `kpoll bench wait` found: numbers, a table for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kpoll.backend.bench.report import number, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

_NS: Final = 1_000_000_000
_US: Final = 1000

LABELS: Final = {"blind": "blind spin"}  # what people read, where it isn't the strategy's name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One strategy in one situation, once.

    Attributes:
        requests: How many were sent, each of them noticed; one where there was no traffic: the last.
        kicks: For how many of them the driver had to signal.
        seconds: How long was measured.
        p10: Of the wake-ups, from before the driver's store until the waiter has seen it; nanoseconds.
        p50: Likewise.
        p99: Likewise.
        max: Likewise.
        waiter_ns: CPU time of the waiter.
        hog_ns: CPU time of the hog, 0 without one.
        hits: Spins that ended with a request.
        gave_way: Spins that ended because somebody else wanted the CPU.
        timeouts: Spins that ran out of budget.
        sleeps: Waits that reached a system call to sleep in.

    """

    requests: int
    kicks: int
    seconds: float
    p10: float
    p50: float
    p99: float
    max: float
    waiter_ns: int
    hog_ns: int
    hits: int = 0
    gave_way: int = 0
    timeouts: int = 0
    sleeps: int = 0

    @classmethod
    def of(cls, result: Any) -> Measured:
        """Take it from a `struct bench_wait_result *`."""
        buckets = list(result.latency)
        return cls(
            requests=result.requests,
            kicks=result.kicks,
            seconds=result.elapsed_ns / _NS,
            p10=percentile(buckets, 0.1),
            p50=percentile(buckets, 0.5),
            p99=percentile(buckets, 0.99),
            max=float(result.latency_max_ns),
            waiter_ns=result.waiter_ns,
            hog_ns=result.hog_ns,
            hits=result.wait.hits,
            gave_way=result.wait.gave_way,
            timeouts=result.wait.timeouts,
            sleeps=result.wait.sleeps,
        )

    @property
    def waiter_cpu(self) -> float:
        """The waiter's share of a CPU, 0 to 1."""
        return self.waiter_ns / _NS / self.seconds

    @property
    def hog_share(self) -> float:
        """The hog's share of what it and the waiter got of their CPU: a third party does not change it. NaN: no hog."""
        both = self.hog_ns + self.waiter_ns
        return self.hog_ns / both if self.hog_ns else math.nan

    @property
    def kicks_per_request(self) -> float:
        """How often the driver had to signal; NaN without requests."""
        return self.kicks / self.requests if self.requests else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Give the numbers under the names that --json promises; microseconds and seconds."""
        return {
            "requests": self.requests,
            "kicks": self.kicks,
            "seconds": round(self.seconds, 6),
            "latency_us": {
                "p10": round(self.p10 / _US, 3),
                "p50": round(self.p50 / _US, 3),
                "p99": round(self.p99 / _US, 3),
                "max": round(self.max / _US, 3),
            },
            "waiter_cpu_seconds": round(self.waiter_ns / _NS, 6),
            "hog_cpu_seconds": round(self.hog_ns / _NS, 6),
            "polls": {"hit": self.hits, "gave_way": self.gave_way, "timeout": self.timeouts},
            "sleeps": self.sleeps,
        }


@dataclass
class Row:
    """All rounds of one strategy, by situation: traffic, idle, hog."""

    rounds: dict[str, list[Measured]] = field(default_factory=dict)

    def add(self, situation: str, measured: Measured) -> None:
        """Take one measurement in."""
        self.rounds.setdefault(situation, []).append(measured)

    def median(self, situation: str, value: Callable[[Measured], float]) -> float:
        """Give a value's median over the rounds; NaN without any."""
        values = [value(measured) for measured in self.rounds.get(situation, [])]
        return median(values) if values else math.nan

    @property
    def p50_us(self) -> float:
        """Wake-up latency in traffic, microseconds."""
        return self.median("traffic", lambda measured: measured.p50 / _US)

    @property
    def p99_us(self) -> float:
        """Likewise."""
        return self.median("traffic", lambda measured: measured.p99 / _US)

    @property
    def kicks_per_request(self) -> float:
        """Signals that the driver had to send, in traffic."""
        return self.median("traffic", lambda measured: measured.kicks_per_request)

    @property
    def idle_cpu(self) -> float:
        """Share of a CPU that waiting costs when nothing comes, 0 to 1."""
        return self.median("idle", lambda measured: measured.waiter_cpu)

    @property
    def hog_share(self) -> float:
        """What a hog on the same CPU gets of it, with traffic; 0 to 1."""
        return self.median("hog", lambda measured: measured.hog_share)


@dataclass(frozen=True, kw_only=True)
class WaitReport:
    """The outcome of one run.

    Attributes:
        rows: By strategy.
        missing: Why this host lacks a strategy, by strategy.
        notes: What else to know about one, by strategy.

    """

    rows: dict[Any, Row]
    missing: dict[Any, str]
    notes: dict[Any, str]

    def against_off(self, name: str) -> float:
        """Relate the hog's share beside a strategy to that beside `off`; NaN when `off` took no part."""
        return self.rows[name].hog_share / self.rows["off"].hog_share if "off" in self.rows else math.nan

    def as_json(self, **more: Any) -> str:
        """Give one JSON object, with `more` (what was asked for) in front; null for what there is no number for."""
        return json.dumps(
            {
                **more,
                "strategies": {
                    name: {
                        "latency_us": {"p50": _finite(row.p50_us), "p99": _finite(row.p99_us)},
                        "idle_cpu": _finite(row.idle_cpu),
                        "hog_share": _finite(row.hog_share),
                        "hog_share_against_off": _finite(self.against_off(name)),
                        "kicks_per_request": _finite(row.kicks_per_request),
                        "rounds": {
                            situation: [measured.as_dict() for measured in rounds]
                            for situation, rounds in row.rounds.items()
                        },
                    }
                    for name, row in self.rows.items()
                },
                "missing": self.missing,
                "notes": self.notes,
            },
            indent=2,
        )

    def as_table(self, title: str) -> Table:
        """Give the table that people see."""
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("strategy", no_wrap=True)
        for column in (
            "wake-up\np50 µs",
            "\np99 µs",
            "CPU when\nidle",
            "a hog on the\nCPU gets",
            "against\noff",
            "kicks per\nrequest",
        ):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in self.rows.items():
            table.add_row(
                LABELS.get(name, name),
                number(row.p50_us),
                number(row.p99_us),
                _percent(row.idle_cpu),
                _percent(row.hog_share),
                _ratio(self.against_off(name)),
                number(row.kicks_per_request),
            )
        return table

    def remarks(self) -> list[str]:
        """Give the lines below the table: which strategies aren't there and why, and what to know of others."""
        both = [*self.notes.items(), *((name, f"not on this host: {why}") for name, why in self.missing.items())]
        return [f"{LABELS.get(name, name)}: {text}" for name, text in both]


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
