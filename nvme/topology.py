"""Which NVMe devices a host has, and how they hang together: hosts, subsystems, controllers, namespaces, paths.

The records of those who look: libnvme.py and sysfs.py. What the one in question can't tell is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

type_source = Literal["libnvme", "sysfs"]


@dataclass(frozen=True, kw_only=True)
class Path:
    """A way to a namespace.

    Attributes:
        name: The kernel's for it, such as nvme2c3n1; the namespace's own where there can be but one.
        controller: The one that it goes through, such as nvme3.
        ana_state: optimized, non-optimized, inaccessible …; None where there can be but one.

    """

    name: str
    controller: str
    ana_state: str | None


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """A disk.

    Attributes:
        name: Its block device in /dev, such as nvme0n1.
        nsid: Its number in the subsystem.
        size_bytes: How much it holds.
        block_bytes: Its logical block.
        metadata_bytes: Beside each block; None: not known.
        nguid: 32 hexadecimal digits; None: it has none.
        eui64: 16 of them; likewise.
        uuid: Likewise.
        paths: The ways to it.

    """

    name: str
    nsid: int
    size_bytes: int
    block_bytes: int
    metadata_bytes: int | None
    nguid: str | None
    eui64: str | None
    uuid: str | None
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Controller:
    """What carries out commands.

    Attributes:
        name: Its character device in /dev, such as nvme0.
        transport: pcie, tcp, loop …
        address: Where on that.
        state: live, resetting, connecting, deleting …
        serial: Its serial number.
        model: Its model.
        firmware: Its firmware's revision.
        queues: How many it has, the admin queue among them; None: not known.

    """

    name: str
    transport: str
    address: str
    state: str
    serial: str
    model: str
    firmware: str
    queues: int | None


@dataclass(frozen=True, kw_only=True)
class Subsystem:
    """Controllers and the namespaces that they have in common.

    Attributes:
        name: The kernel's for it, such as nvme-subsys0.
        nqn: The world's for it.
        controllers: By name.
        namespaces: By name.

    """

    name: str
    nqn: str
    controllers: tuple[Controller, ...]
    namespaces: tuple[Namespace, ...]


@dataclass(frozen=True, kw_only=True)
class Host:
    """As whom this machine talks to subsystems.

    Attributes:
        nqn: Its name; None: not known.
        id: Its identifier, a UUID; None: not known.
        subsystems: By name.

    """

    nqn: str | None
    id: str | None
    subsystems: tuple[Subsystem, ...]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """All of it, as it was a moment ago.

    Attributes:
        source: Who looked.
        why_not_libnvme: Why that wasn't libnvme; None when it was.
        hosts: By NQN; none without a controller.

    """

    source: type_source
    why_not_libnvme: str | None
    hosts: tuple[Host, ...]

    def subsystems(self) -> Iterator[Subsystem]:
        """Yield the subsystems of all hosts."""
        for host in self.hosts:
            yield from host.subsystems

    def namespaces(self) -> Iterator[tuple[Subsystem, Namespace]]:
        """Yield all namespaces, each with its subsystem."""
        for subsystem in self.subsystems():
            for namespace in subsystem.namespaces:
                yield subsystem, namespace

    def controllers(self) -> Iterator[tuple[Subsystem, Controller]]:
        """Yield all controllers, each with its subsystem."""
        for subsystem in self.subsystems():
            for controller in subsystem.controllers:
                yield subsystem, controller


type_named = TypeVar("type_named", Path, Namespace, Controller, Subsystem)


def by_name(records: Iterable[type_named]) -> tuple[type_named, ...]:
    """Sort records, nvme10 after nvme9."""
    return tuple(
        sorted(records, key=lambda record: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", record.name)])
    )


def by_nqn(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Sort hosts; one whose name isn't known comes first."""
    return tuple(sorted(hosts, key=lambda host: (host.nqn or "", host.id or "")))
