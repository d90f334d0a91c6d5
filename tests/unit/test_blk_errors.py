"""What the log tells of a disk that fails: nothing is lost, also if it fails again the moment when all seems well."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock

from kpoll.backend import blk_errors
from kpoll.backend.blk_errors import ErrorWatch
from kpoll.vhost._core import lib

if TYPE_CHECKING:
    from collections.abc import Iterator


class Disk:
    """A disk that is stopped by what it fails, with nothing in its queues, and what is logged of it."""

    def __init__(self) -> None:
        """Let it work."""
        self.dev = lib.blk_dev_create()
        stats = SimpleNamespace(kept=0, errors=[[0] * lib.BLK_ERRORS] * lib.BLK_OPS, failures=[0] * lib.BLK_OPS)
        device: Any = SimpleNamespace(disk=self, queues=(SimpleNamespace(stats=stats),), workers=())
        self.log = LogCapture()
        self.watch = ErrorWatch(device, "stop", structlog.wrap_logger(structlog.PrintLogger(), [self.log]))

    def fails(self) -> None:
        """Do as blk_keep() does for a failure that stops the disk."""
        self.dev.stopped, self.dev.error, self.dev.told = 1, errno.EIO, 1
        os.eventfd_write(self.dev.event_fd, 1)

    def events(self) -> list[str]:
        """Name what was logged."""
        return [line["event"] for line in self.log.entries]


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.watch.close()
    lib.blk_dev_destroy(disk.dev)


def test_a_disk_is_resumed_also_when_nothing_waits(disk: Disk) -> None:
    disk.watch.resume()
    assert disk.events() == []
    disk.fails()
    disk.watch.resume()
    assert (disk.events(), disk.dev.stopped) == (["disk_resumed"], 0)


def test_a_disk_that_fails_again_as_its_errors_are_over_is_told_of_again(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsAgain:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def blk_dev_calm(self, dev: Any) -> bool:
            disk.fails()
            return bool(lib.blk_dev_calm(dev))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.watch.run)
            disk.fails()
            await trio.sleep(3)
            disk.watch.resume()
            monkeypatch.setattr(blk_errors, "lib", FailsAgain())
            await trio.sleep(3)
            assert disk.events() == ["disk_errors", "disk_resumed", "disk_errors"]
            monkeypatch.undo()
            disk.watch.resume()
            await trio.sleep(3)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0.05))
    assert disk.events()[3:] == ["disk_resumed", "disk_errors_over"]
