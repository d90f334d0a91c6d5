"""`kpoll bench wait` under the kernels that it is about: the strategies side by side, in one VM run.

The VM's CPUs are emulated (TCG), threads of a host that may be busy with other things: times are good for ratios only,
and of these the quick tenth of all wake-ups says most, since what a CPU loses to the host only ever adds.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.kernel.vm import SLOWER, vm_ok

BUDGET_US = 4000
# CPU 1 is left to the waiter and its hog: spins end when anybody else wants it.
MACHINE = ("--append", "isolcpus=1")
BENCH = [sys.executable, "-c", "from kpoll.backend.cli import main; main()", "bench", "wait", "--json"]
LOAD = ["--cpu", "1", "--driver-cpu", "0", "--rounds", "5", "--think-us", "200", "--poll-max-us", str(BUDGET_US)]

pytestmark = pytest.mark.skipif(SLOWER > 1, reason="a debug kernel's checks take longer than what is compared")


def measure(kernel: str, *options: str) -> dict[str, Any]:
    """Measure all strategies of a VM, in one run."""
    words = ["taskset", "-c", "0,1", *BENCH, *LOAD]
    said = vm_ok(*words, kernel=kernel, options=(*MACHINE, *options), seconds=300)
    print(said)
    found: dict[str, Any] = json.loads(said[said.index("{\n") :])  # lines on the progress come first
    strategies: dict[str, Any] = found["strategies"]
    return strategies


def quick_us(strategy: dict[str, Any]) -> float:
    """Return how long wake-ups take when the host leaves the VM alone, microseconds."""
    return min(float(measured["latency_us"]["p10"]) for measured in strategy["rounds"]["traffic"])


def total(strategy: dict[str, Any], situation: str, *names: str) -> int:
    """Add a number up over the rounds."""
    values = strategy["rounds"][situation]
    for name in names:
        values = [value[name] for value in values]
    return sum(values)


@pytest.fixture(scope="module")
def patched_kernel(patched: str) -> dict[str, Any]:
    return measure(patched, "--sysctl", f"fs.eventfd_busy_poll={BUDGET_US}")


def test_a_patched_kernel_has_all_strategies_but_the_module(patched_kernel: dict[str, Any]) -> None:
    assert list(patched_kernel) == ["off", "user", "kernel", "blind"]


def test_a_kernel_that_polls_wakes_faster_than_one_that_sleeps(patched_kernel: dict[str, Any]) -> None:
    assert quick_us(patched_kernel["kernel"]) <= 0.7 * quick_us(patched_kernel["off"])


def test_while_the_kernel_polls_the_driver_need_not_kick(patched_kernel: dict[str, Any]) -> None:
    kernel, off = patched_kernel["kernel"], patched_kernel["off"]
    assert total(kernel, "traffic", "polls", "hit") > 0
    assert total(kernel, "traffic", "kicks") <= total(kernel, "traffic", "sleeps")
    assert kernel["kicks_per_request"] < off["kicks_per_request"]


def test_a_hog_on_the_pollers_cpu_keeps_its_share(patched_kernel: dict[str, Any]) -> None:
    assert patched_kernel["kernel"]["hog_share_against_off"] >= 0.95
    assert patched_kernel["user"]["hog_share_against_off"] >= 0.95
    assert total(patched_kernel["kernel"], "hog", "polls", "gave_way") > 0


def test_a_blind_spin_takes_about_half_of_it(patched_kernel: dict[str, Any]) -> None:
    assert 0.35 <= patched_kernel["blind"]["hog_share_against_off"] <= 0.65


@pytest.mark.parametrize("name", ["off", "user", "kernel"])
def test_with_nothing_to_do_only_a_blind_spin_burns(patched_kernel: dict[str, Any], name: str) -> None:
    assert patched_kernel[name]["idle_cpu"] < 0.01
    assert patched_kernel["blind"]["idle_cpu"] > 0.9
