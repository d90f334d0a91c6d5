"""`kpoll bench net` as a user meets it: against our daemon, and against trouble."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.harness import Daemon
from tests.unit.bench import KPOLL, kpoll_bench, one_line, printed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = ["--frames", "2000", "--json"]


@contextmanager
def card(folder: Path, backend: str, *options: str) -> Iterator[tuple[Path, Daemon]]:
    sock = folder / "s"
    with Daemon("net", "--backend", backend, "--socket-path", sock, *options) as daemon:
        daemon.logged("listening")
        yield sock, daemon


def report(sock: Path, *options: str) -> dict[str, Any]:
    return printed(kpoll_bench("net", "--socket-path", str(sock), *QUICK, *options))


@pytest.mark.parametrize(
    "ring", [[], ["--packed"], ["--no-event-idx"], ["--packed", "--no-event-idx", "--no-mrg-rxbuf"]]
)
@pytest.mark.parametrize("size", ["60", "1500", "9000"])
def test_the_very_frames_come_back_from_an_echo_on_every_ring(tmp_path: Path, ring: list[str], size: str) -> None:
    with card(tmp_path, "echo") as (sock, _):
        found = report(sock, "--verify", "--depth", "32", "--size", size, *ring)
    assert (found["sent"], found["received"], found["lost"]) == (2000, 2000, 0)
    assert (found["foreign"], found["mismatches"]) == (0, 0)
    assert 0 < found["rtt_us"]["p50"] <= found["rtt_us"]["p99"]
    assert found["backend_cpu_us_per_packet"] > 0


def test_null_takes_all_that_is_sent(tmp_path: Path) -> None:
    with card(tmp_path, "null") as (sock, _):
        found = report(sock, "--mode", "tx", "--size", "1500")
    assert found["sent"] == 2000
    assert found["gbps"] * 1e9 == pytest.approx(found["pps"] * 1500 * 8, rel=0.01, abs=1e5)


def test_null_gives_frames_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    with card(tmp_path, "null:1000") as (sock, _):
        found = report(sock, "--mode", "rx")
    assert found["received"] >= 2000
    assert found["gbps"] * 1e9 == pytest.approx(found["pps"] * 1000 * 8, rel=0.01, abs=1e5)


def test_every_queue_pair_echoes(tmp_path: Path) -> None:
    with card(tmp_path, "echo", "--num-queue-pairs", "2") as (sock, daemon):
        found = report(sock, "--pairs", "2", "--depth", "4", "--verify")
        started = {daemon.logged("vring_started")["queue"] for _ in range(4)}
    assert started == {0, 1, 2, 3}
    assert (found["received"], found["lost"]) == (2000, 0)


def test_a_source_that_gives_nothing_is_one_line(tmp_path: Path) -> None:
    with card(tmp_path, "null:0") as (sock, _):
        done = kpoll_bench("net", "--socket-path", str(sock), "--mode", "rx", "--runtime", "0.1", "--warmup", "0")
    one_line(done, 1, "not one frame")


def test_a_card_without_work_costs_no_cpu(tmp_path: Path) -> None:
    with card(tmp_path, "echo") as (sock, _):
        found = report(sock, "--idle", "1")
    assert found["backend_cpu_idle"] < 0.01


def test_people_get_a_table(tmp_path: Path) -> None:
    with card(tmp_path, "echo") as (sock, _):
        done = kpoll_bench("net", "--socket-path", str(sock), "--frames", "100")
    assert done.returncode == 0, done.stderr
    for word in ("packets per second", "throughput", "round trip p99", "back-end CPU per packet", "lost"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--mode", "both"], 2, "--mode"),
        (["--size", "20"], 2, "--size 20"),
        (["--depth", "300"], 2, "--depth 300"),
        (["--pairs", "2"], 1, "--pairs 2"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, options: list[str], code: int, named: str) -> None:
    with card(tmp_path, "echo") as (sock, _):
        one_line(kpoll_bench("net", "--socket-path", str(sock), *options), code, named)


def test_nobody_listening_is_one_line(tmp_path: Path) -> None:
    one_line(kpoll_bench("net", "--socket-path", str(tmp_path / "s")), 1, "vhost-user-net")


def test_a_backend_that_dies_in_the_middle_is_one_line(tmp_path: Path) -> None:
    with card(tmp_path, "echo") as (sock, daemon):
        words = [*KPOLL, "bench", "net", "--socket-path", str(sock), "--runtime", "60"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            daemon.logged("vring_started")
            daemon.logged("vring_started")
            daemon.signal(signal.SIGKILL)
            _, stderr = run.communicate(timeout=30)
    assert run.returncode == 1
    assert len(stderr.splitlines()) == 1, stderr
    assert "hung up" in stderr
