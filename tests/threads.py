"""What a process's threads cost and do, by the scheduler's own account in /proc."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What threads have used so far.

    Args:
        cpu_ns: CPU time.
        sleeps: how often a thread gave up the CPU to wait: once per wake-up.

    """

    cpu_ns: int
    sleeps: int

    def __sub__(self, earlier: Cost) -> Cost:
        """Give what was used between two measurements."""
        return Cost(self.cpu_ns - earlier.cpu_ns, self.sleeps - earlier.sleeps)


def _threads(pid: int, name: str | None) -> list[Path]:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return [task for task in tasks if name is None or (task / "comm").read_text().strip() == name]


def cost(pid: int, name: str | None = None) -> Cost:
    """Return what a process has used so far: all of its threads, or those of one name."""
    tasks = _threads(pid, name)
    return Cost(
        cpu_ns=sum(int((task / "schedstat").read_text().split()[0]) for task in tasks),
        sleeps=sum(_status(task, "voluntary_ctxt_switches") for task in tasks),
    )


def _status(task: Path, name: str) -> int:
    line = next(line for line in (task / "status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def states(pid: int, name: str) -> set[str]:
    """Return what the threads of a name are doing: S asleep, R running ..."""
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in _threads(pid, name)}


def assert_idle(used: Cost, seconds: float) -> None:
    """Check what a process with nothing to do has used: under 0.2 % of a CPU, and it never woke up by itself.

    Args:
        used: by all of its threads.
        seconds: how long it was watched.

    """
    assert used.cpu_ns < 0.002 * seconds * 1e9, used
    assert used.sleeps == 0, used


def come_to_rest(pid: int, name: str | None, seconds: float) -> bool:
    """Wait until the threads of a name have used nothing for a tenth of a second.

    Args:
        pid: their process.
        name: of the threads; None: all of them.
        seconds: how long to wait at most.

    Returns:
        Whether it has come to that.

    """
    deadline = time.monotonic() + seconds
    before = None
    while (now := cost(pid, name)) != before:
        if time.monotonic() > deadline:
            return False
        before = now
        time.sleep(0.1)  # the tenth of a second; nothing tells that nothing happens
    return True
