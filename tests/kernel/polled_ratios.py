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
# A disk each, of those that are alike: how it is waited for, and the options. With interrupts the worker sleeps until
# one comes, or watches the ring in memory, so that it needn't be woken.
WAYS: dict[str, tuple[str, ...]] = {
    "io_uring, watched": ("user", "--engine", "io_uring", "--iopoll", "off", *KERNEL),
    "io_uring, polled": ("user", "--engine", "io_uring", "--iopoll", "on"),
    "io_uring, asleep": ("off", "--engine", "io_uring", "--iopoll", "off"),
    "aio, polled": ("kernel", "--engine", "aio", "--iopoll", "on", *KERNEL),
    "aio, watched": ("kernel", "--engine", "aio", "--iopoll", "off", *KERNEL),
    "aio, asleep": ("off", "--engine", "aio", "--iopoll", "off"),
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
