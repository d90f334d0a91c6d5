"""SIGTERM ends the process, also while a front-end holds a worker in a system call that never returns."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.harness import IN, PATIENCE_S, SECTOR, Daemon, Guest

EVENTFD_FULL = 2**64 - 2


def stuck_worker(pid: int) -> bool:
    """Whether a thread of the process waits in eventfd_write()."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        number = (task / "syscall").read_text().split()[0]
        if number == "1" and (task / "comm").read_text().startswith("kpoll-w"):
            return True
    return False


def block_a_worker(guest: Guest, pid: int) -> None:
    """Fill the call eventfd up and take O_NONBLOCK from it again: the next interrupt blocks whoever sends it."""
    call = guest.driver.vring.call_fd
    fcntl.fcntl(call, fcntl.F_SETFL, fcntl.fcntl(call, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    os.eventfd_write(call, EVENTFD_FULL)
    guest.submit(IN, 0, length=SECTOR)
    deadline = time.monotonic() + PATIENCE_S
    while not stuck_worker(pid):
        assert time.monotonic() < deadline, "no worker is stuck"
        time.sleep(0.01)  # between two looks: nobody tells that a thread is stuck


@pytest.mark.parametrize("again", [False, True], ids=["after_a_while", "at_the_second_signal"])
def test_sigterm_ends_a_daemon_whose_worker_is_stuck(tmp_path: Path, *, again: bool) -> None:
    sock, image = tmp_path / "s", tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            block_a_worker(guest, daemon.pid)
            begin = time.monotonic()
            daemon.signal(signal.SIGTERM)
            daemon.logged("signal")
            if again:
                time.sleep(0.2)  # what comes sooner is taken for an echo
                daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 1
            took = time.monotonic() - begin
    assert daemon.log[-1]["event"] == "exit_forced"
    assert took < 5 if again else took >= 9
    assert not sock.exists()
