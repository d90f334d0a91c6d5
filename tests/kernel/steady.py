"""Run inside the test VM: the daemon under steady load, then idle, then kicked once; prints what was seen, as JSON.

`python -m tests.kernel.steady STRATEGY DISK REQUESTS`. The worker has a CPU for itself (quiet.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.backend.bench.blk import BlkLoad, run_blk
from tests.cli.harness import IN, Guest, scrape, value
from tests.kernel.forked import ForkedDaemon
from tests.kernel.quiet import OTHER_CPU, SPIN_US, WORKER, WORKER_CPU, leave_the_worker_alone
from tests.threads import come_to_rest, cost, states

if TYPE_CHECKING:
    from kpoll.backend.bench.report import Report
    from tests.cli.harness import Daemon

IDLE_S = 2.0
PATIENCE_S = 60.0


def serving(strategy: str, disk: str, sock: Path, *options: str | Path) -> ForkedDaemon:
    """Describe the daemon: its worker on its CPU, with time to spin."""
    polling = ["--poll", strategy, "--poll-max-us", str(SPIN_US), "--cpus", str(WORKER_CPU)]
    return ForkedDaemon("blk", "--engine", "aio", "--blk-file", disk, *polling, "--socket-path", sock, *options)


def bench(sock: Path, requests: int, think_us: int = 0) -> Report:
    """Read at random, one request at a time, from a driver that never sleeps."""
    return run_blk(sock, BlkLoad(runtime=None, warmup=0, requests=requests, think_us=think_us, cpu=OTHER_CPU))


def waits(metrics: Path) -> dict[str, int]:
    """Return how the worker's waits ended so far: hit, gave_way, timeout, sleeps."""
    samples = scrape(metrics)
    polls = {how: int(value(samples, "kpoll_polls_total", result=how)) for how in ("hit", "gave_way", "timeout")}
    return {**polls, "sleeps": int(value(samples, "kpoll_sleeps_total"))}


def most_signals(pid: int) -> int:
    """Return the highest counter of a process's eventfds; the daemon reads those of its engines never."""
    counts = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the front-end's are being closed
            counts += re.findall(r"^eventfd-count:\s*([0-9a-f]+)$", path.read_text(), re.MULTILINE)
    return max(int(count, 16) for count in counts)


def idle_then_kicked(daemon: Daemon, sock: Path) -> dict[str, Any]:
    """Leave a started queue alone, and then ask for one sector."""
    with Guest(sock) as guest:
        guest.request(IN, 0, length=512)
        assert come_to_rest(daemon.pid, WORKER, PATIENCE_S), "the worker doesn't come to rest"
        before, kicks = cost(daemon.pid, WORKER), guest.driver.kicks
        time.sleep(IDLE_S)  # the measurement itself, not a wait for something to happen
        (state,) = states(daemon.pid, WORKER)
        idle = {"idle_cpu_ns": (cost(daemon.pid, WORKER) - before).cpu_ns, "idle_state": state}
        status, _ = guest.request(IN, 8, length=512)
        return {**idle, "woken_status": status, "woken_kicks": guest.driver.kicks - kicks}


def main(strategy: str, disk: str, requests: int) -> None:
    """Show it all."""
    leave_the_worker_alone()
    with tempfile.TemporaryDirectory() as folder:
        sock, metrics = Path(folder) / "s", Path(folder) / "m"
        with serving(strategy, disk, sock, "--metrics-socket", metrics) as daemon:
            started = daemon.logged("started")
            daemon.logged("listening")
            report = bench(sock, requests)
            seen = {
                "poll": started["poll"],
                "requests": report.requests,
                "kicks": report.kicks,
                "p50_us": report.latency.p50 / 1000,
                **waits(metrics),
                "most_signals": most_signals(daemon.pid),
                **idle_then_kicked(daemon, sock),
            }
            seen["exit"] = daemon.stop()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
