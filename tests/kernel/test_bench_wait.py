"""`kpoll bench wait` under the kernels that it is about: the strategies side by side, in one VM run.

The VM's CPUs are emulated (TCG), threads of a host that may be busy with other things: times are good for ratios only,
and of these the quick tenth of all wake-ups says most, since what a CPU loses to the host only ever adds.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.quiet import spin_for
from tests.kernel.vm import SLOWER, vm_ok

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled

BUDGET_US = 4000
BENCH = [sys.executable, "-c", "from kpoll.backend.cli import main; main()", "bench", "wait", "--json"]
# isolcpus=1 leaves that CPU to the waiter and its hog: spins end when anybody else wants it. Many short rounds, so that
# some meet a host that lets both CPUs run.
LOAD = ["--cpu", "1", "--driver-cpu", "0", "--rounds", "10", "--runtime", "0.25"]
LOAD += ["--think-us", "50", "--poll-max-us", str(BUDGET_US)]

pytestmark = pytest.mark.skipif(SLOWER > 1, reason="a debug kernel's checks take longer than what is compared")


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
def strategies(patched: str, patched_module: Compiled) -> dict[str, Any]:
    """Measure all strategies on the patched kernel, which takes the module too, in one run of the VM."""
    options = (
        *("--append", "isolcpus=1", "--module", str(patched_module.file)),
        *(*spin_for("kernel", BUDGET_US), *spin_for("module", BUDGET_US)),
    )
    said = vm_ok("taskset", "-c", "0,1", *BENCH, *LOAD, kernel=patched, options=options, seconds=300)
    print(said)
    found: dict[str, Any] = json.loads(said[said.index("{\n") :])  # lines on the progress come first
    assert not found["missing"], found["missing"]
    assert not found["notes"], found["notes"]
    measured: dict[str, Any] = found["strategies"]
    return measured


@pytest.mark.parametrize("name", ["kernel", "module"])
def test_a_kernel_that_polls_wakes_faster_than_one_that_sleeps(strategies: dict[str, Any], name: str) -> None:
    assert quick_us(strategies[name]) <= 0.7 * quick_us(strategies["off"])


def test_while_the_patched_kernel_polls_the_driver_need_not_kick(strategies: dict[str, Any]) -> None:
    kernel = strategies["kernel"]
    assert total(kernel, "traffic", "polls", "hit") > 0
    assert total(kernel, "traffic", "kicks") <= total(kernel, "traffic", "sleeps")
    assert kernel["kicks_per_request"] < strategies["off"]["kicks_per_request"]


# `user` tells by the clock that somebody else ran, which emulation distorts: test_giving_way.py has it, natively.
@pytest.mark.parametrize("name", ["module", "kernel"])
def test_a_hog_on_the_pollers_cpu_keeps_its_share(strategies: dict[str, Any], name: str) -> None:
    assert strategies[name]["hog_share_against_off"] >= 0.95


def test_it_keeps_it_since_the_kernel_gives_way(strategies: dict[str, Any]) -> None:
    assert total(strategies["kernel"], "hog", "polls", "gave_way") > 0


def test_a_blind_spin_takes_about_half_of_it(strategies: dict[str, Any]) -> None:
    assert 0.35 <= strategies["blind"]["hog_share_against_off"] <= 0.65


@pytest.mark.parametrize("name", ["off", "user", "module", "kernel"])
def test_with_nothing_to_do_only_a_blind_spin_burns(strategies: dict[str, Any], name: str) -> None:
    assert strategies[name]["idle_cpu"] < 0.01
    assert strategies["blind"]["idle_cpu"] > 0.9
