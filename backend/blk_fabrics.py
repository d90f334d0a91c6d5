"""The connection below a disk over NVMe/TCP: made or found before the sandbox closes, undone at the end if we made it.

To undo it takes a write to the controller's `delete_controller` in sysfs, which only root may open. It is opened as
soon as the controller is there, and kept: of all that root can do the daemon keeps the one thing that it will need, on
the one controller that it has made. Should another controller get its number later, that is no matter: the file was the
first one's. A process that kept root for this would keep all of it.

Another kpoll may have found that controller, and serve a disk by it when we end. So who uses a controller holds a
shared lock (flock(2)) on its device, /dev/nvmeN, and who made it removes it only if it gets that lock for itself alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kpoll.nvme import sysfs
from kpoll.nvme.device import NvmeError, opened
from kpoll.nvme.fabrics import (
    Address,
    ConnectError,
    Queues,
    Timeouts,
    check_ready,
    connect,
    connected,
    default_host,
    disconnect,
    wait_for_namespace,
)
from kpoll.nvme.libnvme import StatusError, load
from kpoll.nvme.poll_queues import polls

from .errors import KpollError, os_reason
from .signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from kpoll.nvme.libnvme import Libnvme
    from kpoll.nvme.libnvme_fabrics import Fabrics
    from kpoll.nvme.topology import Controller, Subsystem

    from .config import type_on_error
    from .nvme_tcp import NvmeTcp

_ACCESSIBLE: Final = (None, "optimized", "non-optimized")  # NVMe 2.0 §8.1: in others, requests wait
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
class Used:
    """A controller that we use.

    Attributes:
        name: The kernel's, such as nvme1.
        lock_fd: Its device, with our lock on it.
        delete_fd: Its delete_controller; -1 where somebody else has made it.
        state_fd: Its state.

    """

    name: str
    lock_fd: int
    delete_fd: int
    state_fd: int = -1

    def remove(self) -> None:
        """Remove it if we have made it and nobody else uses it: whatever still waits for it fails then. Blocks."""
        if self.delete_fd >= 0:
            with contextlib.suppress(OSError):  # others use it; or it was removed, by us or by somebody else
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self.delete_fd, b"1")


@dataclass(frozen=True)
class Reached:
    """A namespace that is reached over fabrics.

    Attributes:
        node: Its block device.
        controller: By which it is reached.
        ours: Whether we connected it.
        on_error: What was asked for; it decides the timeouts of a connection that is ours.
        poll_queues: How many were asked for; a connection that isn't ours has what it was made with.
        abandon: Removes the controller as `Used.remove` does. Blocks.
        state_fd: Its state in sysfs.

    """

    node: str
    controller: str
    ours: bool
    on_error: type_on_error
    abandon: Callable[[], None]
    state_fd: int = -1
    poll_queues: int | None = None

    def tell(self, log: FilteringBoundLogger) -> None:
        """Log how it is reached, and what is otherwise than asked for where the connection isn't ours."""
        log.info("nvme_connected", controller=self.controller, namespace=Path(self.node).name, ours=self.ours)
        if self.ours:
            return
        fast, loss = sysfs.timeouts(self.controller)
        error = (
            "was connected already, by others or by a kpoll that was killed, and stays when we end; to be rid of it: "
            f"`kpoll nvme disconnect --device {self.controller}`"
        )
        lacks = []
        if (fast, loss) != _as_sysfs(TIMEOUTS[self.on_error]):
            lacks.append(f"the timeouts of --on-error {self.on_error}")
        if self.poll_queues is not None and not polls(Path(self.node).name):
            lacks.append(f"poll-queues={self.poll_queues}, without which completions come by interrupt")
        if not lacks:
            log.info(
                "nvme_connection_found",
                controller=self.controller,
                fast_io_fail_tmo=fast,
                ctrl_loss_tmo=loss,
                error=error,
            )
            return
        log.warning(
            "nvme_connection_found",
            controller=self.controller,
            fast_io_fail_tmo=fast,
            ctrl_loss_tmo=loss,
            error=f"{error}, then a new start has {' and '.join(lacks)}",
        )


def _as_sysfs(timeouts: Timeouts) -> tuple[str, str]:
    """Return what `sysfs.timeouts` says where these are in force."""
    fast, loss = ("off" if each == -1 else str(each) for each in (timeouts.fast_io_fail_tmo, timeouts.ctrl_loss_tmo))
    return fast, loss


@contextlib.contextmanager
def reach(wanted: NvmeTcp, on_error: type_on_error) -> Iterator[Reached]:
    """Have a namespace for the length of the block. Raises KpollError."""
    # Until we're through, nobody may end us with a connection left behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with _connection(wanted, on_error) as (used, library):
            node = _namespace(wanted, used.name, library)
            with _vanishing(wanted, node):
                yield Reached(
                    node, used.name, used.delete_fd >= 0, on_error, used.remove, used.state_fd, wanted.poll_queues
                )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _connection(wanted: NvmeTcp, on_error: type_on_error) -> Iterator[tuple[Used, Libnvme]]:
    """Have a controller, found or made, and the library; what was made is undone."""
    address = Address(transport="tcp", traddr=wanted.traddr, trsvcid=wanted.port)
    library = load()
    try:
        fabrics = check_ready(library)
        assert library is not None
        for subsystem, controller in connected(wanted.nqn):
            if address.is_of(controller):
                live = live_path(subsystem, controller, wanted.nsid)
                if live is None:
                    raise KpollError(
                        f"{controller.name}: is connected to {wanted.nqn} already, but {controller.state} now: wait "
                        f"until it is live, or `kpoll nvme disconnect --device {controller.name}`"
                    )
                with _opened(live, None) as found:
                    yield found, library
                return
        name = connect(
            fabrics, address, wanted.nqn, default_host(), TIMEOUTS[on_error], Queues(poll=wanted.poll_queues)
        )
    except ConnectError as error:
        raise KpollError(f"--nvme-tcp: {error}") from error
    with _opened(name, fabrics) as made:
        yield made, library


def live_path(subsystem: Subsystem, controller: Controller, nsid: int | None) -> str | None:
    """Name a controller that answers now and leads to what this one does: itself, or with multipath another one.

    Args:
        subsystem: What both are of.
        controller: The one.
        nsid: The namespace that is wanted; None: the only one that it leads to.

    """
    if controller.state == "live":
        return controller.name
    live = {each.name for each in subsystem.controllers if each.state == "live"}
    there = [each for each in subsystem.namespaces if controller.name in {path.controller for path in each.paths}]
    wanted = there if nsid is None else [each for each in there if each.nsid == nsid]
    if len(wanted) != 1:
        return None
    ways = {path.controller for path in wanted[0].paths if path.ana_state in _ACCESSIBLE}
    return min(ways & live, default=None)


@contextlib.contextmanager
def _opened(name: str, maker: Fabrics | None) -> Iterator[Used]:
    """Have what it takes to use a controller, which we have made through `maker` if there is one. Raises KpollError."""
    with contextlib.ExitStack() as stack:

        def keep(path: Path, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        try:
            folder = sysfs.SYS / "class" / "nvme" / name
            delete_fd = -1 if maker is None else keep(folder / "delete_controller", os.O_WRONLY)
            state_fd = keep(folder / "state", os.O_RDONLY)
            lock_fd = keep(Path("/dev") / name, os.O_RDONLY)
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if maker is not None:
                with contextlib.suppress(ConnectError):
                    disconnect(maker, name)
            raise KpollError(f"{name}: was removed while we came to use it: {os_reason(error)}: try again") from error
        used = Used(name, lock_fd, delete_fd, state_fd)
        stack.callback(used.remove)
        yield used


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
