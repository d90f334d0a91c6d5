"""Inside the test VM, whose NVMe driver has poll queues: a disk whose completions are polled for, loaded and counted.

The workers share a CPU, which nobody else has (quiet.py): those whose turn it isn't sleep.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.backend.bench.blk import BlkLoad, run_blk
from tests.cli.harness import scrape, value
from tests.kernel.forked import ForkedDaemon
from tests.kernel.quiet import OTHER_CPU, WORKER_CPU

if TYPE_CHECKING:
    from contextlib import ExitStack

    from kpoll.backend.bench.report import Report

POLLED = "/dev/nvme0n1"
PATIENCE_S = 60.0


def start(stack: ExitStack, disk: str, sock: Path, *options: str | Path, poll: str = "user") -> ForkedDaemon:
    """Start a daemon on its CPU."""
    words = ("--poll", poll, "--cpus", str(WORKER_CPU), "--socket-path", sock)
    return stack.enter_context(ForkedDaemon("blk", "--blk-file", disk, *words, *options))


def started(
    stack: ExitStack, disk: str, sock: Path, *options: str | Path, poll: str = "user"
) -> tuple[ForkedDaemon, Any]:
    """Start a daemon on its CPU, and wait for it; return it, and what it says of itself."""
    daemon = start(stack, disk, sock, *options, poll=poll)
    line = daemon.logged("started")
    daemon.logged("listening")
    return daemon, line


def bench(sock: Path, **load: Any) -> Report:
    """Ask, from a driver that sleeps while it waits: the VM's devices are emulated on the CPUs that it leaves."""
    return run_blk(sock, BlkLoad(runtime=None, warmup=0, cpu=OTHER_CPU, stall=PATIENCE_S, wait="sleep", **load))


def interrupts(disk: str) -> int:
    """Count what the I/O queues of a disk's controller have raised; queue 0 is the administration's."""
    controller = Path(disk).name.removesuffix("n1")
    queue = re.compile(rf"\b{controller}q[1-9]\d*$")
    lines = [line for line in Path("/proc/interrupts").read_text().splitlines() if queue.search(line)]
    assert lines, f"no vector of {disk}"
    cpus = os.cpu_count() or 1
    return sum(int(each) for line in lines for each in line.split()[1 : 1 + cpus])


def verified(sock: Path, metrics: Path, requests: int, depth: int = 32) -> dict[str, Any]:
    """Write, read and verify, with polled completions."""
    before = interrupts(POLLED)
    report = bench(sock, rw="randrw", verify=True, size=16 << 20, iodepth=depth, requests=requests)
    raised = interrupts(POLLED) - before
    samples = scrape(metrics)
    return {
        "interrupts": raised,
        "carried": sum(value(samples, "kpoll_requests_total", op=op) for op in ("read", "write")),
        "errors": report.errors,
        "mismatches": report.mismatches,
        "iops": report.iops,
    }
