"""What may block in the kernel for longer than anybody wants to wait, in a process of its own.

When its time is over nobody waits for it any more. It is killed then; but what hangs within a system call dies only
when that returns, and what the kernel has made by then stays. So a process that makes something isn't killed: it goes
on by itself, and takes back what it has made when nobody has taken it over.

        who asks				its process
                                                works
        reads the answer in time  <-----------	answers
        says that it has it	  ----------->	ends
        or has gone, whyever	  - - - - - ->	takes back what it made, ends

A signal each second, from a second after the end of its time on, gets it out of whatever can be interrupted: not
earlier, lest an interrupted call be the answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NoReturn

from .descriptors import close_all_but

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHUNK = 65536
_DEATH_S = 1.0
_NUDGE_S = 1.0
_LENGTH = struct.Struct("=Q")
_TAKEN = b"+"


class TooLateError(Exception):
    """It took too long; its process was killed, or undoes what it does."""


class CrashedError(Exception):
    """Its process ended without an answer; the message says how."""


def bounded(
    work: Callable[[], object],
    seconds: float,
    undo: Callable[[Any], object] | None = None,
    keep: Iterable[int] = (),
) -> object:
    """Return what `work` returns in a process that is forked for it, and that has so long.

    Only for a process without other threads. The new one has none of our descriptors.

    Args:
        work: What to do; what it returns or raises comes back by way of pickle, which has to be able to.
        seconds: After that nobody waits for it.
        undo: Called in that process with what `work` returned, when nobody has taken that over; None: it is killed.
        keep: Descriptors, all above 2, that it has all the same.

    Raises:
        TooLateError: It has taken too long.
        CrashedError: It has ended otherwise.

    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _carry_out(work, theirs, seconds, undo, keep)
    theirs.close()
    may_be_killed = undo is None
    try:
        answer = _read_all(ours, time.monotonic() + seconds)
        may_be_killed = True
        if answer is not None:
            with contextlib.suppress(OSError):
                ours.sendall(_TAKEN)
    finally:
        ours.close()
        status = _end(child) if may_be_killed else None
    if answer is None:
        raise CrashedError(_how(status))
    ok, value = pickle.loads(answer)  # noqa: S301 - a process of our own wrote it
    if not ok:
        raise value
    return value


def _carry_out(
    work: Callable[[], object],
    sock: socket.socket,
    seconds: float,
    undo: Callable[[Any], object] | None,
    keep: Iterable[int],
) -> NoReturn:
    """Be the process. Nothing of the one that it was forked from runs here: no handler, no clean-up, no exit hook."""
    code = 1
    try:
        gc.disable()  # it would close descriptors, by numbers that are others' now
        sock = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))  # it may be one of 0 to 2
        _let_go_of_all_but(sock.fileno(), *keep)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal's go to us too
            signal.signal(number, signal.SIG_DFL if undo is None else signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.setitimer(signal.ITIMER_REAL, seconds + _NUDGE_S, _NUDGE_S)
        try:
            answer = True, work()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asked
            answer = False, error
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not _hand_over(sock, answer) and answer[0] and undo is not None:
            undo(answer[1])
        code = 0
    finally:
        os._exit(code)


def _let_go_of_all_but(*keep: int) -> None:
    """Close all descriptors but these; 0 to 2 lead to nothing, so that nobody who reads our output waits for us."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    close_all_but(*keep, first=3)


def _hand_over(sock: socket.socket, answer: tuple[bool, object]) -> bool:
    """Send an answer; returns whether it was taken."""
    data = pickle.dumps(answer)
    try:
        sock.sendall(_LENGTH.pack(len(data)) + data)
        return sock.recv(1) == _TAKEN
    except OSError:  # nobody is there
        return False


def _read_all(sock: socket.socket, deadline: float) -> bytes | None:
    """Read an answer; None: the other end has closed before it was complete. Raises TooLateError."""
    data = b""
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        ready, _, _ = select.select([sock], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TooLateError
        part = sock.recv(_CHUNK)
        if not part:
            return None
        data += part
    return data[_LENGTH.size :]


def _end(child: int) -> int | None:
    """Kill a process and wait for it, unless the kernel holds it: then it is init's when we end.

    Returns how it ended, as waitpid(2) has it; None: it hasn't.
    """
    found, status = os.waitpid(child, os.WNOHANG)
    if found == 0:
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its
    deadline = time.monotonic() + _DEATH_S
    while found == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
        found, status = os.waitpid(child, os.WNOHANG)
    return status if found else None


def _how(status: int | None) -> str:
    """Say in words how a process ended."""
    if status is None:
        return "it ended"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with exit code {code}"
    return f"it was killed by signal {-code} ({signal.strsignal(-code)})"
