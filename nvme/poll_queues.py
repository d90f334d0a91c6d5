"""Which NVMe namespaces have queues to poll: completions without interrupts, if their driver was told to make some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import sysfs

if TYPE_CHECKING:
    from pathlib import Path as File

    from .topology import Topology

_PARAMETER: Final = "module/nvme/parameters/poll_queues"


@dataclass(frozen=True, kw_only=True)
class PollQueues:
    """A namespace, as far as polling goes.

    Attributes:
        namespace: Its name, such as nvme0n1.
        transports: Of the controllers that lead to it: pcie, tcp …
        there: Whether it can be polled; None: the kernel doesn't tell.

    """

    namespace: str
    transports: tuple[str, ...]
    there: bool | None


def poll_queues(topology: Topology, sys: File = sysfs.SYS) -> tuple[PollQueues, ...]:
    """Look at each namespace.

    Args:
        topology: What there is.
        sys: Where sysfs is.

    """
    found = []
    for subsystem, namespace in topology.namespaces():
        ways = {path.controller for path in namespace.paths}
        transports = {each.transport for each in subsystem.controllers if each.name in ways}
        found.append(
            PollQueues(
                namespace=namespace.name,
                transports=tuple(sorted(transports)),
                there=polls(namespace.name, sys),
            )
        )
    return tuple(found)


def polls(disk: str, sys: File = sysfs.SYS) -> bool | None:
    """Whether a disk's driver has queues to poll; None: the kernel doesn't tell, or it isn't there.

    Args:
        disk: Its name, such as nvme0n1.
        sys: Where sysfs is.

    """
    there = _number(sys / "block" / disk / "queue" / "io_poll")
    return None if there is None else bool(there)


def pcie_poll_queues(sys: File = sysfs.SYS) -> int | None:
    """Return what the parameter nvme.poll_queues says; None: the driver isn't loaded, or is too old for it."""
    return _number(sys / _PARAMETER)


def _number(path: File) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
