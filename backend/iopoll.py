"""Whether a disk's completions are polled for (--iopoll), and why.

It takes a block device whose driver has set queues aside for it, and io_uring, or Linux AIO under a kernel with kpoll's
patches that workers wait by. What the kernel knows of the device is found out elsewhere (nvme/c/target.c), and what its
AIO can do by making the engine; here is what follows, in words for the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import KpollError

if TYPE_CHECKING:
    from .config import BlkConfig

_REMEDY = (
    "boot with `nvme.poll_queues=2` on the kernel's command line (over Fabrics: `--nvme-tcp …,poll-queues=2`, or "
    "`kpoll nvme connect … --nr-poll-queues 2` first), or use --iopoll auto"
)


@dataclass(frozen=True)
class Iopoll:
    """Whether to poll for completions, and why (not), for the log."""

    use: bool
    why: str


def choose_iopoll(config: BlkConfig, *, block_device: bool, direct: bool, polls: bool, nowait: bool) -> Iopoll:
    """Turn --iopoll into what will be done with this disk.

    Args:
        config: What was asked for.
        block_device: Whether the disk is one.
        direct: Whether it takes O_DIRECT.
        polls: Whether its driver has queues to poll.
        nowait: Whether reads and writes may be told not to wait, as those that are polled for are.

    Raises KpollError when polling was asked for and can't be had.

    """
    if config.iopoll == "off":
        return Iopoll(use=False, why="--iopoll off")
    if config.engine == "null":
        return Iopoll(use=False, why="--engine null")
    obstacle = _obstacle(config, pollable=block_device and direct, polls=polls, nowait=nowait)
    if config.iopoll == "on":
        if obstacle:
            why, remedy = obstacle
            raise KpollError(f"{config.blk_file}: --iopoll on: {why}: {remedy}")
        return Iopoll(use=True, why="asked for")
    if obstacle:
        return Iopoll(use=False, why=obstacle[0])
    if config.poll.strategy == "off" or config.poll.max_us == 0:
        return Iopoll(use=False, why="--poll off" if config.poll.strategy == "off" else "--poll-max-us 0")
    return Iopoll(use=True, why="its driver has poll queues")


def _obstacle(config: BlkConfig, *, pollable: bool, polls: bool, nowait: bool) -> tuple[str, str] | None:
    """Say what keeps a disk from being polled, and what to do about it; None: nothing does."""
    if config.engine == "aio" and config.poll.strategy != "kernel":
        return (
            f"--engine aio polls under --poll kernel, and this is {config.poll.strategy}",
            "use --poll kernel (kernel/README.md), or --engine io_uring, or --iopoll auto",
        )
    if config.engine == "aio" and not config.poll.spins:
        return (
            "--engine aio polls while the kernel may spin, and polling is off on this host",
            "allow it with `sysctl fs.eventfd_busy_poll=100`, or use --engine io_uring, or --iopoll auto",
        )
    if not pollable:
        return (
            "is no block device with O_DIRECT, and only their queues can be polled",
            "give an NVMe namespace, or use --iopoll auto",
        )
    if not polls:
        return "its driver has no poll queues", _REMEDY
    if not nowait:
        return (
            "a layer above its driver can't be polled, as it knows no RWF_NOWAIT (dm-crypt, for one)",
            "give the NVMe namespace itself, or use --iopoll auto",
        )
    return None
