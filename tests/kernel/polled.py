"""Run inside the test VM, whose NVMe driver has poll queues: a disk whose completions are polled for; prints JSON.

`python -m tests.kernel.polled IO_TEST [compare]`. The contents of its NVMe disks, which are alike, go. IO_TEST is
tests/c/test_io_uring.c. The workers share a CPU, which nobody else has (quiet.py): those whose turn it isn't sleep.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpoll.backend.bench.blk import BlkLoad, run_blk
from tests.cli.harness import FLUSH, IN, Daemon, Guest, refused, scrape, value
from tests.kernel.quiet import OTHER_CPU, WORKER, WORKER_CPU, leave_the_worker_alone
from tests.threads import come_to_rest, cost, states

if TYPE_CHECKING:
    from kpoll.backend.bench.report import Report

POLLED, NO_QUEUES = "/dev/nvme0n1", "/dev/loop0"
# What polling is compared with: the same engine with interrupts, and the engine that auto takes.
OTHERS = {
    "interrupts": ("/dev/nvme1n1", "--engine", "io_uring", "--iopoll", "off"),
    "aio": ("/dev/nvme2n1", "--engine", "aio"),
}
REQUESTS = 100_000
DISCARD = 11
# Many and short: on a host whose CPUs are others' as well, some of them go undisturbed.
ROUNDS, READS = 40, 25
IDLE_S = 2.0
PATIENCE_S = 60.0


def started(stack: ExitStack, disk: str, sock: Path, *options: str | Path) -> tuple[Daemon, Any]:
    """Start a daemon on its CPU; return it, and what it says of itself."""
    words = ("--poll", "user", "--cpus", str(WORKER_CPU), "--socket-path", sock)
    daemon = stack.enter_context(Daemon("blk", "--blk-file", disk, *words, *options))
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


def verified(sock: Path, metrics: Path) -> dict[str, Any]:
    """Write, read and verify, with polled completions."""
    before = interrupts(POLLED)
    report = bench(sock, rw="randrw", verify=True, size=16 << 20, iodepth=32, requests=REQUESTS)
    raised = interrupts(POLLED) - before
    samples = scrape(metrics)
    return {
        "interrupts": raised,
        "polled": sum(value(samples, "kpoll_requests_total", op=op) for op in ("read", "write")),
        "errors": report.errors,
        "mismatches": report.mismatches,
        "iops": report.iops,
    }


def beside(daemon: Daemon, sock: Path) -> dict[str, Any]:
    """Flush and discard beside polled reads, then leave the disk alone."""
    with Guest(sock) as guest:
        statuses = [guest.request(IN, 0, length=4096)[0], guest.request(FLUSH, 0)[0]]
        statuses.append(guest.request(DISCARD, 0, out=bytes(8) + (8).to_bytes(4, "little") + bytes(4))[0])
        statuses.append(guest.request(IN, 8, length=4096)[0])
        assert come_to_rest(daemon.pid, WORKER, PATIENCE_S), "the worker doesn't come to rest"
        before = cost(daemon.pid, WORKER)
        time.sleep(IDLE_S)  # the measurement itself, not a wait for something to happen
        (state,) = states(daemon.pid, WORKER)
        idle = (cost(daemon.pid, WORKER) - before).cpu_ns
        statuses.append(guest.request(IN, 0, length=512)[0])
    return {"statuses": statuses, "idle_cpu_ns": idle, "idle_state": state}


def one_at_a_time(socks: dict[str, Path]) -> dict[str, list[float]]:
    """Measure one read at a time, interleaved: median latencies, µs."""
    p50: dict[str, list[float]] = {name: [] for name in socks}
    for _ in range(ROUNDS):
        for name, sock in socks.items():
            p50[name].append(bench(sock, requests=READS).latency.p50 / 1000)
    return p50


def compared(folder: Path) -> dict[str, Any]:
    """Compare with what OTHERS do: latencies, and requests per second."""
    socks = {way: folder / way for way in ("iopoll", *OTHERS)}
    with ExitStack() as others:
        for way, (disk, *options) in OTHERS.items():
            started(others, disk, socks[way], *options)
        p50 = one_at_a_time(socks)
        iops = {way: bench(sock, iodepth=32, requests=10_000).iops for way, sock in socks.items()}
    return {"p50_us": p50, "iops": iops}


def refusal(folder: Path) -> str:
    """Ask for it on a device that has no poll queues."""
    (folder / "image").write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", NO_QUEUES, folder / "image"], check=True)
    return refused("blk", "--socket-path", folder / "s", "--blk-file", NO_QUEUES, "--iopoll", "on", code=1)


def main(io_test: str, *compare: str) -> None:
    """Show it all."""
    leave_the_worker_alone()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        seen: dict[str, Any] = {"refused": refusal(folder)}
        sock, metrics = folder / "iopoll", folder / "metrics"
        daemon, seen["started"] = started(stack, POLLED, sock, "--engine", "io_uring", "--metrics-socket", metrics)
        if compare:
            seen |= compared(folder)
        seen["verified"] = verified(sock, metrics)
        seen["beside"] = beside(daemon, sock)
        seen["exit"] = daemon.stop()
        environment = {**os.environ, "KPOLL_TEST_DISK": POLLED}
        test = subprocess.run([io_test], env=environment, capture_output=True, text=True, check=False)
        seen["io_test"] = [test.returncode, test.stdout + test.stderr]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
