"""A worker never spins on a CPU that somebody else needs: a hog there keeps what it has beside one that never spins."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.harness import KPOLL, Daemon
from tests.threads import cost

if TYPE_CHECKING:
    from pathlib import Path

POLL_MAX_US = 1000
MEASURE_S = 1.0
ROUNDS = 3
HOG = "while :; do :; done"


def _measured(daemon: int, hog: int) -> float:
    """Of the time that these two had within a second, return the hog's part; what others took is nobody's fault."""
    before = cost(daemon), cost(hog)
    time.sleep(MEASURE_S)  # the measurement itself, not a wait for something to happen
    served, hogged = (cost(daemon) - before[0]).cpu_ns, (cost(hog) - before[1]).cpu_ns
    assert served > 0, "no traffic"
    return hogged / (served + hogged)


def hog_share(strategy: str, sock: Path) -> float:
    """Measure once: null disk, one request at a time, worker and hog on one CPU, the driver spinning on another."""
    driver_cpu, cpu = sorted(os.sched_getaffinity(0))[:2]
    options = ["--engine", "null", "--size", "1G", "--poll", strategy, "--poll-max-us", str(POLL_MAX_US)]
    with Daemon("blk", *options, "--cpus", str(cpu), "--socket-path", sock) as daemon:
        daemon.logged("listening")
        load = ["--socket-path", str(sock), "--runtime", "600", "--cpu", str(driver_cpu)]
        with (
            subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", HOG]) as hog,
            subprocess.Popen(
                [KPOLL, "bench", "blk", *load], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as bench,
        ):
            try:
                daemon.logged("vring_started")
                return _measured(daemon.pid, hog.pid)
            finally:
                hog.kill()
                bench.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the driver needs a CPU of its own")
def test_a_spin_in_userspace_leaves_a_hog_what_it_has_beside_a_worker_that_never_spins(tmp_path: Path) -> None:
    """A blind spin would leave it about half of the CPU."""
    rounds = [{poll: hog_share(poll, tmp_path / "s") for poll in ("off", "user")} for _ in range(ROUNDS)]
    seen = {poll: statistics.median(each[poll] for each in rounds) for poll in ("off", "user")}
    print(seen)
    assert seen["user"] >= 0.95 * seen["off"]
