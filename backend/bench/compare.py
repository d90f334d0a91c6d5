"""`make bench`: kpoll and qemu-storage-daemon on the same device, alternately, in one table with ratios.

The machine that this runs on is noisy and slower or faster than the next one, so nothing is said about single
numbers: rounds are interleaved (every back-end once per case and round, the order turned round each time), each case
is the median over the rounds, and what counts is the ratio. Back-end and front-end have a CPU each.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kpoll.backend.bench.blk import BlkLoad, run_blk
from kpoll.backend.bench.peers import KPOLL, QEMU, Peer, parse_peers, running
from kpoll.backend.bench.report import number
from kpoll.backend.bench.zram import zram
from kpoll.backend.errors import KpollError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kpoll.backend.bench.report import Report

type_metric = Literal["kIOPS", "p50 µs", "CPU µs/IO", "Mpps", "M/CPU s"]  # the last two are of cards

RESULTS: Final = Path("bench-results")
ZRAM_SIZE: Final = 2 << 30
WARMUP_S: Final = 0.3
_BUSY: Final = 0.5  # load average above which the machine is not quiet

METRICS: Final[dict[type_metric, Callable[[Report], float]]] = {
    "kIOPS": lambda report: report.iops / 1e3,
    "p50 µs": lambda report: report.latency.p50 / 1e3,
    "CPU µs/IO": lambda report: (report.cpu_ns_per_io or float("nan")) / 1e3,
}


@dataclass(frozen=True)
class Bar:
    """What kpoll's ratio to qemu-storage-daemon has to be: at least (`>=`) or at most (`<=`) a limit."""

    metric: type_metric
    sense: Literal[">=", "<="]
    limit: float

    def met(self, ratio: float) -> bool:
        """Tell whether a ratio meets it; never for NaN."""
        return ratio >= self.limit if self.sense == ">=" else ratio <= self.limit


@dataclass(frozen=True)
class Case:
    """One load. `show` is the metric that its row reports when no bar names one."""

    name: str
    target: Literal["disk", "null"]
    load: dict[str, Any]
    bars: tuple[Bar, ...] = ()
    show: type_metric = "kIOPS"

    @property
    def metrics(self) -> list[type_metric]:
        """What the table shows of it."""
        return list(dict.fromkeys([self.show, *(bar.metric for bar in self.bars)]))


CASES: Final = (
    Case("read-qd1", "disk", {"iodepth": 1}, (Bar("p50 µs", "<=", 0.65),), "p50 µs"),
    Case("read-qd32", "disk", {"iodepth": 32}, (Bar("kIOPS", ">=", 1.45), Bar("CPU µs/IO", "<=", 0.75))),
    Case("read-qd64", "disk", {"iodepth": 64}),
    Case("read-qd128", "disk", {"iodepth": 128}),
    Case("read-2x32", "disk", {"iodepth": 32, "queues": 2}, (Bar("kIOPS", ">=", 1.35),)),
    Case("write-qd1", "disk", {"iodepth": 1, "rw": "randwrite"}, (), "p50 µs"),
    Case("write-qd32", "disk", {"iodepth": 32, "rw": "randwrite"}, (Bar("kIOPS", ">=", 1.2),)),
    Case("null-qd1", "null", {"iodepth": 1}, (Bar("p50 µs", "<=", 0.47),), "p50 µs"),
    Case("null-qd32", "null", {"iodepth": 32}, (Bar("kIOPS", ">=", 3.0),)),
)


@dataclass
class Results:
    """All reports of a comparison: by case, then by peer, one per round."""

    reports: dict[str, dict[str, list[Report]]] = field(default_factory=dict)

    def add(self, case: Case, peer: Peer, report: Report) -> None:
        """Take one run in."""
        self.reports.setdefault(case.name, {}).setdefault(peer.name, []).append(report)

    def median(self, case: Case, peer: Peer, metric: type_metric) -> float:
        """Give a metric's median over the rounds; NaN where the peer did not take part."""
        values = [METRICS[metric](report) for report in self.reports.get(case.name, {}).get(peer.name, [])]
        return median(values) if values else float("nan")

    def ratio(self, case: Case, peer: Peer, metric: type_metric, reference: Peer) -> float:
        """Give the quotient of two medians."""
        return self.median(case, peer, metric) / self.median(case, reference, metric)


def measure(
    cases: list[Case],
    peers: list[Peer],
    rounds: int,
    runtime: float,
    cpus: tuple[int, int],
    logs: Path,
    progress: Callable[[str], None],
) -> Results:
    """Run everything.

    Args:
        cases: What to measure.
        peers: The back-ends.
        rounds: How often.
        runtime: Seconds each.
        cpus: The back-end's CPU and the front-end's.
        logs: Folder for the back-ends' output.
        progress: Told what begins.

    Raises:
        KpollError: A back-end could not be started or failed a request; zram could not be had.

    """
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kpoll-bench-")))
        disk = None
        if any(case.target == "disk" for case in cases):
            progress(f"filling a zram device of {ZRAM_SIZE >> 30} GiB with random data")
            disk = stack.enter_context(zram(ZRAM_SIZE))
        os.sched_setaffinity(0, {cpus[1]})
        for number in range(rounds):
            for case in cases:
                for peer in peers if number % 2 == 0 else reversed(peers):
                    command = peer.command(case.target, folder / "socket", disk)
                    if command is None:
                        continue
                    progress(f"round {number + 1} of {rounds}: {case.name}, {peer.name}")
                    load = BlkLoad(runtime=runtime, warmup=WARMUP_S, cpu=cpus[1], seed=number + 1, **case.load)
                    with running(command, folder / "socket", cpus[0], logs / f"{peer.name}.log"):
                        report = run_blk(folder / "socket", load)
                    if report.complaint:
                        raise KpollError(f"{peer.name}, {case.name}: {report.complaint}")
                    results.add(case, peer, report)
    return results


def table(cases: list[Case], peers: list[Peer], results: Results, rounds: int) -> Table:
    """Give the table: a row per case and metric, a column per peer, and kpoll's ratios against the bars."""
    title = f"4 KiB, front-end polling, medians of {rounds} interleaved rounds"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("case", "metric"):
        out.add_column(column, no_wrap=True)
    for peer in peers:
        out.add_column(peer.name, justify="right", overflow="fold", min_width=7)
    for column in ("ratio", "bar", ""):
        out.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        for metric in case.metrics:
            bar = next((bar for bar in case.bars if bar.metric == metric), None)
            ratio = results.ratio(case, peers[0], metric, peers[1])
            verdict = "" if bar is None else ("[green]met[/]" if bar.met(ratio) else "[red]missed[/]")
            out.add_row(
                case.name,
                metric,
                *(number(results.median(case, peer, metric)) for peer in peers),
                f"{ratio:.2f}",
                "" if bar is None else f"{bar.sense} {bar.limit:.2f}",
                verdict,
            )
    return out


def host() -> dict[str, Any]:
    """Say when and on what something is measured, for JSON."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def warn_if_busy(console: Console) -> None:
    """Say that ratios will be wrong where others use the machine."""
    busy = os.getloadavg()[0]
    if busy > _BUSY:
        console.print(f"[yellow]the machine is not quiet (load {busy:.1f}): expect noise[/]")


def as_dict(cases: list[Case], peers: list[Peer], results: Results) -> dict[str, Any]:
    """Give everything that was measured, and what it was measured on, for JSON."""
    return {
        **host(),
        "cases": {
            case.name: {
                "ratios": {metric: results.ratio(case, peers[0], metric, peers[1]) for metric in case.metrics},
                "bars": {bar.metric: f"{bar.sense} {bar.limit}" for bar in case.bars},
                "runs": {name: [r.as_dict() for r in runs] for name, runs in results.reports[case.name].items()},
            }
            for case in cases
        },
    }


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Measure everything so often.")
@click.option("--runtime", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds per measurement.")
@click.option("--only", multiple=True, metavar="CASE", help="Only these cases (a name or its start; repeatable).")
@click.option("--peer", multiple=True, metavar="NAME=COMMAND", help="One more back-end; {socket}, {disk} are replaced.")
@click.option("--null-peer", multiple=True, metavar="NAME=COMMAND", help="One more back-end with a null disk.")
@click.option("--backend-cpu", type=int, metavar="N", help="The back-end's CPU.  [default: the first]")
@click.option("--frontend-cpu", type=int, metavar="N", help="The front-end's CPU.  [default: the second]")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def compare(
    *,
    rounds: int,
    runtime: float,
    only: tuple[str, ...],
    peer: tuple[str, ...],
    null_peer: tuple[str, ...],
    backend_cpu: int | None,
    frontend_cpu: int | None,
    output: Path,
) -> None:
    """Compare kpoll with qemu-storage-daemon (and others), on zram and on nothing."""
    from kpoll.backend.bench.plot import draw  # noqa: PLC0415 - a missing matplotlib is told before measuring

    console = Console()
    cases = choose_cases(only)
    cpus = choose_cpus(backend_cpu, frontend_cpu)
    peers = [KPOLL, QEMU, *parse_peers(peer, null_peer)]
    warn_if_busy(console)
    output.mkdir(parents=True, exist_ok=True)
    results = measure(cases, peers, rounds, runtime, cpus, output, lambda what: console.print(f"[dim]{what}[/]"))
    (output / "blk.json").write_text(json.dumps(as_dict(cases, peers, results), indent=2) + "\n")
    draw(cases, peers, results, output / "blk.svg")
    console.print(table(cases, peers, results, rounds))
    console.print(f"numbers in {output / 'blk.json'}, drawn in {output / 'blk.svg'}")


def choose_cases(only: tuple[str, ...]) -> list[Case]:
    """Pick the cases that are named, or whose names begin so, or all. Raises UsageError for what fits none."""
    names = [case.name for case in CASES]
    chosen = set(names if not only else ())
    for word in only:
        fitting = [word] if word in names else [name for name in names if name.startswith(word)]
        if not fitting:
            raise UsageError(f"--only {word}: give one of {', '.join(names)}, or the start of some")
        chosen.update(fitting)
    return [case for case in CASES if case.name in chosen]


def choose_cpus(backend: int | None, frontend: int | None) -> tuple[int, int]:
    """Pick a CPU for the back-end and another for the front-end. Raises KpollError or UsageError."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        raise KpollError("a comparison needs two CPUs, one for the back-end and one for the front-end")
    first = mine[0] if backend is None else backend
    second = next(cpu for cpu in mine if cpu != first) if frontend is None else frontend
    if first == second or first not in mine or second not in mine:
        raise UsageError(f"--backend-cpu {first}, --frontend-cpu {second}: give two different ones of {mine}")
    return first, second


def main(command: click.Command = compare) -> int:
    """Run it (or the like of it) as a program of its own. Gives the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # back-ends stop and zram goes, as on Ctrl-C
    try:
        command.main(standalone_mode=False)
    except click.ClickException as e:
        click.echo(f"bench: {' '.join(e.format_message().split())}", err=True)
        return e.exit_code
    except KpollError as e:
        click.echo(f"bench: {e}", err=True)
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
