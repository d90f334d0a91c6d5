"""How much of a CPU a worker leaves to a hog on the same CPU, while requests keep coming from another one.

`python -m tests.kernel.share STRATEGY...` prints it as JSON; the test VM runs it for the kernel's strategies.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cli.harness import KPOLL, Daemon
from tests.threads import cost

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


def hog_share(strategy: str) -> float:
    """Measure once: null disk, one request at a time, worker and hog on one CPU, the driver spinning on another."""
    driver_cpu, cpu = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        sock = Path(folder) / "s"
        options = ["--engine", "null", "--size", "1G", "--poll", strategy, "--poll-max-us", str(POLL_MAX_US)]
        with Daemon("blk", *options, "--cpus", str(cpu), "--socket-path", sock) as daemon:
            daemon.logged("listening")
            load = ["--socket-path", str(sock), "--runtime", "600", "--cpu", str(driver_cpu)]
            with (
                subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", HOG]) as hog,
                subprocess.Popen([KPOLL, "bench", "blk", *load], stdout=subprocess.DEVNULL, stderr=-3) as bench,
            ):
                try:
                    daemon.logged("vring_started")
                    return _measured(daemon.pid, hog.pid)
                finally:
                    hog.kill()
                    bench.kill()


def shares(*strategies: str) -> dict[str, float]:
    """Measure each several times, in turn, and return the medians."""
    rounds = [{strategy: hog_share(strategy) for strategy in strategies} for _ in range(ROUNDS)]
    return {strategy: statistics.median(each[strategy] for each in rounds) for strategy in strategies}


if __name__ == "__main__":
    print(json.dumps(shares(*sys.argv[1:])))
