"""What `kpoll doctor` says of NVMe devices: whether they can be polled, asked, and reached over the network."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from kpoll.kernel.rights import CAP_SYS_ADMIN
from kpoll.nvme.libnvme import PACKAGE, SONAME

from .doctor import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kpoll.kernel.rights import Rights
    from kpoll.nvme.fabrics_probe import FabricsFacts
    from kpoll.nvme.poll_queues import PollQueues

_FABRICS: Final = frozenset({"tcp", "rdma"})

_finding = partial(Finding, area="nvme")


def nvme(
    namespaces: Sequence[PollQueues], parameter: int | None, *, libnvme: bool, fabrics: FabricsFacts, rights: Rights
) -> Iterator[Finding]:
    """Yield what is found.

    Args:
        namespaces: Of this host.
        parameter: What nvme.poll_queues says, if that is known.
        libnvme: Whether the library can be loaded.
        fabrics: How the network is reached.
        rights: Of this process.

    """
    if not namespaces:
        yield _finding(name="namespaces", state="missing", found="none; files and other disks are served all the same")
    for each in namespaces:
        yield _poll_queues(each, parameter)
    if libnvme:
        yield _finding(name="libnvme", state="good", found=f"{SONAME} can be loaded")
    else:
        yield _finding(
            name="libnvme", state="missing", found=f"{SONAME} isn't installed", change=f"`apt install {PACKAGE}`"
        )
    yield _tcp(fabrics, rights)


def _poll_queues(namespace: PollQueues, parameter: int | None) -> Finding:
    name = f"{namespace.namespace}: poll queues"
    if namespace.there:
        return _finding(name=name, state="good", found="its completions can be polled, without interrupts")
    if namespace.there is None:
        return _finding(name=name, state="unknown", found="the kernel doesn't tell (queue/io_poll)")
    if _FABRICS.intersection(namespace.transports):
        change = "connect it anew with `kpoll nvme connect … --nr-poll-queues 2` (as many as workers are to poll)"
    elif "pcie" not in namespace.transports:
        return _finding(name=name, state="missing", found=f"{', '.join(namespace.transports)} has none")
    elif parameter:
        change = (
            f"nvme.poll_queues is {parameter}, but was 0 when the driver started, or the device has too few queues: "
            f"boot with `nvme.poll_queues={parameter}`"
        )
    else:
        change = (
            "boot with `nvme.poll_queues=2` (as many as workers are to poll); where nvme is a module, the line "
            "`options nvme poll_queues=2` in /etc/modprobe.d/nvme.conf does it after `update-initramfs -u` and a reboot"
        )
    return _finding(name=name, state="improvable", found="none: each completion is an interrupt", change=change)


def _tcp(fabrics: FabricsFacts, rights: Rights) -> Finding:
    name = "NVMe over TCP"
    missing = partial(_finding, name=name, state="missing")
    if fabrics.tcp == "absent":
        return missing(found="the kernel has no nvme-tcp", change="take a kernel with CONFIG_NVME_TCP, as Debian's is")
    if fabrics.tcp == "unknown":
        found = "the driver isn't loaded, and this kernel's modules can't be seen from here"
        return _finding(name=name, state="unknown", found=found, change="ask on the host itself")
    if not fabrics.device:
        return missing(
            found="the driver isn't loaded",
            change="`modprobe nvme-tcp`; for good: `echo nvme-tcp > /etc/modules-load.d/kpoll.conf`",
        )
    if not (fabrics.openable and rights.has(CAP_SYS_ADMIN)):
        found = "the driver is there; to connect takes root, on the host itself"
        change = (
            "`kpoll nvme connect` as root, then `--blk-file` as whoever may open the disk; "
            "`kpoll blk --nvme-tcp` takes root itself"
        )
        return _finding(name=name, state="improvable", found=found, change=change)
    found = "the driver is there" if fabrics.tcp == "loaded" else "the driver is there, and loads itself"
    return _finding(name=name, state="good", found=found)
