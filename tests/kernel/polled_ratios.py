"""What polling a disk's queues gains: one read at a time, with it and with interrupts, in the test VM."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.kernel.polled_disk import bench, start
from tests.kernel.quiet import SPIN_US

if TYPE_CHECKING:
    from pathlib import Path

# Many and short: on a host whose CPUs are others' as well, some of them go undisturbed.
ROUNDS, READS = 15, 40
KERNEL = ("--poll-max-us", str(SPIN_US))
# A disk each, of those that are alike: how it is waited for, and the options.
WAYS: dict[str, tuple[str, ...]] = {
    "io_uring, polled": ("user", "--engine", "io_uring", "--iopoll", "on"),
    "io_uring, interrupts": ("off", "--engine", "io_uring", "--iopoll", "off"),
    "aio, polled": ("kernel", "--engine", "aio", "--iopoll", "on", *KERNEL),
    "aio, interrupts": ("off", "--engine", "aio", "--iopoll", "off"),
    "aio, interrupts, ring watched": ("kernel", "--engine", "aio", "--iopoll", "off", *KERNEL),
}


def ratios(folder: Path) -> dict[str, list[float]]:
    """Return the rounds' median latencies, µs, in ascending order."""
    p50: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        daemons = [
            start(stack, f"/dev/nvme{number}n1", folder / way, *options, poll=poll)
            for number, (way, (poll, *options)) in enumerate(WAYS.items())
        ]
        for daemon in daemons:
            daemon.logged("listening")
        for _ in range(ROUNDS):
            for way in WAYS:
                p50[way].append(bench(folder / way, requests=READS).latency.p50 / 1000)
    return {way: sorted(each) for way, each in p50.items()}
