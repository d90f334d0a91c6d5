"""One NVMe device, named by its node in /dev: all that can be found out about it; and what can't, and why.

The library asks the device; without it, sysfs tells what the kernel knows, and the rest stays unknown.
"""

from __future__ import annotations

import errno
import grp
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from . import sysfs
from .libnvme import PACKAGE, SONAME, Libnvme, StatusError
from .pages import IdentifyController, IdentifyNamespace, SmartLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .topology import Controller, Namespace, Subsystem, Topology

NO_LIBRARY: Final = f"{SONAME} isn't installed (Debian: `apt install {PACKAGE}`)"
_LEFT_OUT: Final = f"{SONAME} left out what this user may not open: run as root"
_NO_SMART: Final = "the kernel lets only CAP_SYS_ADMIN ask for it: run as root"

_GONE: Final = {errno.ENOENT, errno.ENODEV, errno.ENXIO}
_DENIED: Final = {errno.EACCES, errno.EPERM}

type_page = TypeVar("type_page")


class NvmeError(Exception):
    """A device can't be looked at; the message is one line that begins with its name and says why."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A controller, or a namespace and the controllers that lead to it.

    Attributes:
        node: What was asked for.
        subsystem: What it belongs to.
        controllers: The controller, or the namespace's.
        namespace: None: it is a controller.
        answers: What it says of itself.

    """

    node: str
    subsystem: Subsystem
    controllers: tuple[Controller, ...]
    namespace: Namespace | None
    answers: Answers


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a device says of itself; None where it isn't known.

    Attributes:
        identify_controller: The controller; of a namespace's several, the one that answered.
        identify_namespace: The namespace; None as well for a controller.
        smart: How the controller is.
        unknown: For each of these three that isn't known, and could be, the reason.

    """

    identify_controller: IdentifyController | None = None
    identify_namespace: IdentifyNamespace | None = None
    smart: SmartLog | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


def scan(library: Libnvme | None) -> Topology:
    """Look at all devices of this host, through the library where there is one and it sees them all, else in sysfs."""
    if library is None:
        return sysfs.scan(NO_LIBRARY)
    try:
        found = library.scan()
    except OSError as error:
        return sysfs.scan(f"{SONAME}: {error.strerror}")
    if {namespace.name for _, namespace in found.namespaces()} != sysfs.namespace_names():
        return sysfs.scan(_LEFT_OUT)
    return found


def look(node: str, library: Libnvme | None) -> Device:
    """Find out about one device.

    Args:
        node: Its file in /dev, or another name of that; a partition stands for its namespace.
        library: What asks it; None: nobody does.

    Raises:
        NvmeError: It isn't there (any more), isn't of NVMe, or may not be asked.

    """
    try:
        what = sysfs.identify(node)
    except OSError as error:
        raise NvmeError(f"{node}: {error.strerror}: give an NVMe device, such as /dev/nvme0n1") from error
    if what is None:
        raise NvmeError(f"{node}: is no NVMe controller or namespace: give one, such as /dev/nvme0n1")
    kind, name = what
    subsystem, controllers, namespace = _place(node, name, scan(library))
    if library is None:
        names = ["identify_controller", *(["identify_namespace"] if kind == "namespace" else []), "smart"]
        answers = Answers(unknown=dict.fromkeys(names, NO_LIBRARY))
    else:
        with opened(node) as fd:
            answers = ask(node, fd, kind, library)
    return Device(node=node, subsystem=subsystem, controllers=controllers, namespace=namespace, answers=answers)


@contextmanager
def opened(node: str) -> Iterator[int]:
    """Open a device to ask it; close it on leaving. Raises NvmeError."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(node, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def ask(node: str, fd: int, kind: sysfs.type_kind, library: Libnvme) -> Answers:
    """Have a device say what it is. Raises NvmeError when it went away, or may not be asked.

    Args:
        node: Its name, for messages.
        fd: The device.
        kind: What it is.
        library: What asks it.

    """
    unknown: dict[str, str] = {}

    def answer(name: str, parse: Callable[[bytes], type_page], question: Callable[[int], bytes]) -> type_page | None:
        try:
            return parse(question(fd))
        except StatusError as error:
            unknown[name] = f"the device refuses: {error}"
        except OSError as error:
            if error.errno not in _DENIED or name != "smart":
                raise _refused(node, error) from error
            unknown[name] = _NO_SMART  # Linux 6.2 and later let others identify a device that they may open
        return None

    return Answers(
        identify_controller=answer("identify_controller", IdentifyController.parse, library.identify_controller),
        identify_namespace=answer("identify_namespace", IdentifyNamespace.parse, library.identify_namespace)
        if kind == "namespace"
        else None,
        smart=answer("smart", SmartLog.parse, library.smart_log),
        unknown=unknown,
    )


def _place(node: str, name: str, topology: Topology) -> tuple[Subsystem, tuple[Controller, ...], Namespace | None]:
    """Find a controller or namespace. Raises NvmeError when it isn't there any more."""
    for subsystem, controller in topology.controllers():
        if controller.name == name:
            return subsystem, (controller,), None
    for subsystem, namespace in topology.namespaces():
        if namespace.name == name:
            through = {path.controller for path in namespace.paths}
            return subsystem, tuple(each for each in subsystem.controllers if each.name in through), namespace
    raise _went_away(node)


def _went_away(node: str) -> NvmeError:
    return NvmeError(f"{node}: went away while it was looked at")


def _refused(node: str, error: OSError) -> NvmeError:
    """Say why a device that was there can't be asked."""
    if error.errno in _GONE:
        return _went_away(node)
    if error.errno in _DENIED:
        return NvmeError(
            f"{node}: permission denied: to ask an NVMe device takes CAP_SYS_ADMIN and the right to open it, "
            f"which {_openers(node)} has: run as root"
        )
    return NvmeError(f"{node}: can't be asked: {error.strerror}")


def _openers(node: str) -> str:
    """Name who may open a device: root, and perhaps a group."""
    try:
        group = os.stat(node).st_gid  # noqa: PTH116 - as in sysfs.py
        return f"group {grp.getgrgid(group).gr_name}" if group else "root"
    except (OSError, KeyError):
        return "root"
