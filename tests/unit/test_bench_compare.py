"""The comparison: which cases and peers, and how medians become ratios and verdicts."""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kpoll.backend.bench.compare import CASES, Bar, Results, as_dict, choose_cases, choose_cpus, table
from kpoll.backend.bench.peers import KPOLL, QEMU, Peer, parse_peers
from kpoll.backend.bench.plot import draw
from kpoll.backend.bench.report import Latency, Report
from kpoll.backend.errors import UsageError

LATENCY = Latency(mean=1000.0, p50=1000.0, p99=1000.0, p999=1000.0, max=1000.0)
REPORT = Report(
    seconds=1.0,
    reads=1000,
    writes=0,
    errors=0,
    block_size=4096,
    latency=LATENCY,
    backend_cpu_ns=1_000_000,
    kicks=0,
    calls=0,
)
READ_QD32 = next(case for case in CASES if case.name == "read-qd32")


def results(kpoll: list[int], qemu: list[int]) -> Results:
    out = Results()
    for case in CASES:
        for peer, rounds in ((KPOLL, kpoll), (QEMU, qemu)):
            for reads in rounds:
                out.add(case, peer, replace(REPORT, reads=reads))
    return out


def test_a_ratio_is_that_of_the_medians() -> None:
    found = results([3000, 9000, 100], [1000, 2000, 1500])
    assert found.median(READ_QD32, KPOLL, "kIOPS") == 3.0
    assert found.ratio(READ_QD32, KPOLL, "kIOPS", QEMU) == 2.0


def test_a_peer_that_took_no_part_has_no_number_and_meets_no_bar() -> None:
    ratio = results([1000], []).ratio(READ_QD32, KPOLL, "kIOPS", QEMU)
    assert math.isnan(ratio)
    assert not Bar("kIOPS", ">=", 1.0).met(ratio)
    assert not Bar("p50 µs", "<=", 1.0).met(ratio)


def test_bars_are_met_from_their_limit_on() -> None:
    assert Bar("kIOPS", ">=", 1.45).met(1.45)
    assert not Bar("kIOPS", ">=", 1.45).met(1.44)
    assert Bar("p50 µs", "<=", 0.65).met(0.65)
    assert not Bar("p50 µs", "<=", 0.65).met(0.66)


def test_cases_are_chosen_by_the_start_of_their_names() -> None:
    assert choose_cases(()) == list(CASES)
    assert [case.name for case in choose_cases(("null", "read-2"))] == ["read-2x32", "null-qd1", "null-qd32"]
    assert [case.name for case in choose_cases(("read-qd1",))] == ["read-qd1"]  # and not read-qd128
    with pytest.raises(UsageError, match="--only trim"):
        choose_cases(("read", "trim"))


def test_both_sides_get_a_cpu_of_their_own() -> None:
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) > 1:
        assert choose_cpus(None, None) == (mine[0], mine[1])
        assert choose_cpus(mine[1], None) == (mine[1], mine[0])
    with pytest.raises(UsageError, match="two different ones"):
        choose_cpus(mine[0], mine[0])


def test_peers_are_named_commands() -> None:
    [spdk] = parse_peers(("spdk=vhost -S {socket} {disk}",), ("spdk=vhost --null {socket}",))
    assert spdk.command("disk", Path("/s"), Path("/d")) == ["vhost", "-S", "/s", "/d"]
    assert spdk.command("null", Path("/s"), None) == ["vhost", "--null", "/s"]
    assert Peer("other").command("disk", Path("/s"), None) is None


@pytest.mark.parametrize("value", ["spdk", "=vhost {socket}", "spdk=vhost"])
def test_a_peer_without_name_or_socket_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--peer"):
        parse_peers((value,), ())


@pytest.mark.parametrize("peers", [[KPOLL, QEMU], [KPOLL, QEMU, Peer("somebody-s-other-daemon")]])
def test_the_table_fits_a_terminal_of_80_columns(peers: list[Peer]) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(table(list(CASES), peers, results([18_416_000], [3_895_000]), 3))
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.get()
    for word in ("read-qd128", "CPU µs/IO", "18,416", "3,895", "4.73", "met", "missed"):
        assert word in shown.get()


def test_table_json_and_picture_show_every_case(tmp_path: Path) -> None:
    found = results([3000], [1000])
    cases, peers = list(CASES), [KPOLL, QEMU]
    assert table(cases, peers, found, 1).row_count == sum(len(case.metrics) for case in CASES)
    assert as_dict(cases, peers, found)["cases"]["read-qd32"]["ratios"]["kIOPS"] == 3.0
    draw(cases, peers, found, tmp_path / "blk.svg")
    picture = (tmp_path / "blk.svg").read_text()
    assert picture.count("<svg") == 1
