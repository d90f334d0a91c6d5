"""NVMe devices as sysfs shows them: to anybody, and without sending them a command.

Devices come and go while one looks: whatever isn't there any more counts as not there at all.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path as File
from typing import TYPE_CHECKING, Final, Literal

from .pages import text
from .topology import Controller, Host, Namespace, Path, Subsystem, Topology, by_name, by_nqn

if TYPE_CHECKING:
    from collections.abc import Iterator

SYS: Final = File("/sys")
ETC: Final = File("/etc/nvme")

SERIAL_MAX: Final = 20  # NVMe's, and virtio-blk's

_ATTRIBUTE_MAX: Final = 4096  # a page is the most that sysfs gives
_SECTOR: Final = 512  # of `size`, whatever the device's block
_NAMESPACE: Final = re.compile(r"nvme\d+n\d+")
_PATH: Final = re.compile(r"(nvme\d+)c\d+(n\d+)")
_CONTROLLER: Final = re.compile(r"nvme\d+")
_GENERIC: Final = re.compile(r"ng(\d+n\d+)")

type_kind = Literal["controller", "namespace"]


def scan(why: str, sys: File = SYS, etc: File = ETC) -> Topology:
    """Look at what there is.

    Args:
        why: Why it isn't libnvme that looks.
        sys: Where sysfs is.
        etc: Where nvme-cli keeps this host's name, which it has unless it connected under another.

    """
    default = (_attribute(etc, "hostnqn"), _attribute(etc, "hostid"))
    found: dict[tuple[str | None, str | None], list[Subsystem]] = {}
    for folder in _children(sys / "class" / "nvme-subsystem", re.compile(r"nvme-subsys\d+")):
        members: dict[tuple[str | None, str | None], list[File]] = {}
        for each in _children(folder, _CONTROLLER):
            nqn = _attribute(each, "hostnqn")
            members.setdefault((nqn, _attribute(each, "hostid")) if nqn else default, []).append(each)
        for host, controllers in members.items():
            found.setdefault(host, []).append(_subsystem(folder, controllers))
    hosts = [Host(nqn=nqn, id=hostid, subsystems=by_name(each)) for (nqn, hostid), each in found.items()]
    return Topology(source="sysfs", why_not_libnvme=why, hosts=by_nqn(hosts))


def identify(node: str, sys: File = SYS) -> tuple[type_kind, str] | None:
    """Say what a device node is: controller or namespace, and the kernel's name for it.

    A partition is its namespace, as is a namespace's character device (ng0n1). Returns None for what isn't of NVMe.
    Raises OSError when there is no such file.
    """
    status = os.stat(node)  # noqa: PTH116 - a Path would make another name of some names
    if not stat.S_ISBLK(status.st_mode) and not stat.S_ISCHR(status.st_mode):
        return None
    kind = "block" if stat.S_ISBLK(status.st_mode) else "char"
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    folder = (sys / "dev" / kind / device).resolve()
    if kind == "block":
        name = folder.parent.name if (folder / "partition").exists() else folder.name
        return ("namespace", name) if _NAMESPACE.fullmatch(name) else None
    if generic := _GENERIC.fullmatch(folder.name):
        return "namespace", f"nvme{generic[1]}"
    return ("controller", folder.name) if _CONTROLLER.fullmatch(folder.name) else None


def block_folder(device: int, sys: File = SYS) -> File:
    """Return where sysfs tells of a block device, which may be gone. Its name is that of what this resolves to.

    Args:
        device: Its number, as stat(2) has it.
        sys: Where sysfs is.

    """
    return sys / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"


def serial(device: int, sys: File = SYS) -> str | None:
    """Return a serial number for a namespace, in at most 20 ASCII characters: its EUI-64, or the controller's own.

    To the latter `_` and the NSID are added unless that is 1, for the disks of one controller must differ. Stable,
    whatever other namespaces come and go. None for another device, a partition, or a namespace without either.

    Args:
        device: The block device's number, as stat(2) has it.
        sys: Where sysfs is.

    """
    folder = block_folder(device, sys).resolve()
    if not _NAMESPACE.fullmatch(folder.name):
        return None
    if eui64 := _identifier(folder, "eui"):
        return eui64[:SERIAL_MAX]
    # In the folder of its controller, or its subsystem's.
    serial, nsid = _attribute(folder.parent, "serial"), _number(folder, "nsid")
    if serial is None or nsid is None:
        return None
    suffix = "" if nsid == 1 else f"_{nsid}"
    return serial[: SERIAL_MAX - len(suffix)] + suffix


def timeouts(controller: str, sys: File = SYS) -> tuple[str | None, str | None]:
    """Return a controller's fast_io_fail_tmo and ctrl_loss_tmo: what the kernel does about a lost connection.

    Seconds, or "off" for never; None where it doesn't tell, as of a controller that isn't reached over fabrics.
    """
    folder = sys / "class" / "nvme" / controller
    return _attribute(folder, "fast_io_fail_tmo"), _attribute(folder, "ctrl_loss_tmo")


def namespace_names(sys: File = SYS) -> set[str]:
    """Name all namespaces that are there."""
    return {each.name for each in _children(sys / "block", _NAMESPACE)}


def _children(folder: File, name: re.Pattern[str]) -> Iterator[File]:
    """Yield what is in a folder under such names, in any order; nothing for a folder that isn't there."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - iterdir() would not tell of its error before the first name
    except OSError:
        return
    yield from (folder / each for each in names if name.fullmatch(each))


def _attribute(folder: File, name: str) -> str | None:
    try:
        with (folder / name).open("rb") as file:
            return text(file.read(_ATTRIBUTE_MAX)) or None
    except OSError:
        return None


def _number(folder: File, name: str) -> int | None:
    value = _attribute(folder, name)
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,20}", value) else None


def _subsystem(folder: File, controllers: list[File]) -> Subsystem:
    namespaces: list[Namespace] = []
    paths: dict[str, list[Path]] = {}
    for each in controllers:
        # A namespace of one controller alone is in that one's folder; one that several may have is in the subsystem's.
        for found in _children(each, _NAMESPACE):
            namespaces += _namespace(found, (Path(name=found.name, controller=each.name, ana_state=None),))
        for found in _children(each, _PATH):
            head = _PATH.sub(r"\1\2", found.name)
            state = _attribute(found, "ana_state")
            paths.setdefault(head, []).append(Path(name=found.name, controller=each.name, ana_state=state))
    for found in _children(folder, _NAMESPACE):
        namespaces += _namespace(found, by_name(paths.get(found.name, ())))
    return Subsystem(
        name=folder.name,
        nqn=_attribute(folder, "subsysnqn") or "",
        controllers=by_name(_controller(each) for each in controllers),
        namespaces=by_name(namespaces),
    )


def _controller(folder: File) -> Controller:
    return Controller(
        name=folder.name,
        transport=_attribute(folder, "transport") or "",
        address=_attribute(folder, "address") or "",
        state=_attribute(folder, "state") or "",
        serial=_attribute(folder, "serial") or "",
        model=_attribute(folder, "model") or "",
        firmware=_attribute(folder, "firmware_rev") or "",
        queues=_number(folder, "queue_count"),
    )


def _namespace(folder: File, paths: tuple[Path, ...]) -> Iterator[Namespace]:
    """Yield it, unless it went away."""
    nsid, sectors = _number(folder, "nsid"), _number(folder, "size")
    block = _number(folder / "queue", "logical_block_size")
    if nsid is None or sectors is None or block is None:
        return
    yield Namespace(
        name=folder.name,
        nsid=nsid,
        size_bytes=sectors * _SECTOR,
        block_bytes=block,
        metadata_bytes=_number(folder, "metadata_bytes"),
        nguid=_identifier(folder, "nguid"),
        eui64=_identifier(folder, "eui"),
        uuid=_attribute(folder, "uuid"),
        paths=paths,
    )


def _identifier(folder: File, name: str) -> str | None:
    """Return an identifier's hexadecimal digits, which sysfs puts spaces or dashes between."""
    value = _attribute(folder, name)
    return re.sub(r"[ -]", "", value).lower() if value is not None else None
