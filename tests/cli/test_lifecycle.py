"""A daemon's life: who may connect, one front-end after the other, leaving quickly, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.backend.blk_config import BlkFeature
from kpoll.vhost.driver import Buffer
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.messages import BackendRequest, Request
from kpoll.vhost.payloads import U64
from tests.cli.harness import FLUSH, IN, KPOLL, OUT, SECTOR, Daemon, Guest, until

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION_1 = VirtioFeature.VIRTIO_F_VERSION_1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize("engine", ["auto", "aio", "io_uring"])
def test_a_guest_reads_what_the_file_has_and_the_file_has_what_the_guest_wrote(
    sock: Path, image: Path, engine: str
) -> None:
    before = image.read_bytes()
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--engine", engine) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.capacity == len(before) // SECTOR
            assert guest.request(IN, 7, length=8 * SECTOR) == (0, before[7 * SECTOR : 15 * SECTOR])
            assert guest.request(OUT, 3, out=b"k" * SECTOR) == (0, b"")
            assert guest.request(FLUSH, 0) == (0, b"")
        daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    assert image.read_bytes() == before[: 3 * SECTOR] + b"k" * SECTOR + before[4 * SECTOR :]


def test_a_read_only_disk_says_so_and_refuses_writes(sock: Path, image: Path) -> None:
    image.chmod(0o444)
    before = image.read_bytes()
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--read-only") as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.frontend.features & BlkFeature.VIRTIO_BLK_F_RO
            assert guest.request(OUT, 0, out=b"k" * SECTOR) == (1, b"")
            assert guest.request(IN, 0, length=SECTOR) == (0, before[:SECTOR])
        assert daemon.stop() == 0
    assert image.read_bytes() == before


def test_who_starts_it_may_have_closed_its_standard_streams_and_nothing_else_gets_their_numbers(
    sock: Path, image: Path
) -> None:
    shell = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", KPOLL)

    def listens() -> bool:
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return any((flags, path) == ("00010000", str(sock)) for _, _, _, flags, *_, path in sockets)  # __SO_ACCEPTCON

    with Daemon("blk", "--socket-path", sock, "--blk-file", image, program=shell, stderr=None) as daemon:
        until(listens)
        assert [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in range(3)] == [os.devnull] * 3  # noqa: PTH115
        with Guest(sock) as guest:
            assert guest.request(IN, 7, length=SECTOR) == (0, image.read_bytes()[7 * SECTOR : 8 * SECTOR])
        assert daemon.stop() == 0


def test_a_null_disk_has_the_size_that_was_asked_for(sock: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--engine", "null", "--size", "64G") as daemon:
        assert daemon.logged("started")["device"] == "null"
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.capacity == (64 << 30) // SECTOR
            assert guest.request(IN, guest.capacity - 1, length=SECTOR)[0] == 0
            assert guest.request(IN, guest.capacity, length=SECTOR)[0] == 1
        assert daemon.stop() == 0


def test_what_was_chosen_is_logged_with_the_reason(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--workers", "2") as daemon:
        started = daemon.logged("started")
        assert (started["poll"], started["workers"], started["capacity"]) == ("user", 2, (1 << 20) // SECTOR)
        assert started["engine"] in {"aio", "io_uring"}
        assert started["engine_why"]
        assert started["poll_why"]
        daemon.logged("listening")
        assert daemon.stop() == 0


def test_it_listens_again_after_a_front_end_has_left(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        for conn in (1, 2, 3):
            with Guest(sock) as guest:
                assert guest.request(IN, 0, length=SECTOR)[0] == 0
                assert daemon.logged("frontend_connected")["conn"] == conn
            assert daemon.logged("frontend_disconnected")["conn"] == conn
        assert daemon.stop() == 0


def test_a_second_front_end_is_refused_while_the_first_is_there(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            with pytest.raises((FrontendError, OSError)):
                Frontend(sock)
            assert daemon.logged("frontend_refused")["conn"] == 2
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        daemon.logged("frontend_disconnected")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0


def test_a_front_end_that_reconnects_at_once_is_served(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        for _ in range(20):
            with Guest(sock) as guest:
                guest.submit(IN, 0, length=SECTOR)  # and doesn't wait for the answer
        assert daemon.stop() == 0
    assert not [line for line in daemon.log if line["event"] == "frontend_refused"]


@pytest.fixture
def listener(sock: Path) -> Iterator[int]:
    """Give the descriptor of a socket that is listened on already: a guest may come before the daemon is up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        listener.listen()
        yield listener.fileno()


def test_a_listening_fd_is_listened_on_again_and_again(image: Path, sock: Path, listener: int) -> None:
    with Daemon("blk", "--fd", str(listener), "--blk-file", image, pass_fds=[listener]) as daemon:
        assert daemon.logged("listening")["socket"] == f"fd {listener}"
        for _ in range(2):
            with Guest(sock) as guest:
                assert guest.request(IN, 0, length=SECTOR)[0] == 0
            daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    assert sock.exists(), "the path belongs to whoever made it"


def test_a_connected_fd_is_served_until_the_front_end_leaves(image: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        daemon = Daemon("blk", "--fd", str(theirs.fileno()), "--blk-file", image, pass_fds=[theirs.fileno()])
    with daemon:
        with Guest(ours) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_quickly_when_told_to_and_takes_its_socket_with_it(sock: Path, image: Path, number: int) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
            daemon.signal(number)
            assert daemon.wait() == 0
    assert daemon.log[-1]["event"] == "stopped"
    assert not sock.exists()


def test_what_is_in_flight_when_told_to_leave_is_finished_first(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            guest.submit(OUT, 5, out=b"z" * SECTOR)
            guest.frontend.get_config(0, 8)  # the kick was sent before this was answered
            assert daemon.stop() == 0
            (used,) = guest.driver.wait()
            assert used.token == 5
    assert image.read_bytes()[5 * SECTOR : 6 * SECTOR] == b"z" * SECTOR


def test_a_signal_that_comes_before_anybody_listens_for_it_is_not_lost(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("started")
        assert daemon.stop() == 0
    assert not sock.exists()


def test_a_hangup_while_the_disk_is_being_opened_does_not_end_it(sock: Path, image: Path, tmp_path: Path) -> None:
    hangup = ("-e", "trace=openat", "-e", "inject=openat:signal=HUP:when=1")
    strace = ("strace", "-D", "-f", "-P", image, *hangup, "-o", tmp_path / "trace", KPOLL)
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, program=strace) as daemon:
        daemon.logged("listening")
        assert "SigPnd:\t0000000000000001\n" in Path(f"/proc/{daemon.pid}/status").read_text(), "nobody hung up"
        assert daemon.stop() == 0


def test_it_does_not_remove_a_socket_that_took_its_place(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        sock.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(sock))
            assert daemon.stop() == 0
            assert sock.exists()


def test_the_socket_has_the_mode_and_group_that_were_asked_for(sock: Path, image: Path) -> None:
    gid = os.getgid()
    args = ["--socket-mode", "0620", "--socket-group", str(gid)]
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, *args) as daemon:
        daemon.logged("listening")
        status = sock.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o620, gid)
        assert daemon.stop() == 0


def test_each_worker_runs_on_its_own_cpu(sock: Path, image: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    listed = ",".join(map(str, cpus))
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--cpus", listed) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:  # a vring that runs shows that its worker does
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        tasks = {task.joinpath("comm").read_text().strip(): task for task in _tasks(daemon.pid)}
        assert {
            name: os.sched_getaffinity(int(task.name)) for name, task in tasks.items() if name[:7] == "kpoll-w"
        } == {f"kpoll-w{i}": {cpu} for i, cpu in enumerate(cpus)}
        assert daemon.stop() == 0


def _tasks(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def test_queues_of_several_workers_serve_one_guest(sock: Path, image: Path) -> None:
    content = image.read_bytes()
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, "--num-queues", "4", "--workers", "3") as daemon:
        daemon.logged("listening")
        for index in range(4):
            with closing(Guest(sock, index=index)) as guest:
                assert guest.frontend.queue_num() == 4
                assert guest.request(IN, index, length=SECTOR) == (0, content[index * SECTOR : (index + 1) * SECTOR])
            daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0


def test_a_broken_queue_is_one_line_in_the_log_and_the_disk_goes_on(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            layout, rings = guest.driver.layout, guest.driver.memory.mmap
            rings[layout.avail + 2 : layout.avail + 4] = (1000).to_bytes(2, "little")  # avail.idx, far ahead
            guest.driver.vring.kick()
            fault = daemon.logged("queue_fault")
            assert (fault["queue"], fault["kind"], fault["level"]) == (0, "avail_idx", "error")
            assert guest.driver.vring.wait_err()
            guest.frontend.get_vring_base(0)
            assert guest.capacity == (1 << 20) // SECTOR
        daemon.logged("frontend_disconnected")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0
    assert len([line for line in daemon.log if line["event"] == "queue_fault"]) == 1


def test_a_front_end_that_takes_its_memory_away_breaks_its_own_queue_only(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            gone = guest.data
            os.ftruncate(gone.fd, 0)
            guest.driver.add([Buffer(gone.gpa, 16)], [Buffer(gone.gpa + 4096, SECTOR + 1)], 0)
            guest.driver.publish()
            assert daemon.logged("queue_fault")["kind"] == "memory_gone"
        daemon.logged("frontend_disconnected")
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0


def test_a_front_end_that_talks_nonsense_is_sent_away_and_the_next_is_served(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with socket.socket(socket.AF_UNIX) as babbler:
            babbler.connect(str(sock))
            babbler.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
            assert daemon.logged("frontend_disconnected")["level"] == "warning"
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("features", "first", "then"),
    [
        (VERSION_1, None, None),  # neither FLUSH nor CONFIG_WCE: writethrough, as the disk starts out
        (VERSION_1 | BlkFeature.VIRTIO_BLK_F_FLUSH, True, None),
        (VERSION_1 | BlkFeature.VIRTIO_BLK_F_FLUSH | BlkFeature.VIRTIO_BLK_F_CONFIG_WCE, True, False),
    ],
)
def test_the_driver_decides_whether_writes_are_cached(
    sock: Path, image: Path, features: int, *, first: bool | None, then: bool | None
) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock, features=features) as guest:
            assert guest.request(OUT, 0, out=b"x" * SECTOR)[0] == 0
            guest.frontend.set_config(32, b"\0")
            assert guest.frontend.get_config(32, 1) == b"\0"
        daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    modes = [line["write_back"] for line in daemon.log if line["event"] == "cache_mode"]
    assert modes == [mode for mode in (first, then) if mode is not None]


def test_a_guest_that_reconnects_may_believe_in_either_cache_mode_so_its_writes_are_durable(
    sock: Path, image: Path
) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock, reconnects=True) as guest:
            assert guest.request(OUT, 0, out=b"x" * SECTOR)[0] == 0
            assert guest.told() is BackendRequest.CONFIG_CHANGE_MSG  # its size may be an old one, too
            guest.frontend.get_config(0, 60)  # QEMU's answer to that, of which its guest sees the size alone
            guest.frontend.set_config(32, b"\1")
            assert guest.frontend.get_config(32, 1) == b"\1"
        daemon.logged("frontend_disconnected")
        assert daemon.stop() == 0
    assert [line["write_back"] for line in daemon.log if line["event"] == "cache_mode"] == [True]


def test_a_reset_leaves_the_cache_mode_that_the_guest_believes_in(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            guest.frontend.set_config(32, b"\0")
            assert daemon.logged("cache_mode")["write_back"]  # negotiated
            assert not daemon.logged("cache_mode")["write_back"]  # turned off
            guest.frontend.request(Request.SET_STATUS, U64(0))
            assert guest.frontend.get_config(32, 1) == b"\0"
        assert daemon.stop() == 0
    assert len([line for line in daemon.log if line["event"] == "cache_mode"]) == 2


def test_the_configuration_space_can_be_written_only_where_it_is_writable(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock) as guest:
            with pytest.raises(FrontendError):
                guest.frontend.set_config(0, b"\xff" * 8)
            assert guest.capacity == (1 << 20) // SECTOR
        assert daemon.stop() == 0


def test_a_log_reader_that_went_away_does_not_stop_the_disk(sock: Path, image: Path, listener: int) -> None:
    ready, written = os.pipe()
    os.close(ready)
    with open(written, "wb") as nobody_reads:  # noqa: PTH123 - a descriptor, no path
        args = ("blk", "--fd", str(listener), "--blk-file", image)
        daemon = Daemon(*args, stderr=nobody_reads, pass_fds=[listener])
    with daemon:
        with Guest(sock) as guest:
            assert guest.request(IN, 0, length=SECTOR)[0] == 0
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_a_log_reader_that_stalls_does_not_stop_the_disk(sock: Path, image: Path, listener: int) -> None:
    ready, written = os.pipe()
    os.set_blocking(written, False)
    with suppress(BlockingIOError):
        while True:
            os.write(written, b"x" * 4096)
    os.set_blocking(written, True)
    with open(ready, "rb"), open(written, "wb") as nobody_reads:  # noqa: PTH123 - descriptors, no paths
        args = ("blk", "--fd", str(listener), "--blk-file", image)
        with Daemon(*args, stderr=nobody_reads, pass_fds=[listener]) as daemon:
            with Guest(sock) as guest:
                assert guest.request(IN, 0, length=SECTOR)[0] == 0
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert os.get_blocking(written)


def test_negotiated_features_are_logged_by_the_names_of_the_specification(sock: Path, image: Path) -> None:
    with Daemon("blk", "--socket-path", sock, "--blk-file", image) as daemon:
        daemon.logged("listening")
        with Guest(sock, features=VERSION_1 | BlkFeature.VIRTIO_BLK_F_FLUSH):
            names = daemon.logged("features_negotiated")["features"]
            assert {"VIRTIO_F_VERSION_1", "VIRTIO_BLK_F_FLUSH"} <= set(names)
        assert daemon.stop() == 0
