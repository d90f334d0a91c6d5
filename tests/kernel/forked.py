"""Daemons that are forks of the test: to start Python anew takes an emulated CPU ten seconds, most of them imports."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

import trio  # noqa: F401 - what a daemon imports when it starts, as the next two

import kpoll.backend.blk_service
import kpoll.backend.daemon  # noqa: F401
from kpoll.backend import cli
from tests.cli.harness import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Fork:
    """As much of a subprocess.Popen as a Daemon needs, of a fork that runs `kpoll`.

    Attributes:
        pid: The process.
        stderr: What it writes there.
        returncode: As Popen's.

    """

    def __init__(self, args: tuple[str | Path, ...], first: Callable[[], None] | None) -> None:
        """Fork; the process does `first` and then what `kpoll` with these arguments does."""
        self.returncode: int | None = None
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become_kpoll([str(arg) for arg in args], first, writer)
        os.close(writer)
        self.stderr = os.fdopen(reader, "rb", buffering=0)

    def poll(self) -> int | None:
        """Return how it ended, if it has."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            select.select([pidfd], [], [], timeout)
            os.close(pidfd)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("kpoll", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def _become_kpoll(args: list[str], first: Callable[[], None] | None, stderr: int) -> NoReturn:
    """Be the daemon's process: with nothing open of the one that it was forked from."""
    code = 3
    try:
        os.dup2(stderr, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if first is not None:
            first()
        sys.argv = ["kpoll", *args]
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(code)


class ForkedDaemon(Daemon):
    """A running `kpoll`, forked from this process while no other thread of it is in the middle of something."""

    def __init__(self, *args: str | Path, first: Callable[[], None] | None = None) -> None:
        """Start it; what it does `first` may give up rights."""
        self._begin(Fork(args, first))
