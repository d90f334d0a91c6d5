"""The same gate for system calls per request: the real daemon on real storage, counted by strace.

strace attaches once the daemon listens and leaves when the last request is back, so start-up does not count. The
front-end runs here; it polls, so no interrupts are due.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.backend.bench.blk import BlkLoad, run_blk
from kpoll.backend.bench.peers import running
from kpoll.backend.bench.zram import zram
from kpoll.backend.errors import KpollError
from kpoll.nvme.uring_probe import probe_uring
from tests.strace import calls, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BUDGET: dict[str, float] = tomllib.loads((HERE / "budget.toml").read_text())["syscalls"]
REQUESTS = 10_000
SIZE = 64 << 20


def image(folder: Path) -> Path:
    """Give a file that is really written, so that reads reach the device."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    return path


@contextmanager
def loop(folder: Path) -> Iterator[Path]:
    """Give a loop device over such a file, with direct I/O so that it completes asynchronously."""
    if os.geteuid() != 0:
        pytest.skip("a loop device takes root")
    words = ["losetup", "--find", "--show", "--direct-io=on", str(image(folder))]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def ram(folder: Path) -> Iterator[Path]:
    """Give a zram device, which completes inside the submitting call."""
    del folder
    with ExitStack() as stack:
        try:
            device = stack.enter_context(zram(SIZE))
        except KpollError as e:
            pytest.skip(str(e))
        yield device


@contextmanager
def file(folder: Path) -> Iterator[Path]:
    """Give a file on whatever file system the tests' folder is on."""
    path = image(folder)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as e:
        pytest.skip(f"no O_DIRECT on the file system of {folder}: {e}")
    yield path


ENGINES = {"": ("aio",), "uring": ("io_uring",), "pinned": ("io_uring", "--pin-guest-memory")}
STORAGE = {"file": file, "loop": loop, "zram": ram}


def listener(sock: Path) -> int:
    """Tell which process listens on a socket, from the descriptors of our children."""
    inode = next(
        line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f" {sock}")
    )
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            for link in Path(f"/proc/{child}/fd").iterdir():
                with suppress(FileNotFoundError):  # one that it has closed meanwhile
                    if str(link.readlink()) == f"socket:[{inode}]":
                        return int(child)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("case", sorted(BUDGET))
@pytest.mark.ci_may_skip("containers have no block devices, and some file systems no O_DIRECT, or there is no io_uring")
def test_a_request_costs_no_more_system_calls_than_its_budget(tmp_path: Path, case: str) -> None:
    """Count per name, so that a failure says which call it was."""
    what, depth = case.split("-qd")
    kind, _, engine = what.partition("-")
    if engine and (why := probe_uring().setup):
        pytest.skip(f"no io_uring: {os.strerror(why)}")
    sock, out = tmp_path / "socket", tmp_path / "strace"
    with STORAGE[kind](tmp_path) as disk:
        command = [sys.executable, "-c", "from kpoll.backend.cli import main; main()", "blk"]
        command += ["--engine", *ENGINES[engine]]
        command += ["--poll", "user", "--blk-file", str(disk), "--socket-path", str(sock)]
        load = BlkLoad(iodepth=int(depth), requests=REQUESTS, runtime=None, warmup=0)
        with running(command, sock, min(os.sched_getaffinity(0)), tmp_path / "log"), counted(listener(sock), out):
            report = run_blk(sock, load)
    assert report.requests == REQUESTS
    assert report.errors == 0
    made = calls(out)
    print(f"{case}: {made}")
    assert {"io_submit", "pread64", "io_uring_enter"} & made.keys(), "strace saw no I/O"
    cost = sum(made.values()) / REQUESTS
    print(f"{case}: {cost:.3f} system calls per request, budget {BUDGET[case]}")
    assert cost <= BUDGET[case], made
