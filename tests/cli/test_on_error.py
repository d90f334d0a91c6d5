"""--on-error, as a guest and an operator see it: a disk that fails is a file that somebody cut off, and mends again."""

from __future__ import annotations

import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.driver import Buffer
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import VringFd
from tests.cli.harness import IN, SECTOR, Daemon, Guest, scrape, scraped, until, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 20
BAD = SIZE // SECTOR // 2
LENGTH = 4096
OK, IOERR = 0, 1


class Disk:
    """An image that fails and works again."""

    def __init__(self, path: Path) -> None:
        """Make it."""
        self.path = path
        self.works()

    def works(self) -> None:
        """Have all of it, with a pattern in the middle."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            os.pwrite(file.fileno(), b"\x5a" * LENGTH, BAD * SECTOR)  # in one go: a retry may come at any moment
            file.truncate(SIZE)
            os.fsync(file.fileno())

    def fails(self) -> None:
        """Lose the middle and what is behind it."""
        os.truncate(self.path, BAD * SECTOR // 2)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "disk.img")


@pytest.fixture
def served(disk: Disk, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, Guest, Path]]:
    sock, metrics = tmp_path / "s", tmp_path / "m"
    options = ["--blk-file", disk.path, "--on-error", request.param, "--workers", "2", "--num-queues", "2"]
    with Daemon("blk", "--socket-path", sock, "--metrics-socket", metrics, *options) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            yield daemon, guest, metrics


def stopped(daemon: Daemon, guest: Guest, disk: Disk) -> None:
    """Have a request fail, and the disk stopped by it."""
    disk.fails()
    guest.submit(IN, BAD, length=LENGTH)
    assert daemon.logged("disk_errors")["stopped"] is True


def is_kept(metrics: Path, requests: int) -> bool:
    return value(scrape(metrics), "kpoll_requests_kept", queue="0") == requests


@pytest.mark.parametrize("served", ["report"], indirect=True)
def test_report_tells_the_guest_and_the_log_once(served: tuple[Daemon, Guest, Path], disk: Disk) -> None:
    daemon, guest, metrics = served
    disk.fails()
    assert [guest.request(IN, BAD, length=LENGTH)[0] for _ in range(3)] == [IOERR] * 3
    line = daemon.logged("disk_errors")
    assert (line["error"], line["on_error"], line["stopped"]) == ("Input/output error", "report", False)
    disk.works()
    assert guest.request(IN, BAD, length=LENGTH) == (OK, b"\x5a" * LENGTH)
    over = daemon.logged("disk_errors_over")
    assert (over["reported"], over["retried"]) == (3, 0)
    assert [line["event"] for line in daemon.log].count("disk_errors") == 1
    assert value(scrape(metrics), "kpoll_request_errors_total", op="read", kind="io", queue="0") == 3


@pytest.mark.parametrize("served", ["retry"], indirect=True)
def test_retry_answers_when_the_disk_works_again(served: tuple[Daemon, Guest, Path], disk: Disk) -> None:
    daemon, guest, metrics = served
    disk.fails()
    guest.submit(IN, BAD, length=LENGTH)
    assert daemon.logged("disk_errors")["on_error"] == "retry"
    until(lambda: value(scrape(metrics), "kpoll_request_retries_total", op="read", queue="0") >= 3)
    assert is_kept(metrics, 1)
    disk.works()
    guest.driver.wait()
    assert guest.data.mmap[16 : 16 + LENGTH] == b"\x5a" * LENGTH
    assert daemon.logged("disk_errors_over")["reported"] == 0
    assert is_kept(metrics, 0)
    assert daemon.stop() == 0


@pytest.mark.parametrize("served", ["stop"], indirect=True)
def test_stop_waits_for_sighup(served: tuple[Daemon, Guest, Path], disk: Disk) -> None:
    daemon, guest, metrics = served
    stopped(daemon, guest, disk)
    assert is_kept(metrics, 1)
    daemon.signal(signal.SIGHUP)  # too early
    assert daemon.logged("disk_resumed")["waiting"] == 1
    assert daemon.logged("disk_errors")["stopped"] is True
    disk.works()
    daemon.signal(signal.SIGHUP)
    daemon.logged("disk_resumed")
    guest.driver.wait()
    assert guest.data.mmap[16 : 16 + LENGTH] == b"\x5a" * LENGTH
    assert daemon.logged("disk_errors_over")["reported"] == 0


@pytest.mark.parametrize("served", ["stop"], indirect=True)
def test_sighup_resumes_a_stopped_disk_also_when_its_queues_were_stopped_and_nothing_waits(
    served: tuple[Daemon, Guest, Path], disk: Disk
) -> None:
    daemon, guest, metrics = served
    stopped(daemon, guest, disk)
    guest.frontend.get_vring_base(0)
    assert is_kept(metrics, 0)
    disk.works()
    daemon.signal(signal.SIGHUP)
    assert daemon.logged("disk_resumed")["waiting"] == 0
    guest.frontend.request(Request.SET_VRING_KICK, VringFd(0, has_fd=True), [guest.driver.vring.kick_fd])
    guest.driver.wait()
    assert guest.data.mmap[16 : 16 + LENGTH] == b"\x5a" * LENGTH
    assert daemon.logged("disk_errors_over")["reported"] == 0


@pytest.mark.parametrize("served", ["stop"], indirect=True)
def test_who_connects_to_a_stopped_disk_is_served_or_stops_it_anew(
    served: tuple[Daemon, Guest, Path], disk: Disk
) -> None:
    daemon, guest, metrics = served
    sock = metrics.with_name("s")
    stopped(daemon, guest, disk)
    guest.close()
    daemon.logged("frontend_disconnected")
    with Guest(sock) as second:
        second.submit(IN, BAD, length=LENGTH)
        assert daemon.logged("disk_errors")["stopped"] is True
    daemon.logged("frontend_disconnected")
    disk.works()
    with Guest(sock) as third:
        assert third.request(IN, BAD, length=LENGTH) == (OK, b"\x5a" * LENGTH)
    daemon.logged("disk_errors_over")


@pytest.mark.parametrize("served", ["retry", "stop"], indirect=True)
def test_a_daemon_whose_disk_is_gone_ends_at_once_and_answers_nothing(
    served: tuple[Daemon, Guest, Path], disk: Disk
) -> None:
    daemon, guest, _ = served
    disk.fails()
    guest.submit(IN, BAD, length=LENGTH)
    daemon.logged("disk_errors")
    assert daemon.stop() == 0
    assert guest.driver.poll() == []  # whoever reconnects finds it where it was


@pytest.mark.parametrize("served", ["stop"], indirect=True)
def test_memory_that_the_front_end_took_away_stops_its_queue_and_not_the_disk(
    served: tuple[Daemon, Guest, Path],
) -> None:
    daemon, guest, metrics = served
    gone = guest.data.size // 2
    guest.data.mmap[:16] = struct.pack("<IIQ", IN, 0, BAD)
    os.ftruncate(guest.data.fd, gone)
    guest.driver.add([Buffer(guest.data.gpa, 16)], [Buffer(guest.data.gpa + gone, LENGTH + 1)], 0)
    guest.driver.publish()
    assert daemon.logged("queue_fault")["kind"] == "memory_gone"
    errors = {kind: scraped(metrics, "kpoll_request_errors_total", op="read", kind=kind) for kind in ("io", "memory")}
    assert errors == {"io": 0, "memory": 1}
    assert daemon.stop() == 0
    assert "disk_errors" not in [line["event"] for line in daemon.log]
