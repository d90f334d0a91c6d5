"""The metrics as Prometheus scrapes them: names and labels of docs/metrics.md, and numbers that are true."""

from __future__ import annotations

import http.client
import os
import re
import socket
from pathlib import Path

import pytest

from tests.cli.harness import FLUSH, IN, OUT, SECTOR, Daemon, Guest, Samples, scrape, value

DOCS = Path(__file__).resolve().parents[2] / "docs/metrics.md"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        """Speak HTTP to the socket at `path`."""
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def fetch(connection: http.client.HTTPConnection, method: str = "GET", target: str = "/metrics") -> tuple[int, str]:
    connection.request(method, target)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def break_queue(guest: Guest, daemon: Daemon) -> None:
    """Let avail.idx run ahead of the queue's size; returns once that is logged."""
    at = guest.driver.layout.avail + 2
    guest.driver.memory.mmap[at : at + 2] = (1000).to_bytes(2, "little")
    guest.driver.vring.kick()
    daemon.logged("queue_fault")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "d.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "m"


def test_what_a_guest_did_is_what_is_counted(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        assert value(scrape(where), "kpoll_connected") == 0
        with Guest(sock) as guest:
            for _ in range(3):
                guest.request(IN, 0, length=2 * SECTOR)
            guest.request(OUT, 1, out=b"x" * SECTOR)
            guest.request(FLUSH, 0)
            guest.request(IN, 1 << 40, length=SECTOR)
            guest.request(99, 0)
            samples = scrape(where)
            assert value(samples, "kpoll_connected") == 1
        daemon.logged("frontend_disconnected")
        after = scrape(where)
        assert daemon.stop() == 0
    assert value(samples, "kpoll_requests_total", queue="0", op="read") == 4
    assert value(samples, "kpoll_requests_total", queue="0", op="write") == 1
    assert value(samples, "kpoll_requests_total", queue="0", op="flush") == 1
    assert value(samples, "kpoll_request_bytes_total", queue="0", op="read") == 6 * SECTOR
    assert value(samples, "kpoll_request_bytes_total", queue="0", op="write") == SECTOR
    assert value(samples, "kpoll_request_errors_total", queue="0", op="read", kind="range") == 1
    assert value(samples, "kpoll_request_errors_total", queue="0", op="other", kind="unsupported") == 1
    assert value(samples, "kpoll_request_errors_total", queue="0", op="write", kind="io") == 0
    assert value(samples, "kpoll_request_duration_seconds_count", queue="0", op="read") == 4
    assert value(samples, "kpoll_request_duration_seconds_sum", queue="0", op="read") > 0
    assert value(samples, "kpoll_requests_in_flight", queue="0") == 0
    assert value(samples, "kpoll_worker_cpu_seconds_total") > 0
    polls = sum(value(samples, "kpoll_polls_total", result=result) for result in ("hit", "gave_way", "timeout"))
    assert polls + value(samples, "kpoll_sleeps_total") > 0
    called = value(samples, "kpoll_calls_total", queue="0") + value(samples, "kpoll_calls_suppressed_total", queue="0")
    assert called == 7, "each answer was either told or needn't be"
    assert value(after, "kpoll_connected") == 0
    assert value(after, "kpoll_requests_total", queue="0", op="read") == 4, "counters outlive the front-end"


def test_counters_go_on_when_the_next_front_end_comes(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        for round_ in (1, 2, 3):
            with Guest(sock) as guest:
                guest.request(IN, 0, length=SECTOR)
                samples = scrape(where)
            daemon.logged("frontend_disconnected")
            assert value(samples, "kpoll_requests_total", queue="0", op="read") == round_
            calls = value(samples, "kpoll_calls_total", queue="0")
            assert calls + value(samples, "kpoll_calls_suppressed_total", queue="0") == round_
        assert daemon.stop() == 0


def test_a_fault_is_counted_by_its_kind(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        with Guest(sock) as guest:
            break_queue(guest, daemon)
            assert value(scrape(where), "kpoll_queue_faults_total", queue="0", kind="avail_idx") == 1
        assert daemon.stop() == 0


# What only one kind of device counts.
ONLY_DISKS, ONLY_CARDS = r"kpoll_request(s|_bytes|_errors|_duration_seconds|s_kept|_retries)(_total)?", r"kpoll_net_\w+"
ONLY_NVME = r"kpoll_nvme_\w+"  # served in tests/kernel/test_nvme_disks.py


def documented(without: str) -> dict[str, set[str]]:
    """Return the metrics of the docs with their labels, without those whose names match."""
    rows = re.findall(r"^\| `(kpoll_\w+)` \| \w+ \| ([\w, ]+) \|", DOCS.read_text(), re.MULTILINE)
    return {name: set(labels.split(", ")) for name, labels in rows if not re.fullmatch(without, name)}


def served(samples: Samples) -> dict[str, set[str]]:
    """Return the metrics of a scrape with their labels."""
    found: dict[str, set[str]] = {}
    for name, labels in samples:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found.setdefault(base, set()).update(key for key, _ in labels if key != "le")
    return found


def test_every_metric_of_the_docs_is_there_with_its_labels_and_no_other(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        with Guest(sock) as guest:
            guest.request(IN, 0, length=SECTOR)
            break_queue(guest, daemon)
            samples = scrape(where)
        assert daemon.stop() == 0
    assert served(samples) == documented(without=f"{ONLY_CARDS}|{ONLY_NVME}")


def test_a_card_on_a_socket_has_all_of_them_but_what_disks_have(sock: Path, where: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    backend = f"udp:{host}:{port},127.0.0.2:{port}"
    with Daemon("net", "--backend", backend, "--socket-path", sock, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        with Guest(sock) as guest:
            break_queue(guest, daemon)
            samples = scrape(where)
        assert daemon.stop() == 0
    assert served(samples) == documented(without=f"{ONLY_DISKS}|{ONLY_NVME}")


def test_a_histogram_counts_each_request_once_and_upwards(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        with Guest(sock) as guest:
            for _ in range(10):
                guest.request(IN, 0, length=SECTOR)
            samples = scrape(where)
        assert daemon.stop() == 0
    buckets = sorted(
        (float(dict(labels)["le"]), count)
        for (name, labels), count in samples.items()
        if name == "kpoll_request_duration_seconds_bucket" and dict(labels)["op"] == "read"
    )
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == (float("inf"), 10)
    assert [bound for bound, _ in buckets[:3]] == [1e-6, 2e-6, 4e-6]


IPV6 = pytest.param("[::1]", marks=pytest.mark.ci_may_skip("the host may have been built without IPv6"))


@pytest.mark.parametrize("host", ["127.0.0.1", IPV6, "localhost"])
def test_metrics_are_served_over_tcp_on_both_families(sock: Path, image: Path, host: str) -> None:
    if host == "[::1]" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 on this host")
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics", f"{host}:0") as daemon:
        address, _, port = daemon.logged("metrics_listening")["socket"].rpartition(":")
        status, text = fetch(http.client.HTTPConnection(address.strip("[]"), int(port), timeout=30))
        assert status == 200
        assert 'kpoll_info{device="d.img"' in text
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/", 200),
        ("GET", "/metrics?x=1", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/secrets", 404),
        ("POST", "/metrics", 405),
    ],
)
def test_only_what_a_scrape_needs_is_answered(
    sock: Path, where: Path, image: Path, method: str, target: str, status: int
) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        got, text = fetch(UnixConnection(where), method, target)
        assert got == status
        assert bool(text) == (method != "HEAD")
        assert daemon.stop() == 0
    assert not where.exists()


def test_clients_that_send_nothing_or_too_much_keep_nobody_else_waiting_for_long(
    sock: Path, where: Path, image: Path
) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        silent = [socket.socket(socket.AF_UNIX) for _ in range(7)]
        for client in silent:
            client.connect(str(where))
        with socket.socket(socket.AF_UNIX) as chatty:
            chatty.settimeout(30)
            chatty.connect(str(where))
            chatty.sendall(b"GET /metrics HTTP/1.0\r\n" + b"X: y\r\n" * 2000)
            assert b"400 Bad Request" in chatty.recv(4096)
        assert fetch(UnixConnection(where))[0] == 200
        for client in silent:
            client.close()
        assert daemon.stop() == 0


def test_every_family_is_announced_once_with_its_type(sock: Path, where: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--metrics-socket", where) as daemon:
        daemon.logged("metrics_listening")
        with Guest(sock) as guest:
            guest.request(IN, 0, length=SECTOR)
            _, text = fetch(UnixConnection(where))
        assert daemon.stop() == 0
    families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert len(families) == len({name for name, _ in families})
    assert {kind for _, kind in families} == {"counter", "gauge", "histogram"}
