"""How the NVMe device under a disk is: its SMART figures, which only CAP_SYS_ADMIN may ask for.

The kernel looks at the capability at each question, so that a descriptor which was opened before the sandbox closed
doesn't help; and the daemon, which a guest talks to, is the last that should keep it. So a process of its own keeps it:
forked before the sandbox closes, with this one capability, the device, a socket, and a seccomp filter that kills it at
anything but reading a byte from that socket, asking that device and writing the page back. The daemon can't make it do
anything else: a byte is all that it can say.
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
from typing import TYPE_CHECKING, Any, Final

import trio

from kpoll.kernel.rights import CAP_SYS_ADMIN
from kpoll.nvme.pages import SmartLog
from kpoll.vhost._core import ffi, lib

from .blk_namespace import is_nvme
from .sandbox import drop_capabilities, set_name, set_no_new_privs, set_undumpable
from .seccomp import filter_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

REFRESH_S: Final = 60.0
_STALE_S: Final = 3 * REFRESH_S
_ANSWER: Final = struct.Struct(f"=i{lib.SMART_BYTES}s")
_INSTRUCTION: Final = 8  # bytes of struct sock_filter

_GONE: Final = (errno.ENODEV, errno.ENXIO)  # for good, whatever comes in its place

# The helper's descriptors.
_DEVICE: Final = 3
_SOCKET: Final = 4
_SPARE: Final = 10  # above all of these


class Health:
    """What is known of a device's health. Made by `open_health`.

    Attributes:
        why_not: Why it isn't known, in words; None while it is, and for a disk that isn't of NVMe.

    """

    def __init__(self, log: SmartLog | None = None, why_not: str | None = None) -> None:
        """Begin with what was read, or with why it can't be."""
        self.why_not = why_not
        self._log = log
        self._read_at = time.monotonic()
        self._sock: trio.socket.SocketType | None = None

    @property
    def log(self) -> SmartLog | None:
        """The page, if it was read in the last minutes."""
        fresh = time.monotonic() - self._read_at < _STALE_S
        return self._log if fresh else None

    def keep_reading(self, sock: socket.socket) -> None:
        """Have `sock`'s other end asked from now on (`run`)."""
        self._sock = trio.socket.from_stdlib_socket(sock)

    async def run(self, log: FilteringBoundLogger, learned: Callable[[SmartLog], None]) -> None:
        """Ask again once a minute, if that is possible; say once why it isn't.

        Args:
            log: The daemon's.
            learned: Called with each answer.

        """
        if self._sock is None:
            if self.why_not is not None:
                log.warning("smart_unreadable", error=self.why_not)
            return
        alive = True
        while alive:
            await trio.sleep(REFRESH_S)
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
        return -status not in _GONE


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
def open_health(device: int, *, watched: bool) -> Iterator[Health]:
    """Find out how a device is, and have it asked again later on; the helper ends on leaving.

    Args:
        device: The disk's descriptor; -1 for none.
        watched: Whether anybody will look at it later.

    """
    if not is_nvme(device):
        yield Health()
        return
    page = ffi.new("uint8_t[]", lib.SMART_BYTES)
    health = Health(*_result(lib.smart_read(device, page), bytes(ffi.buffer(page))))
    if not watched or health.log is None:
        yield health
        return
    try:
        sock, pid = start_helper(device)
    except OSError as error:
        yield Health(why_not=f"the process that is to ask can't be confined: {error.strerror}")
        return
    try:
        health.keep_reading(sock)
        yield health
    finally:
        sock.close()
        os.waitpid(pid, os.WNOHANG)  # one that waits for its device isn't waited for


def start_helper(device: int) -> tuple[socket.socket, int]:
    """Start the process that asks `device`; it ends when the socket is closed. Raises OSError.

    Returns that socket, and the process's number.
    """
    program = filter_program(
        {
            "ioctl": (_DEVICE, lib.NVME_IOCTL_ADMIN_CMD),
            "read": (_SOCKET,),
            "write": (_SOCKET,),
            "exit_group": (),
        }
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = os.fork()
        if pid == 0:
            try:
                _become_helper(device, theirs.fileno(), program)
            finally:
                os._exit(1)
    ours.setblocking(False)
    return ours, pid


def _become_helper(device: int, sock: int, program: bytes) -> None:
    """Keep nothing but what it takes, then serve; returns only when that fails. Raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it ends with the daemon, not before
    device, sock = (fcntl.fcntl(fd, fcntl.F_DUPFD, _SPARE) for fd in (device, sock))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(_DEVICE):  # nobody who reads the daemon's log waits for this process too
        os.dup2(null, fd)
    os.dup2(device, _DEVICE)
    os.dup2(sock, _SOCKET)
    os.closerange(_SOCKET + 1, os.sysconf("SC_OPEN_MAX"))
    set_name("kpoll-smart")
    set_no_new_privs()
    drop_capabilities(frozenset({CAP_SYS_ADMIN}))
    set_undumpable()
    instructions: Any = ffi.from_buffer(program)
    lib.smart_serve(_DEVICE, _SOCKET, instructions, len(program) // _INSTRUCTION)
