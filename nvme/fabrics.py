"""NVMe over Fabrics: connect to a subsystem, ask what a target offers, disconnect; through libnvme.

The kernel carries a connection out inside one write(2), which may take as long as a network likes. So it happens in a
process of its own, for which nobody waits when its time is over: what it makes yet it undoes. A TCP address is tried
before, since that tells more.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Final, Literal

from . import sysfs
from .bounded import CrashedError, TooLateError, bounded
from .device import NO_LIBRARY
from .libnvme_fabrics import (
    ENVME_CONNECT_ALREADY,
    ENVME_CONNECT_CONNREFUSED,
    ENVME_CONNECT_INVAL,
    ENVME_CONNECT_OPEN,
    Fabrics,
    FabricsError,
)
from .nqn import DISCOVERY_NQN
from .pages import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .libnvme import Libnvme
    from .topology import Controller, Subsystem

type_transport = Literal["tcp", "rdma", "loop"]

TRANSPORTS: Final[tuple[type_transport, ...]] = ("tcp", "rdma", "loop")
PORT: Final = 4420  # IANA's for NVMe over Fabrics
DISCOVERY_PORT: Final = 8009  # over TCP; many targets, Linux's among them, have it at the other one all the same
NODE: Final = File("/dev/nvme-fabrics")

_REACH_S: Final = 5.0
_ANSWER_S: Final = 15.0  # an admin queue, its commands, and as many I/O queues as there are CPUs
_LEAVE_S: Final = 30.0

_MACHINE_ID: Final = File("/etc/machine-id")
_APPLICATION: Final = uuid.UUID("5d7c1d0e-3b0a-4c55-9f7e-0c6a2e8b41d3")  # ours; another one renames every host
_UUID: Final = re.compile(r"nqn\.2014-08\.org\.nvmexpress:uuid:([0-9a-fA-F-]{36})")


class ConnectError(Exception):
    """No connection; the message is one line that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a controller is.

    Attributes:
        transport: How it is reached.
        traddr: An IP address; of loop nothing, or what its port calls itself.
        trsvcid: The TCP or RDMA port; None for loop.
        host_traddr: The local address to use; None: as routing has it.
        host_iface: The local interface to use; likewise.

    """

    transport: type_transport
    traddr: str = ""
    trsvcid: int | None = None
    host_traddr: str | None = None
    host_iface: str | None = None

    def __str__(self) -> str:
        """Write it as people do."""
        if self.trsvcid is None:
            return f"{self.transport} {self.traddr}".rstrip()
        return (
            f"{self.transport} [{self.traddr}]:{self.trsvcid}"
            if ":" in self.traddr
            else (f"{self.transport} {self.traddr}:{self.trsvcid}")
        )

    def is_of(self, controller: Controller) -> bool:
        """Whether a controller is there."""
        fields = dict(part.partition("=")[::2] for part in controller.address.split(","))
        if controller.transport != self.transport:
            return False
        if self.transport == "loop":
            return fields.get("traddr", "") == self.traddr
        try:
            same = ipaddress.ip_address(fields.get("traddr", "")) == ipaddress.ip_address(self.traddr)
        except ValueError:
            return False
        return same and fields.get("trsvcid") == str(self.trsvcid)


@dataclass(frozen=True, kw_only=True)
class HostName:
    """As whom to connect.

    Attributes:
        nqn: The host's name.
        id: Its UUID; None: the kernel's.

    """

    nqn: str
    id: str | None


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """What the kernel does about a connection that is lost; seconds, None: its own default.

    Attributes:
        reconnect_delay: Between two attempts.
        ctrl_loss_tmo: After how long it gives up and removes the controller; -1: never.
        fast_io_fail_tmo: After how long requests fail rather than wait for it.
        keep_alive_tmo: How often it asks whether the controller is still there.

    """

    reconnect_delay: int | None = None
    ctrl_loss_tmo: int | None = None
    fast_io_fail_tmo: int | None = None
    keep_alive_tmo: int | None = None


@dataclass(frozen=True, kw_only=True)
class Queues:
    """How many queues to ask a target for, beside the admin queue.

    Attributes:
        io: That tell of completions by themselves; None: one per CPU.
        poll: More of them, whose completions are looked for; None: none.

    """

    io: int | None = None
    poll: int | None = None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A line of a discovery log: what a target has.

    Attributes:
        transport: How it is reached: tcp, rdma, loop, fc, or a number.
        address_family: ipv4, ipv6 …; as the library calls it.
        traddr: The address.
        trsvcid: The port.
        nqn: The subsystem's name.
        subtype: What it is: nvme subsystem, or another place to ask.
        port_id: The target's number for this address.

    """

    transport: str
    address_family: str
    traddr: str
    trsvcid: str
    nqn: str
    subtype: str
    port_id: int


def default_host(etc: File = sysfs.ETC, machine_id: File = _MACHINE_ID) -> HostName:
    """Return this host's name: that of nvme-cli (/etc/nvme), else one that follows from the machine's own number.

    The latter stays what it is for as long as the machine keeps its number, and doesn't tell it.

    Args:
        etc: Where nvme-cli keeps it.
        machine_id: The machine's number, as machine-id(5) has it; where there is none the name is random each time.

    """
    nqn, hostid = (_line(etc / name) for name in ("hostnqn", "hostid"))
    if nqn is None:
        number = _line(machine_id) or ""
        machine = bytes.fromhex(number) if re.fullmatch(r"[0-9a-f]{32}", number) else b""
        nqn = f"nqn.2014-08.org.nvmexpress:uuid:{_of_ours(machine) if any(machine) else uuid.uuid4()}"
    return HostName(nqn=nqn, id=hostid or host_id(nqn))


def _of_ours(machine: bytes) -> uuid.UUID:
    """Return the machine's number for our own use, as sd_id128_get_machine_app_specific(3) makes it.

    machine-id(5): the number itself is confidential, and what goes to a network is hashed with a key of the program's.
    """
    digest = hmac.digest(machine, _APPLICATION.bytes, "sha256")
    return uuid.UUID(bytes=digest[:16], version=4)


def host_id(nqn: str) -> str | None:
    """Return the UUID that a host's NQN holds: newer kernels want one to go with the other."""
    found = _UUID.fullmatch(nqn)
    return found[1].lower() if found else None


def _line(path: File) -> str | None:
    try:
        with path.open("rb") as file:
            return text(file.read(4096)).strip() or None
    except OSError:
        return None


def check_ready(library: Libnvme | None, node: File = NODE, transport: type_transport = "tcp") -> Fabrics:
    """See that this host can connect at all, before anything is tried. Raises ConnectError.

    Args:
        library: Who does it, if it can be loaded.
        node: What the kernel's driver is asked by.
        transport: How the target will be reached.

    """
    if library is None:
        raise ConnectError(NO_LIBRARY)
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise ConnectError(f"{node} isn't there: load the kernel's driver with `modprobe nvme-{transport}`") from error
    except PermissionError as error:
        raise ConnectError(
            f"{node}: permission denied: to connect takes the right to open it, which root has (or CAP_DAC_OVERRIDE), "
            "and CAP_SYS_ADMIN: run as root"
        ) from error
    except OSError as error:
        raise ConnectError(f"{node}: {error.strerror}") from error
    return Fabrics(library)


def _check_reachable(address: Address) -> None:
    """Knock at a TCP port, since the kernel's own attempt says little and may take minutes. Raises ConnectError."""
    if address.transport != "tcp" or address.trsvcid is None or address.host_iface is not None:
        return
    source = (address.host_traddr, 0) if address.host_traddr is not None else None
    try:
        socket.create_connection((address.traddr, address.trsvcid), timeout=_REACH_S, source_address=source).close()
    except TimeoutError as error:
        raise ConnectError(
            f"{address}: no answer within {_REACH_S:g} s: check the address, and what filters on the way"
        ) from error
    except OSError as error:
        what = _nobody(address) if error.errno == errno.ECONNREFUSED else "check the address and the routes to it"
        raise ConnectError(f"{address}: {error.strerror or error}: {what}") from error


def _nobody(address: Address) -> str:
    if address.trsvcid == DISCOVERY_PORT:
        return f"nobody listens there: many targets, Linux's too, answer at their usual port: try `--trsvcid {PORT}`"
    return "nobody listens there: check the port, and the target"


def connect(
    fabrics: Fabrics, address: Address, nqn: str, host: HostName, timeouts: Timeouts, queues: Queues | None = None
) -> str:
    """Connect to a subsystem; return the new controller's name, such as nvme1.

    Args:
        fabrics: Who does it.
        address: Where it is.
        nqn: Its name.
        host: As whom.
        timeouts: What the kernel does when the connection is lost.
        queues: How many to ask for; None: as the kernel does by itself.

    Raises:
        ConnectError: There is no connection; nothing of the attempt is left behind, or will be when the kernel is
            through with it.

    """
    _check_reachable(address)
    before = _controllers()
    try:
        answer = bounded(
            lambda: fabrics.connect(address, nqn, host, timeouts, queues or Queues()), _ANSWER_S, _delete_controller
        )
    except TooLateError as error:
        raise _too_late(address) from error
    except CrashedError as error:
        _remove_new(before, address, nqn)
        raise ConnectError(f"{address}: the process that was to connect to it is gone: {error}") from error
    except FabricsError as error:
        _remove_new(before, address, nqn)
        raise ConnectError(_why_not(fabrics, error, address, nqn, host)) from error
    return str(answer)


def _too_late(address: Address) -> ConnectError:
    return ConnectError(f"{address}: answers, but doesn't carry on within {_ANSWER_S:g} s: is it an NVMe target?")


def _why_not(fabrics: Fabrics, error: FabricsError, address: Address, nqn: str, host: HostName) -> str:
    """Say why a connection failed. Most of what a target says the kernel keeps to its log: so the target is asked."""
    known = {
        ENVME_CONNECT_ALREADY: f"{nqn} at {address}: is connected already (`kpoll nvme list`)",
        ENVME_CONNECT_CONNREFUSED: f"{address}: Connection refused: {_nobody(address)}",
        ENVME_CONNECT_INVAL: f"{address}: the kernel refuses these options: if it has no {address.transport}, "
        f"`modprobe nvme-{address.transport}`; `dmesg` says more",
        ENVME_CONNECT_OPEN: f"{NODE} can't be opened: `modprobe nvme-{address.transport}`, and run as root",
    }
    if error.code in known:
        return known[error.code]
    if nqn == DISCOVERY_NQN:
        return f"{address}: the target refuses: `dmesg` says why"
    with contextlib.suppress(ConnectError):
        offers = sorted({offer.nqn for offer in discover(fabrics, address, host)} - {DISCOVERY_NQN})
        if nqn not in offers:
            has = ", ".join(offers) or "none"
            return (
                f"{address}: has no subsystem {nqn} for the host {host.nqn}, but {has}: check the name, and whom "
                "the target allows"
            )
    return f"{nqn} at {address}: the target refuses ({error}): `dmesg` says why"


def discover(fabrics: Fabrics, address: Address, host: HostName) -> tuple[Offer, ...]:
    """Ask a target which subsystems it has for this host. Raises ConnectError."""
    _check_reachable(address)
    before = _controllers()
    try:
        # What it connects for this it disconnects itself, however late that is.
        found = bounded(lambda: fabrics.discover(address, DISCOVERY_NQN, host), _ANSWER_S, lambda _: None)
    except TooLateError as error:
        raise _too_late(address) from error
    except CrashedError as error:
        _remove_new(before, address, DISCOVERY_NQN)
        raise ConnectError(f"{address}: the process that was to ask it is gone: {error}") from error
    except FabricsError as error:
        _remove_new(before, address, DISCOVERY_NQN)
        raise ConnectError(_why_not(fabrics, error, address, DISCOVERY_NQN, host)) from error
    assert isinstance(found, list)
    return tuple(Offer(**each) for each in found)


def disconnect(fabrics: Fabrics, name: str) -> None:
    """Remove a controller, with the namespaces that only it leads to. Raises ConnectError."""
    try:
        bounded(lambda: fabrics.disconnect(name), _LEAVE_S)
    except TooLateError as error:
        raise ConnectError(f"{name}: isn't gone after {_LEAVE_S:g} s: the kernel goes on with it") from error
    except CrashedError as error:
        raise ConnectError(f"{name}: the process that was to disconnect it is gone: {error}") from error
    except FabricsError as error:
        raise ConnectError(f"{name}: can't be disconnected: {error}") from error


def _controllers() -> set[str]:
    return {controller.name for _, controller in sysfs.scan("").controllers()}


def _remove_new(before: set[str], address: Address, nqn: str) -> None:
    """Remove what an attempt has left whose process is gone, or failed after the kernel had done its part."""
    for subsystem, controller in sysfs.scan("").controllers():
        if controller.name not in before and subsystem.nqn == nqn and address.is_of(controller):
            _delete_controller(controller.name)


def _delete_controller(name: str) -> None:
    """Remove a controller, unless it has gone. Blocks."""
    with contextlib.suppress(OSError):
        (sysfs.SYS / "class" / "nvme" / name / "delete_controller").write_text("1")


def connected(nqn: str) -> Iterator[tuple[Subsystem, Controller]]:
    """Yield the controllers of a subsystem by which this host has it now, over fabrics."""
    for subsystem, controller in sysfs.scan("").controllers():
        if subsystem.nqn == nqn and controller.transport in TRANSPORTS:
            yield subsystem, controller


def wait_for_namespace(controller: str, nsid: int, seconds: float, sys: File = sysfs.SYS) -> str | None:
    """Wait until the kernel has made a namespace's block device, and return its name; None: it hasn't.

    Args:
        controller: By which it is reached.
        nsid: Its number.
        seconds: How long to wait. The kernel looks for namespaces on its own after it has connected.
        sys: Where sysfs is.

    """
    deadline = time.monotonic() + seconds
    while True:
        for _, namespace in sysfs.scan("", sys).namespaces():
            if namespace.nsid == nsid and any(path.controller == controller for path in namespace.paths):
                return namespace.name
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)
