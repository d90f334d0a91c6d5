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
    "boot with `nvme.poll_queues=2` on the kernel's command line (a module: `modprobe nvme poll_queues=2`; NVMe over "
    "Fabrics: `kpoll nvme connect … --nr-poll-queues 2` first), or use --iopoll auto"
)


@dataclass(frozen=True)
class Iopoll:
    """Whether to poll for completions, and why (not), for the log."""

    use: bool
    why: str


def choose_iopoll(config: BlkConfig, *, block_device: bool, direct: bool, polls: bool) -> Iopoll:
    """Turn --iopoll into what will be done with this disk.

    Args:
        config: What was asked for.
        block_device: Whether the disk is one.
        direct: Whether it takes O_DIRECT.
        polls: Whether its driver has queues to poll.

    Raises KpollError when polling was asked for and can't be had.

    """
    if config.iopoll == "off":
        return Iopoll(use=False, why="--iopoll off")
    if config.engine == "null":
        return Iopoll(use=False, why="--engine null")
    if config.engine == "aio" and config.poll.strategy != "kernel":
        obstacle = f"--engine aio polls under --poll kernel, and this is {config.poll.strategy}"
        remedy = "use --poll kernel (kernel/README.md), or --engine io_uring, or --iopoll auto"
    elif not block_device or not direct:
        obstacle = "is no block device with O_DIRECT, and only their queues can be polled"
        remedy = "give an NVMe namespace, or use --iopoll auto"
    elif not polls:
        obstacle, remedy = "its driver has no poll queues", _REMEDY
    else:
        obstacle = remedy = ""
    if config.iopoll == "on":
        if obstacle:
            raise KpollError(f"{config.blk_file}: --iopoll on: {obstacle}: {remedy}")
        return Iopoll(use=True, why="asked for")
    if not obstacle and config.poll.strategy == "off":
        obstacle = "--poll off"
    return Iopoll(use=not obstacle, why=obstacle or "its driver has poll queues")
