"""A child process that is read line by line and never outlives the block that started it."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path


class ChildError(AssertionError):
    """A child process ended, fell silent or failed when it should not have; carries what it had said."""


@dataclass
class Child:
    """A running process and what it has said so far (stdout and stderr, in one stream)."""

    name: str
    process: trio.Process
    tee: IO[bytes] | None = None
    lines: list[str] = field(default_factory=list)
    _rest: bytes = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    async def next_line(self) -> str | None:
        """Return the next line without its end, or None when the process has closed its output."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            chunk = await self.process.stdout.receive_some()
            if self.tee is not None:
                self.tee.write(chunk)
                self.tee.flush()
            if not chunk:
                return None
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        text = line.decode(errors="replace").rstrip("\r")
        self.lines.append(text)
        return text

    async def expect(self, wanted: Callable[[str], bool], what: str, seconds: float) -> str:
        """Read up to the first line that is wanted and return it.

        Raises:
            ChildError: when the output ends, or `seconds` pass, before such a line.

        """
        with trio.move_on_after(seconds):
            while (line := await self.next_line()) is not None:
                if wanted(line):
                    return line
            raise self.error(f"ended while waiting for {what}")
        raise self.error(f"did not give {what} within {seconds:g} s")

    async def send(self, text: str) -> None:
        """Write to the process's standard input."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(text.encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            raise self.error("no longer reads its input") from gone

    async def wait(self, seconds: float) -> int:
        """Read until the process has ended; return its exit code (negative: the signal that ended it)."""
        with trio.move_on_after(seconds):
            while await self.next_line() is not None:
                pass
            return await self.process.wait()
        raise self.error(f"still runs after {seconds:g} s")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def error(self, what: str) -> ChildError:
        """Make the exception that tells what went wrong and what the process had said last."""
        said = "\n".join(self.lines[-60:])
        return ChildError(f"{self.name} {what}; exit code {self.process.returncode}. It had said:\n{said}")


@asynccontextmanager
async def running(
    name: str,
    command: Sequence[str],
    *,
    tee: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> AsyncIterator[Child]:
    """Run a command for the length of the block; kill it and all of its descendants at the end.

    Args:
        name: what error messages call it.
        command: program and arguments.
        tee: also receives everything that the process says, as it is read.
        env: the environment, else ours.
        pass_fds: descriptors that the process inherits under the same numbers.
        cwd: where it starts, else where we are.

    """
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own: Ctrl-C reaches us alone, and we can end all of it
        env=env,
        pass_fds=pass_fds,
        cwd=cwd,
    )
    child = Child(name, process, tee)
    try:
        yield child
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            with trio.move_on_after(1):  # the last words; a grandchild may hold the pipe open
                while await child.next_line() is not None:
                    pass
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
