"""Linux AIO on a disk with poll queues, which the patched kernel polls for whoever waits: inside the test VM."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.cli.harness import refused
from tests.kernel.polled_disk import POLLED, bench, interrupts, started, verified
from tests.kernel.quiet import SPIN_US

REQUESTS = 100_000
FEW = 2_000
SOME, SLOW_IOPS = 100, 25
BUDGET = Path("/proc/sys/fs/eventfd_busy_poll")
AIO = ("--engine", "aio", "--poll-max-us", str(SPIN_US))


def loaded(folder: Path, requests: int, depth: int) -> dict[str, Any]:
    """Load a daemon of its own, with so many requests under way."""
    sock, metrics = folder / f"aio{depth}", folder / f"aio{depth}.metrics"
    with ExitStack() as stack:
        daemon, said = started(stack, POLLED, sock, *AIO, "--iopoll", "on", "--metrics-socket", metrics, poll="kernel")
        return {**verified(sock, metrics, requests, depth), "started": said, "exit": daemon.stop()}


def left_to_kpoll(folder: Path) -> Any:
    """Return what a daemon says of itself that wasn't told how to do it."""
    with ExitStack() as stack:
        daemon, line = started(stack, POLLED, folder / "auto", poll="auto")
        daemon.stop()
    return line


def left_to_interrupts(disk: str, sock: Path) -> int:
    """Return how many of SOME reads were, one at a time."""
    before = interrupts(disk)
    bench(sock, rw="randread", iodepth=1, requests=SOME)
    return interrupts(disk) - before


def slowly(folder: Path, disk: str) -> dict[str, int]:
    """Read while spins are too short for a disk, and then while they are long enough."""
    sock = folder / "slow"
    with ExitStack() as stack:
        started(stack, disk, sock, *AIO, "--iopoll", "on", poll="kernel")
        BUDGET.write_text("1")
        seen = {"short": left_to_interrupts(disk, sock)}
        BUDGET.write_text(str(SPIN_US))
        return seen | {"long": left_to_interrupts(disk, sock)}


def aio(folder: Path, slow: str) -> dict[str, Any]:
    """Look at it, on a slow disk too; the kernel spins for as long as it likes, unless a part says otherwise."""
    others = ("--blk-file", POLLED, "--engine", "aio", "--poll", "user", "--iopoll", "on")
    seen = {
        "auto": left_to_kpoll(folder),
        "refused": refused("blk", "--socket-path", folder / "s", *others, code=1),
        "deep": loaded(folder, REQUESTS, 32),
    }
    # So short that the worker sleeps before any request is complete.
    before = BUDGET.read_text()
    BUDGET.write_text("1")
    seen["asleep"] = loaded(folder, FEW, 1)
    BUDGET.write_text(before)
    return seen | {"slow": slowly(folder, slow)}
