"""The connection below a disk over NVMe/TCP: made or found before the sandbox closes, undone at the end if we made it.

To undo it takes a write to the controller's `delete_controller` in sysfs, which only root may open. It is opened as
soon as the controller is there, and kept: of all that root can do the daemon keeps the one thing that it will need, on
the one controller that it has made. Should another controller get its number later, that is no matter: the file was the
first one's. A process that kept root for this would keep all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kpoll.nvme import sysfs
from kpoll.nvme.device import NvmeError, opened
from kpoll.nvme.fabrics import (
    Address,
    ConnectError,
    Timeouts,
    check_ready,
    connect,
    connected,
    default_host,
    disconnect,
    wait_for_namespace,
)
from kpoll.nvme.libnvme import StatusError, load

from .errors import KpollError, os_reason
from .signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kpoll.nvme.libnvme import Libnvme

    from .config import type_on_error
    from .nvme_tcp import NvmeTcp

_NAMESPACE_S: Final = 10.0  # until the kernel has made the block device

# A lost connection is tried again for as long as we live, every 2 s. Meanwhile the kernel holds requests, for so long;
# then it fails them. Under `report` that is when the guest hears of it: late enough for a target to start anew. Under
# the others we keep them, and early: while the kernel holds any, no queue can be stopped, so no guest paused.
_HOLD_S: Final[dict[type_on_error, int]] = {"report": 30, "retry": 5, "stop": 5}
TIMEOUTS: Final[dict[type_on_error, Timeouts]] = {
    policy: Timeouts(reconnect_delay=2, ctrl_loss_tmo=-1, fast_io_fail_tmo=hold, keep_alive_tmo=5)
    for policy, hold in _HOLD_S.items()
}


@dataclass(frozen=True)
class Reached:
    """A namespace that is reached over fabrics.

    Attributes:
        node: Its block device.
        controller: By which it is reached.
        ours: Whether we connected it.
        delete_fd: Its delete_controller; -1 where it isn't ours.

    """

    node: str
    controller: str
    ours: bool
    delete_fd: int

    def abandon(self) -> None:
        """Remove the controller that we have made, whatever still waits for it: that fails then. Blocks."""
        if self.ours:
            with contextlib.suppress(OSError):  # it was removed, by us or by somebody else
                os.write(self.delete_fd, b"1")


@contextlib.contextmanager
def reach(wanted: NvmeTcp, on_error: type_on_error) -> Iterator[Reached]:
    """Have a namespace for the length of the block. Raises KpollError."""
    # Until we're through, nobody may end us with a connection left behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with _connection(wanted, on_error) as (controller, delete_fd, library):
            node = _namespace(wanted, controller, library)
            with _vanishing(wanted, node):
                yield Reached(node, controller, delete_fd >= 0, delete_fd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _connection(wanted: NvmeTcp, on_error: type_on_error) -> Iterator[tuple[str, int, Libnvme]]:
    """Have a controller, found or made; what was made is undone.

    Yields its name; its delete_controller, or -1 where it was found; and the library.
    """
    address = Address(transport="tcp", traddr=wanted.traddr, trsvcid=wanted.port)
    library = load()
    try:
        fabrics = check_ready(library)
        assert library is not None
        for _, controller in connected(wanted.nqn):
            if address.is_of(controller):
                if controller.state != "live":
                    raise KpollError(
                        f"{controller.name}: is connected to {wanted.nqn} already, but {controller.state} now: wait "
                        f"until it is live, or `kpoll nvme disconnect --device {controller.name}`"
                    )
                yield controller.name, -1, library
                return
        name = connect(fabrics, address, wanted.nqn, default_host(), TIMEOUTS[on_error])
    except ConnectError as error:
        raise KpollError(f"--nvme-tcp: {error}") from error
    try:
        delete_fd = os.open(sysfs.SYS / "class" / "nvme" / name / "delete_controller", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        with contextlib.suppress(ConnectError):
            disconnect(fabrics, name)
        raise KpollError(f"{name}: was removed while it was connected: {os_reason(error)}") from error
    try:
        yield name, delete_fd, library
    finally:
        with contextlib.suppress(OSError):
            os.write(delete_fd, b"1")
        os.close(delete_fd)


def _namespace(wanted: NvmeTcp, controller: str, library: Libnvme) -> str:
    """Return the block device of the namespace that is wanted. Raises KpollError."""
    try:
        with opened(f"/dev/{controller}") as fd:
            has = library.active_namespaces(fd)
    except (NvmeError, OSError, StatusError) as error:
        raise KpollError(f"{wanted.nqn}: {controller} can't be asked for its namespaces: {error}") from error
    there = ", ".join(map(str, has)) or "none"
    if wanted.nsid is None and len(has) != 1:
        raise KpollError(f"--nvme-tcp: {wanted.nqn} has the namespaces {there}: say which with nsid=N")
    nsid = has[0] if wanted.nsid is None else wanted.nsid
    if nsid not in has:
        raise KpollError(f"--nvme-tcp: {wanted.nqn} has no namespace {nsid}: it has {there}")
    name = wait_for_namespace(controller, nsid, _NAMESPACE_S)
    if name is None:
        raise KpollError(f"--nvme-tcp: {wanted.nqn}: no block device for namespace {nsid}: `dmesg` says why")
    return f"/dev/{name}"


@contextlib.contextmanager
def _vanishing(wanted: NvmeTcp, node: str) -> Iterator[None]:
    """Say what it means when a namespace that was there can't be opened."""
    try:
        yield
    except KpollError as error:
        if (sysfs.SYS / "block" / node.removeprefix("/dev/")).exists():
            raise
        raise KpollError(f"--nvme-tcp: {wanted}: went away while it was opened: is its target all right?") from error
