"""Guest memory that is registered with io_uring: it follows what the front-end adds, removes and leaves behind."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import pytest

from kpoll.backend.blk_pins import check_memlock
from kpoll.backend.errors import KpollError
from kpoll.backend.sandbox import CAP_IPC_LOCK
from kpoll.kernel.rights import Rights
from tests.cli.harness import IN, OUT, Daemon, Guest, refused, until

MIB = 1 << 20
NO_CAPABILITY = ("setpriv", "--bounding-set=-ipc_lock") if os.geteuid() == 0 else ()


def limited(mib: int) -> tuple[str, ...]:
    """Return what starts a program that may lock so much memory."""
    return ("prlimit", f"--memlock={mib * MIB}", *NO_CAPABILITY)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


def pinned(pid: int) -> int:
    """Return what the kernel counts as pinned by a process, bytes."""
    [kib] = re.findall(r"^VmPin:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kib) * 1024


def talk(guest: Guest) -> None:
    """Write a block, and read it back."""
    data = os.urandom(4096)
    assert guest.request(OUT, 8, out=data)[0] == 0
    assert guest.request(IN, 8, length=4096) == (0, data)


def test_memory_is_pinned_as_it_comes_and_released_as_it_goes(sock: Path, image: Path) -> None:
    options = ("--socket-path", sock, "--blk-file", image, "--pin-guest-memory", "--workers", "2")
    with Daemon("blk", *options) as daemon:
        started = daemon.logged("started")
        assert (started["engine"], started["engine_why"]) == ("io_uring", "--pin-guest-memory")
        daemon.logged("listening")
        assert pinned(daemon.pid) == 0
        with Guest(sock) as guest:
            talk(guest)
            before = pinned(daemon.pid)
            assert before >= 2 * Guest.AREA  # each worker's
            more = guest.frontend.add_memory(4 * MIB)
            assert pinned(daemon.pid) == before + 2 * 4 * MIB
            assert daemon.logged("memory_pinned")["bytes"] > 0
            talk(guest)
            guest.frontend.remove_memory(more)
            # The kernel lets go of it a little later.
            until(lambda: pinned(daemon.pid) == before)
            talk(guest)
        until(lambda: pinned(daemon.pid) == 0)
        assert not [line for line in daemon.log if line["event"] == "memory_not_pinned"]
        with Guest(sock) as guest:
            talk(guest)
        assert daemon.stop() == 0


def test_memory_that_cannot_be_pinned_is_told_of_and_served(
    sock: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = os.open(tmp_path / "guest", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--pin-guest-memory") as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            daemon.logged("memory_pinned")
            monkeypatch.setattr(os, "memfd_create", lambda *_: on_disk)
            more = guest.frontend.add_memory(4 * MIB)
            line = daemon.logged("memory_not_pinned")
            assert (line["level"], "memory-backend-memfd" in line["error"]) == ("warning", True)
            talk(guest)
            guest.frontend.remove_memory(more)
            daemon.logged("memory_pinned")
        assert daemon.stop() == 0


def test_a_limit_that_no_guest_fits_in_is_refused(sock: Path, image: Path) -> None:
    options = ("--socket-path", sock, "--blk-file", image, "--pin-guest-memory")
    line = refused("blk", *options, code=1, prefix=limited(8))
    assert "--pin-guest-memory: only 8 MiB may be locked" in line
    assert "`ulimit -l unlimited`" in line


@pytest.mark.parametrize(
    ("workers", "limit", "rights", "fits"),
    [
        (1, 64 * MIB, Rights(), True),
        (2, 64 * MIB, Rights(), False),
        (1, 64 * MIB - 1, Rights(), False),
        (1, 64 * MIB - 1, Rights(capabilities=frozenset({CAP_IPC_LOCK})), True),
        (1, 64 * MIB - 1, Rights(capabilities=frozenset(range(64)) - {CAP_IPC_LOCK}), False),
        (1, 64 * MIB - 1, Rights(capabilities=frozenset({CAP_IPC_LOCK}), initial=False), False),
        (9, resource.RLIM_INFINITY, Rights(), True),
    ],
)
def test_the_limit_is_for_all_workers_and_means_nothing_to_who_may_lock(
    workers: int, limit: int, rights: Rights, fits: bool
) -> None:
    if fits:
        check_memlock(workers, limit, rights)
    else:
        with pytest.raises(KpollError, match="RLIMIT_MEMLOCK"):
            check_memlock(workers, limit, rights)
