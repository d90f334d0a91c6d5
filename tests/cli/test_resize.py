"""A disk that grows under a running guest: the guest is told at once, and nobody wakes up when nothing happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kpoll.vhost.messages import BackendRequest
from tests.cli.harness import IN, OUT, SECTOR, Daemon, Guest

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, MIB)
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize("sandbox", ["on", "off"])
def test_a_file_that_grows_is_a_disk_that_grows(sock: Path, image: Path, sandbox: str) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--sandbox", sandbox) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.request(OUT, 2 * MIB // SECTOR, out=b"n" * SECTOR)[0] == 1
            for mib in (3, 4):  # twice, as the second comes while we look away
                os.truncate(image, mib * MIB)
                assert guest.told() is BackendRequest.CONFIG_CHANGE_MSG
                assert guest.capacity == mib * MIB // SECTOR
            assert guest.request(OUT, 2 * MIB // SECTOR, out=b"n" * SECTOR)[0] == 0
        assert daemon.stop() == 0
    assert [line["capacity"] for line in daemon.log if line["event"] == "resized"] == [6144, 8192]


def test_growth_to_half_a_sector_is_growth_to_the_sector_before(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            os.truncate(image, 2 * MIB + 100)
            assert guest.told() is BackendRequest.CONFIG_CHANGE_MSG
            assert guest.capacity == 2 * MIB // SECTOR
        assert daemon.stop() == 0


def test_growth_without_a_guest_is_there_when_one_comes(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        os.truncate(image, 2 * MIB)
        daemon.logged("resized")
        with Guest(sock) as guest:
            assert guest.capacity == 2 * MIB // SECTOR
        assert daemon.stop() == 0


def test_shrinking_is_logged_and_not_passed_on(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            os.truncate(image, MIB // 2)
            shrunk = daemon.logged("shrunk")
            assert (shrunk["sectors"], shrunk["capacity"]) == (1024, 2048)
            assert guest.capacity == 2048
            assert guest.request(IN, 2000, length=SECTOR)[0] == 1, "IOERR beyond the new end"
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0


def test_a_block_device_that_grows_says_so_by_uevent(sock: Path, image: Path, loop_device: Path) -> None:
    link = image.parent / "disk"
    link.symlink_to(loop_device)
    with Daemon("blk", "--socket-path", sock, "--blk-file", link) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.capacity == MIB // SECTOR
            os.truncate(image, 2 * MIB)
            subprocess.run(["losetup", "--set-capacity", loop_device], check=True)
            assert guest.told() is BackendRequest.CONFIG_CHANGE_MSG
            assert guest.capacity == 2 * MIB // SECTOR
        assert daemon.stop() == 0


def test_sighup_looks_at_the_size_and_nothing_happens_if_it_is_the_same(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        daemon.signal(signal.SIGHUP)
        assert daemon.logged("signal")["signal"] == "SIGHUP"
        assert daemon.stop() == 0
    assert not [line for line in daemon.log if line["event"] in {"resized", "shrunk", "resize_failed"}]


def test_sighup_is_harmless_to_a_null_disk(sock: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--engine", "null", "--size", "1G") as daemon:
        daemon.logged("listening")
        daemon.signal(signal.SIGHUP)
        daemon.logged("signal")
        assert daemon.stop() == 0
    assert {line["event"] for line in daemon.log} == {"started", "sandbox", "listening", "signal", "stopped"}


def test_a_disk_that_is_written_all_the_time_is_looked_at_once_a_second(sock: Path, tmp_path: Path) -> None:
    image = tmp_path / "busy.img"
    image.touch()
    os.truncate(image, MIB)
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--engine", "io_uring") as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            before, begin = main_thread_sleeps(daemon.pid), time.monotonic()
            while time.monotonic() < begin + 2.5:
                for sector in range(100):
                    assert guest.request(OUT, sector, out=b"w" * SECTOR)[0] == 0
            woken = main_thread_sleeps(daemon.pid) - before
        assert daemon.stop() == 0
    assert 1 <= woken <= 12, "a look takes up to two wake-ups: the event, and the end of the second"


def main_thread_sleeps(pid: int) -> int:
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])
