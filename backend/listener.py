"""Where front-ends come from: a socket path that we make, or a descriptor that somebody else opened.

Making a path has three rules. A socket that a dead server left behind is replaced, one that is served is not, and
what is no socket is never touched. Nobody can connect before mode and group are right, since a socket that doesn't
listen yet refuses everyone. On leaving we remove our own socket, not one that has taken its place meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import KpollError, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import SocketConfig

PATH_MAX: Final = 107  # sun_path holds 108 bytes, unix(7) wants one for the NUL
BACKLOG: Final = 16


@dataclass(frozen=True)
class FrontSocket:
    """The socket that front-ends use: `listening` for many in turn, otherwise connected to the only one."""

    sock: socket.socket
    listening: bool
    name: str  # for the log: the path, or `fd N`


def _remove_stale(path: str, option: str) -> None:
    """Make room at `path`, if what is there is the socket of a dead server. Raises KpollError if it isn't."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise KpollError(f"{option} {path}: {os_reason(error)}") from error
    if not stat.S_ISSOCK(mode):
        raise KpollError(f"{option} {path}: exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except BlockingIOError:
            # The backlog is full, so there is one: somebody serves it.
            raise KpollError(f"{option} {path}: {_TAKEN}") from None
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise KpollError(f"{option} {path}: a socket is there and can't be asked: {os_reason(error)}") from error
        else:
            raise KpollError(f"{option} {path}: {_TAKEN}")
    try:
        Path(path).unlink()
    except OSError as error:
        raise KpollError(f"{option} {path}: a dead server's socket can't be removed: {os_reason(error)}") from error


_TAKEN: Final = "another server listens there; stop it or choose another path"


def find_group(group: str) -> int:
    """Return the number of a group given by name or number. Raises KpollError when there is no such group."""
    if group.isdecimal() and len(group) <= 10:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise KpollError(f"--socket-group {group}: no such group on this host") from None


@contextlib.contextmanager
def unix_listener(
    path: str, *, option: str, mode: int | None = None, gid: int | None = None
) -> Iterator[socket.socket]:
    """Listen on a unix stream socket at `path`, and remove it on leaving.

    Args:
        path: At most 107 bytes.
        option: The command-line option that named it, for error messages.
        mode: Its permission bits; None: what the umask leaves.
        gid: Its group; None: this process's.

    Raises KpollError when the path is taken, too long, or can't be made.

    """
    if len(os.fsencode(path)) > PATH_MAX:
        raise KpollError(f"{option} {path}: a unix socket's path has at most {PATH_MAX} bytes; use a shorter one")
    _remove_stale(path, option)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made: os.stat_result | None = None
    try:
        try:
            # Single-threaded still, so the umask is ours alone; the mode is right from the first moment.
            umask = os.umask(0o777 & ~mode) if mode is not None else None
            try:
                sock.bind(path)
            finally:
                if umask is not None:
                    os.umask(umask)
            made = os.lstat(path)
            if gid is not None:
                os.chown(path, -1, gid, follow_symlinks=False)
            sock.listen(BACKLOG)
        except OSError as error:
            raise KpollError(f"{option} {path}: {_bind_reason(error)}") from error
        yield sock
    finally:
        if made is not None:
            remove_own(path, made)
        sock.close()


def _bind_reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return _TAKEN
        case errno.ENOENT | errno.ENOTDIR:
            return "its directory doesn't exist; make it first"
        case errno.EACCES:
            return "permission denied; choose a directory that this user may write to"
        case errno.EPERM:
            return "this user may not give the socket to that group; join the group or run as root"
        case _:
            return os_reason(error)


def remove_own(path: str, made: os.stat_result) -> None:
    """Unlink `path` if it is still the inode that we made. What can't be removed, the next server replaces."""
    with contextlib.suppress(OSError):
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            Path(path).unlink()


def _inherited(fd: int) -> FrontSocket:
    """Take over a descriptor: SO_ACCEPTCONN tells a listening socket from a connected one. Raises KpollError."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        what = "no open descriptor" if error.errno == errno.EBADF else "no socket"
        raise KpollError(f"--fd {fd}: is {what}; pass a unix stream socket, listening or connected") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise KpollError(f"--fd {fd}: is no unix stream socket, which vhost-user needs")
    os.set_inheritable(fd, False)
    listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not listening:
        try:
            sock.getpeername()
        except OSError as error:
            raise KpollError(f"--fd {fd}: is neither listening nor connected") from error
    return FrontSocket(sock, listening=listening, name=f"fd {fd}")


@contextlib.contextmanager
def open_front_socket(config: SocketConfig) -> Iterator[FrontSocket]:
    """Open what `config` names; close it, and remove our path, on leaving. Raises KpollError."""
    if config.path is None:
        assert config.fd is not None
        front = _inherited(config.fd)
        with front.sock:
            yield front
        return
    gid = None if config.group is None else find_group(config.group)
    with unix_listener(config.path, option="--socket-path", mode=config.mode, gid=gid) as sock:
        yield FrontSocket(sock, listening=True, name=config.path)
