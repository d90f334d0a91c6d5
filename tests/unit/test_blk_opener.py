"""The process that opens a disk which came back: it may take its time, and nobody hangs on it."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from kpoll.backend import blk_opener
from kpoll.backend.blk_opener import Opener
from kpoll.backend.blk_return import ReturnWatch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


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
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(blk_opener, "_ANSWER_S", 0.01)
    opener = Opener(ours)
    assert opener.ask() is None
    assert opener.ask() is None
    assert theirs.recv(16) == b"?"  # it wasn't asked again
    give(theirs)
    assert taken(opener.ask())
    give(theirs)
    assert taken(opener.ask())
    assert theirs.recv(16) == b"?"


def test_a_late_no_is_asked_again(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ends
    monkeypatch.setattr(blk_opener, "_ANSWER_S", 0.01)
    opener = Opener(ours)
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


class Gone(ReturnWatch):
    """Watches a disk that was deleted."""

    def _gone(self) -> bool:
        return True


def watch(opener: Any, **device: Any) -> tuple[Gone, LogCapture]:
    """Have a disk that is gone, and what is logged of it."""
    log = LogCapture()
    wrapped = structlog.wrap_logger(structlog.PrintLogger(), [log])
    return Gone(SimpleNamespace(**{"disk": None, **device}), opener, lambda: None, wrapped), log


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
