"""The process that opens a disk which came back: it may take its time, and nobody hangs on it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock

from kpoll.backend import blk_opener, blk_return
from kpoll.backend.blk_device import BlkDevice
from kpoll.backend.blk_opener import Opener
from kpoll.backend.blk_return import ReturnWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def impatient(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Have one that hardly waits for an answer."""
    monkeypatch.setattr(blk_opener, "_ANSWER_S", 0.01)
    return Opener(ends[0])


def give(theirs: socket.socket) -> None:
    """Hand two descriptors over, as the process does."""
    null = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(theirs, [b"+"], [null, null])
    os.close(null)


def taken(fds: tuple[int, int] | None) -> bool:
    """Close what was handed over."""
    for fd in fds or ():
        os.close(fd)
    return fds is not None


def test_who_does_not_answer_is_not_waited_for_and_its_late_answer_is_the_next_ones(
    ends: tuple[socket.socket, socket.socket], impatient: Opener
) -> None:
    opener, theirs = impatient, ends[1]
    assert opener.ask() is None
    assert opener.ask() is None
    assert theirs.recv(16) == b"?"  # it wasn't asked again
    give(theirs)
    assert taken(opener.ask())
    give(theirs)
    assert taken(opener.ask())
    assert theirs.recv(16) == b"?"


def test_a_late_no_is_asked_again(ends: tuple[socket.socket, socket.socket], impatient: Opener) -> None:
    opener, theirs = impatient, ends[1]
    assert opener.ask() is None
    theirs.sendall(b"-")
    give(theirs)
    assert taken(opener.ask())
    assert theirs.recv(16) == b"??"


def test_one_who_has_ended_has_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    opener = Opener(ours)
    assert [opener.ask(), opener.ask()] == [None, None]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Have the process itself, which finds a disk each time, if not a real one."""
    monkeypatch.setattr(blk_opener, "_open", lambda *_: [os.open(os.devnull, os.O_RDONLY) for _ in range(2)])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    news, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        blk_opener._serve(theirs, told, "wwid", os.O_RDONLY, 512)  # noqa: SLF001
    theirs.close()
    told.close()
    with ours, news:
        yield Opener(ours, news)
    os.waitpid(child, 0)


def heard(opener: Opener) -> list[str]:
    """Name the disks that it has given to whom else it gives them, so far."""
    assert opener.news is not None
    opener.news.setblocking(False)
    disks: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            _, fds, _, _ = socket.recv_fds(opener.news, 1, 1)
            disks += map(behind, fds)
            for fd in fds:
                os.close(fd)
    return disks


def test_others_get_a_disk_that_is_served_before_anybody_goes_on_and_none_that_is_refused(process: Opener) -> None:
    for serves, disks in ((False, []), (True, [os.devnull]), (False, [])):
        assert taken(process.ask())
        assert heard(process) == []
        process.settle(taken=serves)
        assert heard(process) == disks
    assert taken(process.ask())
    assert heard(process) == []


def test_a_late_word_that_others_have_it_is_not_taken_for_the_next_answer(
    ends: tuple[socket.socket, socket.socket], impatient: Opener
) -> None:
    opener, theirs = impatient, ends[1]
    give(theirs)
    assert taken(opener.ask())
    opener.settle(taken=True)
    theirs.sendall(b"!")
    give(theirs)
    assert taken(opener.ask())
    assert theirs.recv(16) == b"?!?"


class Gone(ReturnWatch):
    """Watches a disk that was deleted."""

    def _gone(self) -> bool:
        return True


def watch(opener: Any, **device: Any) -> tuple[Gone, LogCapture]:
    """Have a disk that is gone, and what is logged of it."""
    log = LogCapture()
    wrapped = structlog.wrap_logger(structlog.PrintLogger(), [log])
    known: Any = SimpleNamespace(**{"disk": None, **device})
    return Gone(known, opener, trio.lowlevel.checkpoint, wrapped), log


def test_one_looks_at_a_time_and_whoever_is_cancelled_does_not_wait_for_an_answer(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(blk_opener, "_ANSWER_S", 60.0)
    watched, log = watch(Opener(ours))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.look, 2)
            await trio.lowlevel.wait_readable(theirs)
            await watched.look()
            nursery.cancel_scope.cancel()

    began = time.monotonic()
    trio.run(main)
    assert time.monotonic() - began < 30
    assert theirs.recv(16) == b"?"
    assert [line["event"] for line in log.entries] == ["disk_gone"]


class Back:
    """An opener that has the disk, each time it is asked."""

    def __init__(self) -> None:
        """Have handed out nothing."""
        self.fds: list[int] = []
        self.asked = 0
        self.settled: list[bool] = []

    def ask(self) -> tuple[int, int]:
        """Hand it out."""
        self.asked += 1
        self.fds = [os.open("/dev/zero", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
        return self.fds[0], self.fds[1]

    def settle(self, *, taken: bool) -> None:
        """Hear what became of it."""
        self.settled.append(taken)


@pytest.fixture
def dead() -> Iterator[int]:
    """Give the descriptor of what was there before."""
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


def behind(fd: int) -> str:
    """Name what a descriptor is of."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def test_a_disk_that_came_back_smaller_than_the_guest_knows_it_is_refused_and_that_is_told_once(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = Back()
    watched, log = watch(back, disk=SimpleNamespace(fd=dead, capacity=9))
    monkeypatch.setattr(blk_return, "device_bytes", lambda _: 8 * 512)
    for _ in range(2):
        trio.run(watched.look)
        assert behind(dead) == os.devnull
        for fd in back.fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    assert [line["event"] for line in log.entries] == ["disk_gone", "disk_return_failed"]
    assert "has 8 sectors now, and the guest knows of 9" in log.entries[1]["error"]
    assert back.settled == [False, False]


def returns(dead: int, monkeypatch: pytest.MonkeyPatch, reopened: Callable[[], Awaitable[None]]) -> LogCapture:
    """Have a disk come back that is as large."""
    watched, log = watch(Back(), disk=SimpleNamespace(fd=dead, capacity=8), reopened=reopened)
    monkeypatch.setattr(blk_return, "device_bytes", lambda _: 8 * 512)
    monkeypatch.setattr(watched, "_gone", lambda: behind(dead) == os.devnull)
    trio.run(watched.look, clock=MockClock(autojump_threshold=0))
    watched.close()
    assert behind(dead) == "/dev/zero"
    return log


def test_one_that_is_as_large_takes_the_old_ones_place(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = returns(dead, monkeypatch, trio.lowlevel.checkpoint)
    assert (log.entries[-1]["event"], log.entries[-1]["namespace"]) == ("disk_returned", "zero")


def test_a_worker_that_can_not_take_it_is_told_of_once_and_asked_until_it_can(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []

    async def reopened() -> None:
        await trio.lowlevel.checkpoint()
        times.append(trio.current_time())
        if len(times) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = returns(dead, monkeypatch, reopened)
    assert [later - times[0] for later in times] == pytest.approx([0, 1, 2, 3])
    assert [line["event"] for line in log.entries] == ["disk_gone", "disk_return_failed", "disk_returned"]
    assert "No space left on device: tried again each second" in log.entries[1]["error"]


def test_one_that_goes_again_before_a_worker_could_take_it_is_opened_anew(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = 0

    async def reopened() -> None:
        nonlocal times
        await trio.lowlevel.checkpoint()
        times += 1
        if times == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    back = Back()
    watched, log = watch(back, disk=SimpleNamespace(fd=dead, capacity=8), reopened=reopened)
    monkeypatch.setattr(blk_return, "device_bytes", lambda _: 8 * 512)
    trio.run(watched.look, 2, clock=MockClock(autojump_threshold=0))
    watched.close()
    assert (times, back.asked, back.settled) == (2, 2, [True, True])
    assert [line["event"] for line in log.entries] == ["disk_gone", "disk_return_failed", "disk_returned"]


def test_a_worker_that_can_not_take_a_disk_that_is_back_keeps_it_from_no_other() -> None:
    asked: list[int] = []

    def worker(number: int) -> Any:
        async def join_lane(lane: int) -> None:
            await trio.lowlevel.checkpoint()
            asked.append(lane)
            if number == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return SimpleNamespace(join_lane=join_lane)

    queues = [SimpleNamespace(lane=number, worker=worker(number)) for number in range(3)]
    device: Any = SimpleNamespace(disk=SimpleNamespace(reopened=lambda: None), queues=queues)
    with pytest.raises(OSError, match="No space left"):
        trio.run(BlkDevice.reopened, device)
    assert asked == [0, 1, 2]
