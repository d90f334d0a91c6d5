"""The series' own selftests, in the test VM: on the patched kernel, on one broken on purpose, and with the module.

What they test is written in them (tools/testing/selftests/eventfd_poll of the patched tree, kselftests). Each kernel is
booted once, all programs run in it one after the other, and each is then one test here.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kpoll.kernel.vm.machine import built
from tests.kernel.vm import DEBUGGING, Outcome, vm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.compiled import Compiled

PROGRAMS = ("aio", "aio_poll", "aio_ring", "arm", "args", "epoll", "kvm", "mm", "ops", "spin", "stress", "wake")
# aio_poll is about AIO that only the patch has.
MODULE_PROGRAMS = tuple(each for each in PROGRAMS if each != "aio_poll")
WAYS = ("poll", "select", "epoll_wait", "epoll_in_epoll")
# What the stress test counts on: enough for some events to fall into a window of microseconds.
EVENTS = 20_000 if DEBUGGING else 100_000
DEBUG = pytest.mark.skipif(DEBUGGING, reason="a debug kernel stands for the patched one alone")


@dataclass(frozen=True)
class Report:
    """What one program said, in TAP.

    Args:
        status: its exit status, or None if it did not come to its end.
        text: all that it printed.

    """

    status: int | None
    text: str

    @property
    def planned(self) -> int:
        """Return how many tests there are; 0 if it does not say."""
        plan = re.search(r"^1\.\.(\d+)", self.text, re.MULTILINE)
        return int(plan[1]) if plan else 0

    @property
    def passed(self) -> list[str]:
        """Return the names of the tests that passed."""
        return re.findall(r"^ok \d+ ([^#\n]+)$", self.text, re.MULTILINE)

    @property
    def failed(self) -> list[str]:
        """Return the names of the tests that failed."""
        return re.findall(r"^not ok \d+ (.*)$", self.text, re.MULTILINE)

    @property
    def skipped(self) -> list[str]:
        """Return the reasons of the tests that did not run."""
        return re.findall(r"^(?:ok \d+|1\.\.0) # SKIP (.*)$", self.text, re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One boot.

    Args:
        outcome: of the VM.
        reports: of each program that began.

    """

    outcome: Outcome
    reports: dict[str, Report]

    def report(self, program: str) -> Report:
        """Return a program's report, and print it; fail if the program never began."""
        assert program in self.reports, f"the VM did not get that far: {self.outcome.complaint}"
        print(self.reports[program].text)
        return self.reports[program]


def run(
    kernel: str,
    selftests: Path,
    programs: tuple[str, ...] = PROGRAMS,
    options: tuple[str, ...] = (),
    events: int = EVENTS,
) -> Run:
    """Boot a kernel and run programs of a folder in it, each to its end whatever the others said."""
    # In the VM, /run/host is the host's root, whatever else lies over the cache's place.
    script = [f"cd {shlex.quote(f'/run/host{selftests}')}", f"export EVENTFD_POLL_EVENTS={events}"]
    script += [f"echo @@ {each}; ./{each}; status=$?; echo; echo @@ $status" for each in programs]
    outcome = vm("sh", "-c", "\n".join(script), kernel=kernel, options=options, seconds=900)
    said = re.split(r"^@@ ([a-z_]+)\n", outcome.output, flags=re.MULTILINE)[1:]
    reports = {}
    for program, text in zip(said[::2], said[1::2], strict=True):
        end = re.search(r"^@@ (\d+)$", text, re.MULTILINE)
        reports[program] = Report(int(end[1]) if end else None, text)
    return Run(outcome, reports)


@pytest.fixture(scope="session")
def selftests(patched: str) -> Path:
    """Return where the programs are: beside the kernel that they came with, linked statically."""
    return built(patched) / "selftests" / "eventfd_poll"


@pytest.fixture(scope="session")
def on_patched(patched: str, selftests: Path) -> Run:
    """Run everything on the patched (or debug) kernel."""
    return run(patched, selftests)


@pytest.fixture(scope="session")
def with_module(stock: str, stock_module: Compiled, selftests: Path) -> Run:
    """Run everything on Debian's kernel with the module; the programs are those that came with the patches."""
    return run(stock, selftests, MODULE_PROGRAMS, options=("--module", str(stock_module.file)))


@pytest.fixture(scope="session")
def without_recheck(selftests: Path) -> Run:
    """Run the stress test on a kernel that sleeps without having looked again after it armed."""
    return run("norecheck", selftests, ("stress",), events=20_000)


def test_every_program_that_is_installed_is_run_here(selftests: Path) -> None:
    listed = {each.name for each in selftests.iterdir() if each.is_file() and each.stat().st_mode & 0o111}
    assert listed == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_patched_kernel_passes_and_leaves_nothing_out(on_patched: Run, program: str) -> None:
    report = on_patched.report(program)
    assert report.failed == []
    assert report.skipped == []
    assert len(report.passed) == report.planned > 0
    assert report.status == 0


def test_the_patched_kernel_has_nothing_to_complain_about(on_patched: Run) -> None:
    assert (on_patched.outcome.status, on_patched.outcome.complaint) == (0, "")


@DEBUG
@pytest.mark.parametrize("program", MODULE_PROGRAMS)
def test_the_module_passes_all_that_a_module_can_do(with_module: Run, program: str) -> None:
    report = with_module.report(program)
    assert report.failed == []
    assert [reason for reason in report.skipped if not reason.startswith("module: ")] == []
    assert len(report.passed) + len(report.skipped) == report.planned > 0
    assert report.status == 0
    # Of F_ARM alone there is nothing that a module could pass.
    assert report.passed or program == "arm"


@DEBUG
def test_debians_kernel_has_nothing_to_complain_about_the_module(with_module: Run) -> None:
    assert (with_module.outcome.status, with_module.outcome.complaint) == (0, "")


@DEBUG
@pytest.mark.parametrize("way", WAYS)
def test_without_the_look_after_arming_the_stress_test_sees_wake_ups_lost(without_recheck: Run, way: str) -> None:
    report = without_recheck.report("stress")
    assert f"stress.{way}.the_kernel_turns_the_doorbell_on" in report.failed
    # What needs no such look is as before: the kernel is broken in this alone.
    assert f"stress.{way}.the_doorbell_is_always_on" in report.passed
