"""The strategies `kernel` and `module` where they are at home: wait set, worker, and the whole daemon, in the VM."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.data_plane import library, program
from tests.kernel.quiet import OPTIONS, SPIN_US, spin_for
from tests.kernel.vm import TOP, vm_ok

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.compiled import Compiled

PROGRAMS = [TOP / "tests" / "c" / "test_wait.c", TOP / "tests" / "c" / "test_worker.c"]
REQUESTS = 20_000  # on null_blk: a disk that answers at once
REAL_REQUESTS = 200  # on the NVMe disk that QEMU emulates


class Host:
    """A VM whose kernel has one of the strategies, with polling turned on for `spin_us` microseconds."""

    def __init__(self, strategy: str, kernel: str, module: Compiled | None = None) -> None:
        """Describe it; each command boots one."""
        self.strategy = strategy
        self._kernel = kernel
        self._insmod = () if module is None else ("--module", str(module.file))

    def run(self, script: str, *options: str, spin_us: int) -> str:
        """Run a shell script there."""
        options = (*self._insmod, *spin_for(self.strategy, spin_us), *options)
        return vm_ok("sh", "-ec", script, kernel=self._kernel, options=options, seconds=400)


@pytest.fixture(scope="module", params=["kernel", "module"])
def host(request: pytest.FixtureRequest) -> Host:
    """Give the patched kernel, and Debian's own with the module."""
    if request.param == "kernel":
        return Host("kernel", request.getfixturevalue("patched"))
    return Host("module", request.getfixturevalue("stock"), request.getfixturevalue("stock_module"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the C tests of the wait set and the worker, without sanitizers: these are slow there, and run elsewhere."""
    folder = tmp_path_factory.mktemp("programs")
    data_plane = library(folder, "-O2")
    for source in PROGRAMS:
        program(source, data_plane, folder, "-O2")
    return folder


def test_the_wait_set_and_the_worker_keep_their_contracts(host: Host, programs: Path) -> None:
    script = f"""
        export KPOLL_TEST_STRATEGY={host.strategy} KPOLL_TEST_SHORTER=50
        {programs}/test_wait
        {programs}/test_worker
    """
    said = host.run(script, "--share", str(programs), spin_us=200)
    print(said)
    behaviours = sum(source.read_text().count("\tEACH(") for source in PROGRAMS)
    assert said.splitlines().count(f"  {host.strategy}") == behaviours


def load(host: Host, disk: str, requests: int, *options: str) -> dict[str, Any]:
    """Drive the daemon in the VM; see steady.py."""
    script = f"{sys.executable} -m tests.kernel.steady {host.strategy} {disk} {requests}"
    seen: dict[str, Any] = json.loads(host.run(script, *OPTIONS, *options, spin_us=SPIN_US).splitlines()[-1])
    print(seen)
    assert (seen["poll"], seen["requests"], seen["exit"]) == (host.strategy, requests, 0)
    return seen


def is_idle_and_woken_by_one_kick(seen: dict[str, Any]) -> bool:
    """Say whether two seconds without requests cost no CPU at all, asleep, and the next request one kick."""
    return (seen["idle_cpu_ns"], seen["idle_state"], seen["woken_status"], seen["woken_kicks"]) == (0, "S", 0, 1)


def test_an_nvme_disk_is_served_asleep_when_idle_and_its_completions_signal_as_far_as_they_must(host: Host) -> None:
    seen = load(host, "/dev/nvme0n1", REAL_REQUESTS, "--nvme", "64M")
    assert is_idle_and_woken_by_one_kick(seen)
    if host.strategy == "kernel":
        assert seen["most_signals"] < 10  # the ring wakes: no RESFD at all
    else:
        assert seen["most_signals"] >= REAL_REQUESTS


def test_under_steady_load_the_doorbell_stays_off_while_the_kernel_spins(patched: str) -> None:
    seen = load(Host("kernel", patched), "/dev/nullb0", REQUESTS)
    assert seen["kicks"] <= REQUESTS / 10_000
    assert seen["hit"] >= REQUESTS / 2  # the worker finds the others before it waits: more, where a wait takes longer
    assert is_idle_and_woken_by_one_kick(seen)
