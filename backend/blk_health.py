"""How the NVMe device under a disk is: its SMART figures, which only CAP_SYS_ADMIN may ask for.

The kernel looks at the capability at each question, so that a descriptor which was opened before the sandbox closed
doesn't help; and the daemon, which a guest talks to, is the last that should keep it. So a process of its own keeps it:
forked before the sandbox closes, with this one capability, the device, a socket, and a seccomp filter that kills it at
anything but reading a byte from that socket, asking that device and writing the page back. The daemon can't make it do
anything else: a byte is all that it can say. When a device that was deleted is back, the process that opens it again
(blk_opener.py) gives it a descriptor of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from kpoll.kernel.rights import CAP_SYS_ADMIN
from kpoll.nvme.bounded import CrashedError, TooLateError, bounded
from kpoll.nvme.pages import SmartLog
from kpoll.vhost._core import ffi, lib

from .blk_namespace import is_nvme
from .sandbox import drop_capabilities, set_name, set_no_new_privs, set_undumpable
from .seccomp import filter_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

REFRESH_S: Final = 60.0
START_S: Final = 5.0  # for the first answer: a device that hangs keeps nobody from starting
_STALE_S: Final = 3 * REFRESH_S
_ANSWER: Final = struct.Struct(f"=i{lib.SMART_BYTES}s")
_INSTRUCTION: Final = 8  # bytes of struct sock_filter

_GONE: Final = (errno.ENODEV, errno.ENXIO)  # for good, unless it is brought back

# The helper's descriptors.
_DEVICE: Final = 3
_SOCKET: Final = 4
_NEWS: Final = 5
_SPARE: Final = 10  # above all of these


class Health:
    """What is known of a device's health. Made by `open_health`.

    Attributes:
        why_not: Why it isn't known, in words; None while it is, and for a disk that isn't of NVMe.
        late: Whether that is since the device didn't answer in time at the start.

    """

    def __init__(self, log: SmartLog | None = None, why_not: str | None = None, *, late: bool = False) -> None:
        """Begin with what was read, or with why it can't be."""
        self.why_not = why_not
        self.late = late
        self._log = log
        self._read_at = time.monotonic()
        self._sock: trio.socket.SocketType | None = None
        self._may_return = False
        self._at_once = trio.Event()

    @property
    def log(self) -> SmartLog | None:
        """The page, if it was read in the last minutes."""
        fresh = time.monotonic() - self._read_at < _STALE_S
        return self._log if fresh else None

    def keep_reading(self, sock: socket.socket, *, may_return: bool = False) -> None:
        """Have `sock`'s other end asked from now on (`run`); also when its device has gone, if that `may_return`."""
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._may_return = may_return

    def returned(self) -> None:
        """Have the device asked at once: it had gone, and is back."""
        self._at_once.set()

    def used(self) -> None:
        """Have the device asked at once, unless it was in the last minute: somebody begins to use the answer."""
        if time.monotonic() - self._read_at >= REFRESH_S:
            self._at_once.set()

    async def run(
        self,
        log: FilteringBoundLogger,
        learned: Callable[[SmartLog], None],
        in_use: Callable[[], bool] = lambda: True,
    ) -> None:
        """Ask again once a minute, if that is possible; say once why it isn't.

        Args:
            log: The daemon's.
            learned: Called with each answer.
            in_use: Whether anybody looks at it: the device isn't bothered for nobody.

        """
        if self.why_not is not None:
            log.warning("smart_unreadable", error=self.why_not)
        if self._sock is None:
            return
        alive = True
        while alive:
            with trio.move_on_after(REFRESH_S):
                await self._at_once.wait()
            if not self._at_once.is_set() and not in_use():
                continue
            self._at_once = trio.Event()
            before = self.why_not
            alive = await self.refresh()
            if self._log is not None:
                learned(self._log)
            elif self.why_not != before:
                log.warning("smart_unreadable", error=self.why_not)
        self._sock.close()  # and so the helper ends: nobody keeps a device that was deleted open

    async def refresh(self) -> bool:
        """Ask once. Returns whether it makes sense to ask again."""
        assert self._sock is not None
        try:
            await self._sock.send(b"?")
            answer = await self._sock.recv(_ANSWER.size)
        except OSError:
            answer = b""
        if len(answer) != _ANSWER.size:
            self._log, self.why_not = None, "the process that asks the device has ended"
            return False
        status, page = _ANSWER.unpack(answer)
        self._log, self.why_not = _result(status, page)
        self._read_at = time.monotonic()
        return self._may_return or -status not in _GONE


def _result(status: int, page: bytes) -> tuple[SmartLog | None, str | None]:
    """Turn what smart_read() gave into the page, or why there is none."""
    match status:
        case 0:
            return SmartLog.parse(page), None
        case _ if status > 0:
            return None, f"the device refuses to say (NVMe status {status:#x})"
        case _ if -status in (errno.EACCES, errno.EPERM):
            return None, (
                "the kernel lets only CAP_SYS_ADMIN ask: start kpoll as root or, in a systemd unit, with "
                "AmbientCapabilities=CAP_SYS_ADMIN; it gives that up, but for a process that does nothing but ask"
            )
        case _:
            return None, os.strerror(-status)


@contextmanager
def open_health(device: int, *, watched: bool, news: socket.socket | None = None) -> Iterator[Health]:
    """Find out how a device is, and have it asked again later on; the helper ends on leaving.

    Only while this process has no other thread.

    Args:
        device: The disk's descriptor; -1 for none.
        watched: Whether metrics tell of it. Without, it is asked later only if it has answered: a guest may look then.
        news: By which a descriptor of the device comes when it had gone and is back (`Opener.news`); it is closed,
            being for the helper alone.

    """
    helper = None
    try:
        health = _ask_once(device) if is_nvme(device) else Health()
        if health.log is not None or (watched and health.late):
            helper = start_helper(device, news)
    except OSError as error:
        health = Health(why_not=f"the process that is to ask can't be confined: {error.strerror}")
    if news is not None:
        news.close()
    if helper is None:
        yield health
        return
    sock, pid = helper
    try:
        health.keep_reading(sock, may_return=news is not None)
        yield health
    finally:
        sock.close()
        os.waitpid(pid, os.WNOHANG)  # one that waits for its device isn't waited for


def _ask_once(device: int) -> Health:
    """Ask a device; in a process of its own, since it may hang, and we would."""

    def ask() -> tuple[int, bytes]:
        page = ffi.new("uint8_t[]", lib.SMART_BYTES)
        return int(lib.smart_read(device, page)), bytes(ffi.buffer(page))

    try:
        status, page = cast("tuple[int, bytes]", bounded(ask, START_S, keep=[device]))
    except TooLateError:
        return Health(why_not=f"the device doesn't answer within {START_S:g} s", late=True)
    except CrashedError as error:
        return Health(why_not=f"the process that was to ask the device is gone: {error}")
    return Health(*_result(status, page))


def start_helper(device: int, news: socket.socket | None = None) -> tuple[socket.socket, int]:
    """Start the process that asks `device`; it ends when the socket is closed. Raises OSError.

    Returns that socket, and the process's number.

    Args:
        device: A descriptor.
        news: By which another one may come, to be asked instead.

    """
    program = filter_program(
        {
            "ioctl": (_DEVICE, lib.NVME_IOCTL_ADMIN_CMD),
            "read": (_SOCKET,),
            "write": (_SOCKET,),
            "recvfrom": (_NEWS,),
            "recvmsg": (_NEWS,),
            "close": (_DEVICE,),
            "exit_group": (),
        }
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = os.fork()
        if pid == 0:
            try:
                _become_helper(device, theirs.fileno(), -1 if news is None else news.fileno(), program)
            finally:
                os._exit(1)
    ours.setblocking(False)
    return ours, pid


def _become_helper(device: int, sock: int, news: int, program: bytes) -> None:
    """Keep nothing but what it takes, then serve; returns only when that fails. Raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it ends with the daemon, not before
    null = os.open(os.devnull, os.O_RDWR)
    device, sock, news = (fcntl.fcntl(fd, fcntl.F_DUPFD, _SPARE) for fd in (device, sock, null if news < 0 else news))
    for fd in range(_DEVICE):  # nobody who reads the daemon's log waits for this process too
        os.dup2(null, fd)
    os.dup2(device, _DEVICE)
    os.dup2(sock, _SOCKET)
    os.dup2(news, _NEWS)
    os.closerange(_NEWS + 1, os.sysconf("SC_OPEN_MAX"))
    set_name("kpoll-smart")
    set_no_new_privs()
    drop_capabilities(frozenset({CAP_SYS_ADMIN}))
    set_undumpable()
    instructions: Any = ffi.from_buffer(program)
    lib.smart_serve(_DEVICE, _SOCKET, _NEWS, instructions, len(program) // _INSTRUCTION)
