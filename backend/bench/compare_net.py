"""`make bench`, the net table: kpoll's cards against testpmd's vhost PMD, and against what their back-ends can do.

As for disks (compare.py) nothing is said about single numbers: both sides of a case are measured alternately, in turned
order, and the ratio of their medians counts. All of it happens in a network of its own, which is gone afterwards.

Two ceilings. testpmd spins on a CPU that it never gives back, and moves the same frames through the same rings for the
same driver. And a plain loop of system calls on the same kind of socket or tap, with the same batches but no virtqueue
before it, is as fast as a back-end on it can be. That loop needs no front-end beside it, so what is compared is frames
per second of the CPU time that they took: the same where a back-end is busy all the time, and no noise of others in it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kpoll.backend.bench.cable import new_network
from kpoll.backend.bench.compare import RESULTS, choose_cpus, host, main, warn_if_busy
from kpoll.backend.bench.net_cases import CASES, TAP, Case, Place
from kpoll.backend.bench.raw import lasting_tap, raise_link
from kpoll.backend.bench.report import number
from kpoll.backend.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Results:
    """All values, by case and side, one per round."""

    values: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def add(self, case: Case, side: int, value: float) -> None:
        """Take one measurement in; side 0 is kpoll's."""
        self.values.setdefault(case.name, ([], []))[side].append(value)

    def median(self, case: Case, side: int) -> float:
        """Give the median over the rounds."""
        return median(self.values[case.name][side])

    def ratio(self, case: Case) -> float:
        """Give kpoll's median divided by the other's."""
        return self.median(case, 0) / self.median(case, 1)


def measure(cases: list[Case], rounds: int, place: Place, progress: Callable[[str], None]) -> Results:
    """Run everything. Raises KpollError when a back-end could not be started, or broke down."""
    results = Results()
    os.sched_setaffinity(0, {place.cpus[1]})
    for turn in range(rounds):
        for case in cases:
            sides = [(0, "kpoll", case.kpoll), (1, case.peer, case.other)]
            for side, name, run in sides if turn % 2 == 0 else reversed(sides):
                progress(f"round {turn + 1} of {rounds}: {case.name}, {name}")
                results.add(case, side, run(place))
    return results


def table(cases: list[Case], results: Results, rounds: int) -> Table:
    """Give the table: a row per case, with kpoll's ratio against the bar."""
    title = f"network cards, front-end polling, medians of {rounds} interleaved rounds"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("case", no_wrap=True)
    out.add_column("metric", no_wrap=True)
    for column in ("kpoll", "peer", "", "ratio", "bar", " "):
        out.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        ratio = results.ratio(case)
        verdict = "" if case.bar is None else "[green]met[/]" if case.bar.met(ratio) else "[red]missed[/]"
        values = (number(results.median(case, side)) for side in (0, 1))
        bar = "" if case.bar is None else f"{case.bar.sense} {case.bar.limit:.2f}"
        out.add_row(case.name, case.metric, *values, case.peer, f"{ratio:.2f}", bar, verdict)
    return out


def as_dict(cases: list[Case], results: Results) -> dict[str, Any]:
    """Give everything that was measured, and what it was measured on, for JSON."""
    return {
        **host(),
        "cases": {
            case.name: {
                "metric": case.metric,
                "ratio": results.ratio(case),
                "bar": None if case.bar is None else f"{case.bar.sense} {case.bar.limit}",
                "runs": {"kpoll": results.values[case.name][0], case.peer: results.values[case.name][1]},
            }
            for case in cases
        },
    }


@contextmanager
def own_network() -> Iterator[socket.socket]:
    """Move into a network of our own, with a loopback interface and a tap; gives a UDP socket that nobody reads."""
    new_network()
    raise_link("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, lasting_tap(TAP):
        sink.bind(("127.0.0.1", 0))
        yield sink


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Measure everything so often.")
@click.option("--runtime", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds per measurement.")
@click.option("--only", multiple=True, metavar="CASE", help="Only these cases (a name or its start; repeatable).")
@click.option("--backend-cpu", type=int, metavar="N", help="The back-end's CPU.  [default: the first]")
@click.option("--frontend-cpu", type=int, metavar="N", help="The front-end's CPU.  [default: the second]")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def compare_net(
    *,
    rounds: int,
    runtime: float,
    only: tuple[str, ...],
    backend_cpu: int | None,
    frontend_cpu: int | None,
    output: Path,
) -> None:
    """Compare kpoll's network cards with testpmd's, and with loops of system calls that have no guest."""
    console = Console()
    cases = choose_cases(only)
    cpus = choose_cpus(backend_cpu, frontend_cpu)
    warn_if_busy(console)
    output.mkdir(parents=True, exist_ok=True)
    with own_network() as sink, tempfile.TemporaryDirectory(prefix="kpoll-bench-") as folder:
        place = Place(cpus, Path(folder), output, runtime, sink)
        results = measure(cases, rounds, place, lambda what: console.print(f"[dim]{what}[/]"))
    (output / "net.json").write_text(json.dumps(as_dict(cases, results), indent=2) + "\n")
    console.print(table(cases, results, rounds))
    console.print(f"numbers in {output / 'net.json'}")


def choose_cases(only: tuple[str, ...]) -> list[Case]:
    """Pick the cases whose names begin so, or all. Raises UsageError for what fits none."""
    for word in only:
        if not any(case.name.startswith(word) for case in CASES):
            names = ", ".join(case.name for case in CASES)
            raise UsageError(f"--only {word}: give one of {names}, or the start of some")
    return [case for case in CASES if not only or case.name.startswith(only)]


if __name__ == "__main__":
    sys.exit(main(compare_net))
