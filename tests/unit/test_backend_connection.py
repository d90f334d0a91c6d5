"""The log tells when the connection below a disk over NVMe/TCP is lost, and when it is back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from kpoll.backend.blk_connection import ConnectionWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Controller:
    """A controller's state, as sysfs has it, and what was said of it."""

    def __init__(self, file: Path) -> None:
        """Begin live."""
        self.file = file
        self.becomes("live")
        self.fd = os.open(file, os.O_RDONLY)
        self.log = LogCapture()
        self.watch = ConnectionWatch("nvme1", self.fd, structlog.wrap_logger(structlog.PrintLogger(), [self.log]))

    def becomes(self, state: str) -> None:
        """Change it; empty: as when it was removed."""
        self.file.write_text(f"{state}\n" if state else "")

    @property
    def said(self) -> list[str]:
        """The events of the log."""
        return [line["event"] for line in self.log.entries]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    made = Controller(tmp_path / "state")
    yield made
    os.close(made.fd)


def test_a_connection_that_stands_is_nothing_to_tell(controller: Controller) -> None:
    assert [controller.watch.look() for _ in range(3)] == ["live"] * 3
    assert controller.said == []


def test_a_connection_that_is_lost_and_back_is_told_once_each(controller: Controller) -> None:
    for state in ("resetting", "connecting", "connecting", "live", "live"):
        controller.becomes(state)
        controller.watch.look()
    lost, restored = controller.log.entries
    assert (lost["event"], lost["log_level"], lost["controller"]) == ("nvme_connection_lost", "warning", "nvme1")
    assert lost["state"] == "resetting"
    assert (restored["event"], restored["log_level"]) == ("nvme_connection_restored", "info")
    assert restored["seconds"] >= 0


def test_a_controller_that_was_removed_is_told_and_watched_no_more(controller: Controller) -> None:
    controller.becomes("")
    trio.run(controller.watch.run)
    assert controller.said == ["nvme_connection_lost"]
    assert controller.log.entries[0]["state"] == "gone"
