"""io_uring on a disk with poll queues, inside the test VM."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tests.cli.harness import FLUSH, IN, Daemon, Guest, refused
from tests.kernel.polled_disk import PATIENCE_S, POLLED, started, verified
from tests.kernel.quiet import WORKER
from tests.threads import come_to_rest, cost, states

if TYPE_CHECKING:
    from pathlib import Path

NO_QUEUES = "/dev/loop0"
REQUESTS = 100_000
DISCARD = 11
IDLE_S = 2.0


def beside(daemon: Daemon, sock: Path) -> dict[str, Any]:
    """Flush and discard beside polled reads, then leave the disk alone."""
    with Guest(sock) as guest:
        statuses = [guest.request(IN, 0, length=4096)[0], guest.request(FLUSH, 0)[0]]
        statuses.append(guest.request(DISCARD, 0, out=bytes(8) + (8).to_bytes(4, "little") + bytes(4))[0])
        statuses.append(guest.request(IN, 8, length=4096)[0])
        assert come_to_rest(daemon.pid, WORKER, PATIENCE_S), "the worker doesn't come to rest"
        before = cost(daemon.pid, WORKER)
        time.sleep(IDLE_S)  # the measurement itself, not a wait for something to happen
        (state,) = states(daemon.pid, WORKER)
        idle = (cost(daemon.pid, WORKER) - before).cpu_ns
        statuses.append(guest.request(IN, 0, length=512)[0])
    return {"statuses": statuses, "idle_cpu_ns": idle, "idle_state": state}


def refusal(folder: Path) -> str:
    """Ask for polling on a device that has no poll queues."""
    (folder / "image").write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", NO_QUEUES, folder / "image"], check=True)
    return refused("blk", "--socket-path", folder / "s", "--blk-file", NO_QUEUES, "--iopoll", "on", code=1)


def alone(program: str, disk: str) -> tuple[int, str]:
    """Run a program that tests engines without a daemon; return its status, and what it said."""
    environment = {**os.environ, "KPOLL_TEST_DISK": disk}
    test = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    return test.returncode, test.stdout + test.stderr


def uring(folder: Path) -> dict[str, Any]:
    """Look at the engine in the daemon."""
    seen: dict[str, Any] = {"refused": refusal(folder)}
    with ExitStack() as stack:
        sock, metrics = folder / "uring", folder / "uring.metrics"
        daemon, seen["started"] = started(stack, POLLED, sock, "--engine", "io_uring", "--metrics-socket", metrics)
        seen["verified"] = verified(sock, metrics, REQUESTS)
        seen["beside"] = beside(daemon, sock)
        seen["exit"] = daemon.stop()
    return seen
