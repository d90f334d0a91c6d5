"""`kpoll bench wait` as a user meets it: what it measures on this host, and what it says to mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from kpoll.kernel.probe import probe_kernel
from tests.unit.bench import KPOLL, kpoll_bench, one_line, printed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOUND_EVERYWHERE = ["off", "user", "blind"]

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


def bench(*options: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return kpoll_bench("wait", *options, before=before)


def report(*options: str) -> dict[str, Any]:
    return printed(bench("--quick", "--json", *options))


def test_every_strategy_is_measured_or_its_absence_explained() -> None:
    found = report()
    assert set(found["strategies"]) >= set(FOUND_EVERYWHERE)
    assert {*found["strategies"], *found["missing"]} == {"off", "user", "module", "kernel", "blind"}
    assert ("kernel" in found["strategies"]) == probe_kernel().set_poll
    for strategy in found["strategies"].values():
        assert 0 < strategy["latency_us"]["p50"] <= strategy["latency_us"]["p99"]
        assert set(strategy["rounds"]) == {"traffic", "idle", "hog"}
        assert strategy["rounds"]["traffic"][0]["requests"] > 0


def test_who_never_spins_sleeps_for_nothing_and_a_blind_spin_is_what_it_is_called() -> None:
    found = report("--strategy", "off", "--strategy", "blind")["strategies"]
    assert list(found) == ["off", "blind"]
    assert found["off"]["idle_cpu"] < 0.05
    assert found["blind"]["idle_cpu"] > 10 * found["off"]["idle_cpu"]
    assert found["blind"]["kicks_per_request"] == 0
    assert found["off"]["kicks_per_request"] > 0.5
    assert found["off"]["hog_share_against_off"] == 1
    # Half, but for what a scheduler's slices make of a short time on a busy machine.
    assert found["blind"]["hog_share_against_off"] < 0.85 < found["off"]["hog_share"]


def test_rounds_and_their_length_are_as_asked() -> None:
    found = report("--strategy", "user", "--rounds", "2", "--runtime", "0.05")
    rounds = found["strategies"]["user"]["rounds"]["traffic"]
    assert len(rounds) == 2
    assert all(measured["seconds"] >= 0.05 for measured in rounds)
    assert found["strategies"]["user"]["hog_share_against_off"] is None  # there is no `off` to relate it to


def test_people_get_a_table_and_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "wait.svg"
    run = bench("--quick", "--runtime", "0.05", "--plot", str(picture))
    assert run.returncode == 0, run.stderr
    for word in ("p50 µs", "CPU when", "a hog", "kicks per", *FOUND_EVERYWHERE):
        assert word in run.stdout
    if not probe_kernel().set_poll:
        assert "kernel: not on this host: the running kernel has no EVENTFD_SET_POLL" in run.stdout
    assert picture.read_text().count("<svg") == 1


def test_a_picture_can_be_a_bitmap(tmp_path: Path) -> None:
    picture = tmp_path / "wait.png"
    assert bench("--quick", "--runtime", "0.05", "--strategy", "off", "--plot", str(picture)).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_cpu_is_not_enough() -> None:
    only = min(os.sched_getaffinity(0))
    run = bench("--quick", before=lambda: os.sched_setaffinity(0, {only}))
    one_line(run, 1, "needs two CPUs", f"CPU {only} only")


@pytest.mark.skipif(probe_kernel().set_poll, reason="this kernel has it")
def test_a_strategy_that_is_asked_for_and_missing_is_one_line() -> None:
    one_line(bench("--strategy", "kernel"), 1, "--strategy kernel", "no EVENTFD_SET_POLL")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--strategy", "magic"], "--strategy"),
        (["--rounds", "0"], "--rounds 0"),
        (["--runtime", "0"], "--runtime 0"),
        (["--runtime", "nan"], "--runtime nan"),
        (["--think-us", "-1"], "--think-us -1"),
        (["--poll-max-us", "0"], "--poll-max-us 0"),
        (["--cpu", "100000"], "--cpu 100000"),
        (["--cpu", "0", "--driver-cpu", "0"], "two different ones"),
        (["--plot", "wait.txt"], ".svg or .png"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(options: list[str], named: str) -> None:
    one_line(bench(*options), 2, named)


def test_a_picture_that_cannot_be_written_is_told_after_the_measurement(tmp_path: Path) -> None:
    run = bench("--quick", "--runtime", "0.05", "--strategy", "off", "--plot", str(tmp_path / "none" / "wait.svg"))
    assert run.returncode == 1
    assert "No such file" in run.stderr.splitlines()[-1]


def test_ctrl_c_ends_a_run_at_once() -> None:
    words = [*KPOLL, "bench", "wait", "--runtime", "60", "--strategy", "off"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "round 1" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in stderr
