"""`kpoll bench blk` as a user meets it: against our daemon, against qemu-storage-daemon, and against trouble."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kpoll.backend.bench.peers import QEMU, running
from tests.unit.bench import KPOLL, kpoll_bench, one_line, printed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = 4 << 20
QUICK = ["--requests", "2000", "--json"]


def bench(sock: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return kpoll_bench("blk", "--socket-path", str(sock), *options)


def report(sock: Path, *options: str) -> dict[str, Any]:
    return printed(bench(sock, *QUICK, *options))


@contextmanager
def daemon(folder: Path, *options: str) -> Iterator[Path]:
    """Run our daemon; its standard error goes to `log`."""
    sock = folder / "socket"
    words = [*KPOLL, "blk", "--socket-path", str(sock), "--log-format", "json", *options]
    with running(words, sock, min(os.sched_getaffinity(0)), folder / "log"):
        yield sock


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give the socket of a small real disk."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(IMAGE))
    with daemon(tmp_path, "--blk-file", str(image), "--num-queues", "2") as sock:
        yield sock


@pytest.fixture
def nothing(tmp_path: Path) -> Iterator[Path]:
    """Give the socket of a disk that stores nothing."""
    with daemon(tmp_path, "--engine", "null", "--size", "4M") as sock:
        yield sock


@pytest.mark.parametrize(
    "ring", [[], ["--packed"], ["--no-event-idx"], ["--no-indirect"], ["--packed", "--no-indirect"]]
)
@pytest.mark.parametrize("wait", ["poll", "sleep"])
def test_what_is_written_is_read_back_on_every_ring(disk: Path, ring: list[str], wait: str) -> None:
    found = report(disk, "--verify", "--rw", "randrw", "--iodepth", "16", "--queues", "2", "--wait", wait, *ring)
    assert found["requests"] == 2000
    assert found["errors"] == 0
    assert found["verify"]["checked"] == found["reads"] + IMAGE // 4096
    assert found["verify"]["mismatches"] == 0


@pytest.mark.parametrize("rw", ["randread", "randwrite", "read", "write", "randrw"])
def test_each_load_does_what_its_name_says(disk: Path, rw: str) -> None:
    found = report(disk, "--rw", rw, "--bs", "8k")
    assert (found["reads"] > 0) == (rw in ("randread", "read", "randrw"))
    assert (found["writes"] > 0) == (rw in ("randwrite", "write", "randrw"))
    assert found["bytes_per_second"] == pytest.approx(found["iops"] * 8192, rel=0.01)


def test_the_backend_s_cpu_time_is_measured_from_outside(nothing: Path) -> None:
    found = report(nothing, "--requests", "100000", "--iodepth", "32")
    assert 0 < found["backend_cpu_us_per_io"] < 1000


def test_a_front_end_that_sleeps_counts_the_interrupts_that_woke_it(nothing: Path) -> None:
    assert report(nothing, "--wait", "sleep")["calls_per_io"] > 0


def test_a_front_end_that_thinks_sends_no_more_than_it_has_time_for(nothing: Path) -> None:
    assert report(nothing, "--think-us", "1000", "--requests", "100")["seconds"] >= 0.05


def test_large_requests_go_in_as_many_segments_as_the_disk_wants(disk: Path) -> None:
    assert report(disk, "--bs", "1M", "--rw", "randrw", "--requests", "20")["errors"] == 0


def test_people_get_a_table(nothing: Path) -> None:
    run = bench(nothing, "--runtime", "0.1", "--warmup", "0")
    assert run.returncode == 0, run.stderr
    for word in ("IOPS", "latency p99.9", "back-end CPU per I/O", "kicks per I/O", "interrupts per I/O"):
        assert word in run.stdout


def test_a_disk_that_forgets_fails_verification(nothing: Path) -> None:
    run = bench(nothing, "--verify", *QUICK)
    assert json.loads(run.stdout)["verify"]["mismatches"] > 0
    assert run.returncode == 1
    assert "returned wrong data" in run.stderr.splitlines()[-1]


def test_verification_says_first_what_it_overwrites(disk: Path) -> None:
    run = bench(disk, "--verify", "--size", "1M", *QUICK)
    one_line(run, 0, "kpoll bench blk: filling 1.0 MiB of the disk's 4.0 MiB")


def test_a_read_only_disk_is_not_written_to(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(IMAGE))
    with daemon(tmp_path, "--blk-file", str(image), "--read-only") as sock:
        one_line(bench(sock, "--rw", "randwrite"), 1, "read-only")
        assert report(sock, "--rw", "randread")["errors"] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--queues", "3"], "offers 2"),
        (["--size", "1G"], "the disk has"),
        (["--bs", "8M"], "less than one block"),
        (["--verify", "--iodepth", "1024"], "more blocks than requests"),
    ],
)
def test_what_the_disk_cannot_do_is_one_line(disk: Path, options: list[str], named: str) -> None:
    one_line(bench(disk, *options), 1, named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--rw", "trim"], "--rw"),
        (["--bs", "1000"], "--bs"),
        (["--iodepth", "0"], "--iodepth"),
        (["--fast"], "--fast"),
        (["--socket-path", ""], "--socket-path"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path: Path, options: list[str], named: str) -> None:
    one_line(bench(tmp_path / "socket", *options), 2, named)


def test_nobody_listening_is_one_line(tmp_path: Path) -> None:
    one_line(bench(tmp_path / "socket"), 1, str(tmp_path / "socket"), "No such file")


def test_a_backend_that_dies_in_the_middle_is_one_line(nothing: Path, tmp_path: Path) -> None:
    words = [*KPOLL, "bench", "blk", "--socket-path", str(nothing), "--runtime", "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        pid = wait_for_vring(tmp_path / "log", run)
        os.kill(pid, signal.SIGKILL)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 1
    assert len(stderr.splitlines()) == 1, stderr
    assert "hung up" in stderr


def test_ctrl_c_ends_a_run_at_once(nothing: Path, tmp_path: Path) -> None:
    words = [*KPOLL, "bench", "blk", "--socket-path", str(nothing), "--runtime", "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for_vring(tmp_path / "log", run)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in stderr


def wait_for_vring(log: Path, run: subprocess.Popen[str]) -> int:
    """Read the daemon's log until it serves a vring. Gives its process id."""
    while run.poll() is None:
        entries = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if any(entry["event"] == "vring_started" for entry in entries):
            return int(next(entry["pid"] for entry in entries if entry["event"] == "started"))
    pytest.fail(f"the benchmark ended: {run.communicate()}")


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="qemu-storage-daemon is not installed")
def test_another_s_backend_is_measured_the_same_way(tmp_path: Path) -> None:
    sock = tmp_path / "socket"
    command = QEMU.command("null", sock, None)
    assert command is not None
    with running(command, sock, min(os.sched_getaffinity(0)), tmp_path / "log"):
        found = report(sock, "--iodepth", "32", "--queues", "2")
        assert found["requests"] == 2000
        assert found["backend_cpu_us_per_io"] > 0
        one_line(bench(sock, "--packed"), 1, "no packed virtqueues")
