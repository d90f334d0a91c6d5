"""What `kpoll bench wait` makes of its measurements, and of what a host has."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from kpoll.backend.bench.wait import WaitLoad, missing, note
from kpoll.backend.bench.wait_report import Measured, Row, WaitReport
from kpoll.kernel.probe import KernelFacts

MS = 1_000_000
MEASURED = Measured(
    requests=1000, kicks=10, seconds=1.0, p10=1000.0, p50=2000.0, p99=9000.0, max=50_000.0, waiter_ns=20 * MS, hog_ns=0
)
HOG = replace(MEASURED, waiter_ns=100 * MS, hog_ns=300 * MS)
PATCHED = KernelFacts(patch=0, module=errno.ENOENT, eventfd_busy_poll_us=200)


def row(traffic: list[Measured], hog: Measured = HOG) -> Row:
    out = Row()
    for measured in traffic:
        out.add("traffic", measured)
    out.add("idle", MEASURED)
    out.add("hog", hog)
    return out


def shown(report: WaitReport) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(report.as_table("title"))
    return captured.get()


REPORT = WaitReport(
    rows={
        "off": row([MEASURED]),
        "kernel": row([MEASURED], replace(HOG, hog_ns=100 * MS)),
        "blind": row([MEASURED]),
    },
    missing={"module": "no device"},
    notes={"kernel": "spins 50 µs at most here"},
)


def test_values_are_medians_of_the_rounds() -> None:
    found = row([replace(MEASURED, p50=p50, kicks=kicks) for p50, kicks in ((1000, 0), (9000, 1000), (3000, 100))])
    assert found.p50_us == 3.0
    assert found.kicks_per_request == 0.1
    assert found.idle_cpu == 0.02


def test_a_hogs_share_is_of_what_it_and_the_waiter_got() -> None:
    assert REPORT.rows["off"].hog_share == 0.75
    assert REPORT.rows["kernel"].hog_share == 0.5
    assert REPORT.against_off("kernel") == pytest.approx(2 / 3)


def test_what_was_not_measured_has_no_number() -> None:
    report = WaitReport(rows={"user": Row()}, missing={}, notes={})
    found = json.loads(report.as_json())["strategies"]["user"]
    assert found["latency_us"] == {"p50": None, "p99": None}
    assert (
        found["idle_cpu"] is found["hog_share"] is found["hog_share_against_off"] is found["kicks_per_request"] is None
    )
    assert "nan" not in shown(report).lower()


def test_the_json_has_every_round_and_what_was_asked_for() -> None:
    found = json.loads(REPORT.as_json(think_us=20))
    assert found["think_us"] == 20
    assert found["missing"] == {"module": "no device"}
    [traffic] = found["strategies"]["off"]["rounds"]["traffic"]
    assert traffic["latency_us"] == {"p10": 1.0, "p50": 2.0, "p99": 9.0, "max": 50.0}
    assert traffic["waiter_cpu_seconds"] == 0.02


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    text = shown(REPORT)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for word in ("off", "kernel", "blind spin", "2.00", "9.00", "2.0 %", "75.0 %", "0.67", "0.010"):
        assert word in text


def test_below_the_table_is_what_is_limited_and_what_is_missing() -> None:
    assert REPORT.remarks() == ["kernel: spins 50 µs at most here", "module: not on this host: no device"]


def test_a_host_has_what_its_kernel_has() -> None:
    load = WaitLoad()
    for name in ("off", "user", "blind"):
        assert missing(name, load, KernelFacts()) is None
    assert missing("kernel", load, PATCHED) is None
    assert "EVENTFD_SET_POLL" in (missing("kernel", load, KernelFacts()) or "")
    assert missing("module", load, KernelFacts(module=0)) is None
    assert "modprobe eventfd_poll" in (missing("module", load, PATCHED) or "")


def test_a_spin_that_the_administrator_cuts_short_is_noted() -> None:
    load = WaitLoad(poll_max_us=100)
    assert "spins 200 µs at most here, 1000 are asked for" in (note("kernel", load, PATCHED) or "")
    assert note("kernel", load, replace(PATCHED, eventfd_busy_poll_us=1000)) is None
    assert "net.core.busy_poll" in (note("module", load, KernelFacts(module=0, net_busy_poll_us=0)) or "")
    assert note("module", load, KernelFacts(module=0)) is None, "nobody knows"
    assert note("user", load, KernelFacts()) is None


def test_beside_a_hog_requests_come_while_any_spin_still_has_budget() -> None:
    for poll_max_us in (1, 100, 1000, 5000):
        load = WaitLoad(poll_max_us=poll_max_us)
        assert load.hog_poll_max_us >= 1000
        assert 1.5 * load.hog_think_us < load.hog_poll_max_us
