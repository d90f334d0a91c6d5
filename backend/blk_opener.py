"""A namespace that was deleted under us and comes back: somebody has to open it again, and the sandbox lets nobody.

A descriptor of a deleted disk stays dead for ever, whatever appears in its place. So a process is forked before the
sandbox closes that keeps the right to open one disk: it has no capabilities, starts no programs, makes no sockets, and
takes no words from us, just a byte: "now", or whether we serve what it has found. It looks for the namespace with the
same identity (sysfs's `wwid`, in which the kernel puts its UUID, NGUID or EUI-64, else vendor, serial number, model and
NSID), sees that its blocks are as large, and hands descriptors of it over. Who hijacks the daemon gains nothing: it had
that disk before. The process that asks the device how it is (blk_health.py) gets one of what is served, straight from
here: it takes none from the daemon.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from kpoll.nvme.descriptors import close_all_but
from kpoll.nvme.sysfs import block_folder

from .sandbox import drop_capabilities, set_no_new_privs
from .seccomp import deny_syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLKSSZGET: Final = 0x1268
_BLKGETSIZE64: Final = 0x80081272
_NOW: Final = b"?"
_HERE: Final = b"+"
_NOT_HERE: Final = b"-"
_TAKEN: Final = b"!"  # said by us, and answered with the same
_LEFT: Final = b"."
_FDS: Final = 2
_ANSWER_S: Final = 5.0  # to open a disk may take long, or for ever, where its controller doesn't answer
_WWID_MAX: Final = 4096


def identity(device: int, sys: Path = Path("/sys")) -> str | None:
    """Return what tells a namespace from all others; None for any other disk, and for a partition.

    Args:
        device: Its number, as stat(2) has it.
        sys: Where sysfs is.

    """
    folder = block_folder(device, sys)
    return None if (folder / "partition").exists() else _wwid(folder)


def _wwid(folder: Path) -> str | None:
    try:
        return (folder / "wwid").read_bytes()[:_WWID_MAX].decode(errors="replace").strip() or None
    except OSError:
        return None


def is_gone(device: int, sys: Path = Path("/sys")) -> bool:
    """Whether the kernel has deleted a block device that somebody may still have open."""
    return not block_folder(device, sys).exists()


def _block_bytes(fd: int) -> int:
    (size,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, b"\0" * 4))
    return int(size)


def device_bytes(fd: int) -> int:
    """Return the size of a block device. Raises OSError."""
    (size,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, b"\0" * 8))
    return int(size)


class Opener:
    """The process, seen from the daemon.

    Attributes:
        sock: How it is spoken with.
        news: A SOCK_SEQPACKET socket by which it gives a descriptor of what it has opened, and we serve, to whom else
            this is given. Who keeps it without reading keeps the disk in use.

    """

    def __init__(self, sock: socket.socket, news: socket.socket | None = None) -> None:
        """Speak with it by `sock`; the caller closes both."""
        self.sock = sock
        self.news = news
        self.sock.settimeout(_ANSWER_S)
        self._asked = False

    def ask(self) -> tuple[int, int] | None:
        """Ask for the namespace; blocks until it is open, but not for ever. In one thread at a time.

        Returns a descriptor that is like the first one, and one that keeps others off (O_EXCL); the caller closes them,
        and calls `settle`. None: it isn't there, or isn't what it was, or somebody else has it, or the process has
        ended; or it is still at it: what it finds is returned by a later call.
        """
        late = self._asked
        try:
            if not late:
                self.sock.sendall(_NOW)
            self._asked = True
            answer = _TAKEN
            while answer == _TAKEN:  # to what was settled last, and came late
                answer, fds, _, _ = socket.recv_fds(self.sock, 1, _FDS)
        except OSError:
            return None
        self._asked = False
        if late and answer == _NOT_HERE:
            return self.ask()  # that was then
        if answer != _HERE or len(fds) != _FDS:
            for fd in fds:
                os.close(fd)
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        return fds[0], fds[1]

    def settle(self, *, taken: bool) -> None:
        """Say whether what `ask` returned is served now; if so `news` has it too when this returns. Blocks likewise."""
        with contextlib.suppress(OSError):
            self.sock.sendall(_TAKEN if taken else _LEFT)
            if taken:
                self.sock.recv(1)


@contextlib.contextmanager
def opener(fd: int) -> Iterator[Opener | None]:
    """Have a process that can open the namespace behind `fd` again; None where `fd` is something else.

    Only while this process has no other thread. It ends with the block, or with us.
    """
    status = os.fstat(fd)
    wanted = identity(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
    if wanted is None:
        yield None
        return
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT | os.O_NOATIME)
    block = _block_bytes(fd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    news, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _serve(theirs, told, wanted, flags, block)
    theirs.close()
    told.close()
    try:
        yield Opener(ours, news)
    finally:
        news.close()
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)  # a thread may still be asking
        ours.close()
        os.waitpid(child, os.WNOHANG)  # one that waits for its disk isn't waited for


def _serve(sock: socket.socket, told: socket.socket, wanted: str, flags: int, block: int) -> NoReturn:
    """Be that process, until the other end is closed. Nothing of the daemon runs here any more, not even at the end."""
    try:
        close_all_but(sock.fileno(), told.fileno())
        told.setblocking(False)
        # A terminal's Ctrl-C goes to us too, and we're needed until the daemon has ended.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        with contextlib.suppress(OSError):
            set_no_new_privs()
            drop_capabilities()
            deny_syscalls()
        while sock.recv(1) == _NOW:
            fds = _open(wanted, flags, block)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([_HERE if fds else _NOT_HERE], ancillary)
            if fds and sock.recv(1) == _TAKEN:
                with contextlib.suppress(OSError):  # nobody is there, or nobody listens at the moment
                    socket.send_fds(told, [_HERE], fds[:1])
                sock.sendall(_TAKEN)
            for fd in fds:
                os.close(fd)
    finally:
        os._exit(0)


def _open(wanted: str, flags: int, block: int) -> list[int]:
    """Open the namespace; returns a descriptor of the old kind and an exclusive one, or nothing."""
    for folder in sorted(Path("/sys/block").glob("nvme*")):
        if _wwid(folder) != wanted:
            continue
        fds: list[int] = []
        try:
            node = f"/dev/{folder.name}"
            fds.append(os.open(node, flags | os.O_CLOEXEC))
            fds.append(os.open(node, os.O_RDONLY | os.O_CLOEXEC | (os.O_EXCL if flags & os.O_ACCMODE else 0)))
            if _block_bytes(fds[0]) == block:
                return fds
        except OSError:
            pass
        for fd in fds:
            os.close(fd)
    return []
