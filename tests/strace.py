"""What system calls a process makes, counted by strace."""

from __future__ import annotations

import re
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Giving the CPU away says how busy the machine is. Waits do count: they are bounded by what wakes them, a kick and a
# completion or a frame at worst.
IDLE = {"sched_yield"}


@contextmanager
def counted(pid: int, out: Path) -> Iterator[None]:
    """Count the system calls of a process and all its threads meanwhile."""
    words = ["strace", "-c", "-f", "-q", "-S", "calls", "-U", "calls,name", "-o", str(out), "-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as strace:
        try:
            _wait_traced(pid, strace)
            yield
        finally:
            strace.send_signal(signal.SIGINT)  # detach, and write the summary


def _wait_traced(pid: int, strace: subprocess.Popen[bytes]) -> None:
    """Return once every thread is attached."""
    while any("TracerPid:\t0\n" in status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")):
        if strace.poll() is not None:
            assert strace.stderr is not None
            pytest.fail(f"strace: {strace.stderr.read().decode()}")


def calls(out: Path) -> dict[str, int]:
    """Return what was counted, by name: all but what only says how busy the machine is."""
    found = re.findall(r"^\s*(\d+)\s+(\w+)$", out.read_text(), re.MULTILINE)
    return {name: int(count) for count, name in found if name not in {*IDLE, "total"}}
