"""A disk that was to be polled, and isn't any more: told once."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock, wait_all_tasks_blocked

from kpoll.backend.blk_unpolled import UnpolledWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMESPACE = "nvme3n1"


class Watched:
    """A disk that is watched, its log, and what sysfs has of it."""

    def __init__(self, sys: Path) -> None:
        """Have a disk with poll queues."""
        number = os.stat(os.devnull).st_rdev  # noqa: PTH116
        self.io_poll = sys / "block" / NAMESPACE / "queue/io_poll"
        self.io_poll.parent.mkdir(parents=True)
        self.io_poll.write_text("1\n")
        link = sys / f"dev/block/{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True)
        link.symlink_to(sys / "block" / NAMESPACE)
        self.fd = os.open(os.devnull, os.O_RDONLY)
        self.dev = SimpleNamespace(target=SimpleNamespace(unpolled_fd=-1))
        self._log = LogCapture()
        wrapped = structlog.wrap_logger(structlog.PrintLogger(), [self._log])
        disk: Any = SimpleNamespace(dev=self.dev, fd=self.fd)
        device: Any = SimpleNamespace(disk=disk, engine=SimpleNamespace(iopoll=True))
        self.device = device
        self.watch = UnpolledWatch(device, wrapped, sys)

    def refuses(self, *, times: int = 1) -> None:
        """Have workers' engines say that they can't poll it."""

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watch.run)
                for _ in range(times):
                    os.eventfd_write(self.dev.target.unpolled_fd, 1)
                    await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

        trio.run(main, clock=MockClock())

    @property
    def told(self) -> list[str]:
        """What the log says."""
        assert {(line["event"], line["log_level"]) for line in self._log.entries} <= {("iopoll_lost", "warning")}
        return [line["error"].removesuffix(": completions come by interrupt") for line in self._log.entries]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.watch.close()
    os.close(watched.fd)
    assert watched.dev.target.unpolled_fd == -1


REFUSED, BACK = (
    "the device, or a layer above it, refuses to be polled",
    "it is back, and its driver has no poll queues now",
)


def test_one_that_is_polled_is_nothing_to_tell_of(disk: Watched) -> None:
    disk.refuses(times=0)
    disk.watch.returned()
    assert disk.told == []


def test_that_it_refuses_is_told_once_whichever_workers_hear_it(disk: Watched) -> None:
    disk.refuses(times=3)
    assert disk.told == [REFUSED]


def test_one_that_is_back_without_poll_queues_is_told_of_and_not_again_when_it_refuses(disk: Watched) -> None:
    disk.io_poll.write_text("0\n")
    disk.watch.returned()
    disk.refuses()
    assert disk.told == [BACK]


def test_after_it_was_away_it_is_told_again(disk: Watched) -> None:
    disk.refuses()
    disk.watch.returned()
    disk.refuses()
    assert disk.told == [REFUSED, REFUSED]


def test_where_the_kernel_does_not_say_what_a_disk_has_nothing_is_told(disk: Watched) -> None:
    disk.io_poll.unlink()
    disk.watch.returned()
    assert disk.told == []


def test_nothing_is_expected_of_a_disk_that_is_not_to_be_polled(disk: Watched) -> None:
    disk.device.engine.iopoll = False
    disk.io_poll.write_text("0\n")
    disk.watch.returned()
    assert disk.told == []
