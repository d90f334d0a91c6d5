"""The net table: which cases there are, and how medians become ratios and verdicts; and that it really runs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from kpoll.backend.bench.compare_net import Results, as_dict, choose_cases, table
from kpoll.backend.bench.net_cases import CASES
from kpoll.backend.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

ECHO = next(case for case in CASES if case.name == "echo-64")
# One of each back-end, and of each that it is compared with: all of them take minutes.
WANTED = ("null-rx-64", "echo-64", "vxlan-tx-64", "vxlan-rx-64", "xdp-tx-64", "tap-tx-64", "udp-rtt-64")
MEASURED = [each for each in CASES if each.name in WANTED]


def results(kpoll: list[float], other: list[float]) -> Results:
    found = Results()
    for case in CASES:
        for side, values in enumerate((kpoll, other)):
            for value in values:
                found.add(case, side, value)
    return found


def test_a_ratio_is_that_of_the_medians() -> None:
    assert results([3, 90, 1], [2, 1, 50]).ratio(ECHO) == 1.5


def test_no_fewer_packets_than_testpmd_meet_the_bar() -> None:
    assert ECHO.bar is not None
    assert ECHO.bar.met(1.0)
    assert not ECHO.bar.met(0.99)


def test_cases_are_chosen_by_the_start_of_their_names() -> None:
    assert choose_cases(()) == list(CASES)
    assert [case.name for case in choose_cases(("echo-6", "tap"))] == ["echo-64", "tap-tx-64", "tap-tx-1500"]
    with pytest.raises(UsageError, match="--only zap"):
        choose_cases(("echo", "zap"))


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(table(list(CASES), results([12.5], [10.0]), 5))
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.get()
    for word in ("vxlan-tx-1500", "testpmd", "raw", "12.50", "1.25", "met"):
        assert word in shown.get()


def test_json_has_every_run_of_both_sides() -> None:
    found = as_dict(list(CASES), results([3, 4], [2, 2]))["cases"]["echo-64"]
    assert found["runs"] == {"kpoll": [3, 4], "testpmd": [2, 2]}
    assert found["ratio"] == 1.75
    assert found["bar"] == ">= 1.0"


@pytest.mark.skipif(os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2, reason="needs root and two CPUs")
def test_both_sides_of_a_case_are_measured(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kpoll.backend.bench.compare_net", "--rounds", "1", "--runtime", "0.1"]
    words += [word for case in MEASURED for word in ("--only", case.name)]
    done = subprocess.run(
        [*words, "--output", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads((tmp_path / "net.json").read_text())["cases"]
    assert list(cases) == [case.name for case in MEASURED]
    for case in MEASURED:
        for name in ("kpoll", case.peer):
            [value] = cases[case.name]["runs"][name]
            assert value > 0
