"""What a card's ports met is told once as long as it goes on, and again after it was gone for a while."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from kpoll.backend.net_errors import PortErrors


class Card:
    """Two ports that meet what the test says, and a clock that it sets."""

    def __init__(self) -> None:
        """Begin with nothing met."""
        self.now = 1000.0
        self.met = {"first": 0, "second": 0}
        self.log = LogCapture()
        log = structlog.wrap_logger(structlog.PrintLogger(), [self.log])
        self.errors = PortErrors(self.met, log, take=lambda port: self.met.pop(port, 0), clock=lambda: self.now)

    def told(self, **met: int) -> list[Any]:
        """Let ports meet errors, look, and return what was said of them."""
        self.met.update(met)
        self.log.entries.clear()
        self.errors.tell()
        assert all((line["event"], line["log_level"]) == ("port_error", "warning") for line in self.log.entries)
        return [(line["pair"], line["error"]) for line in self.log.entries]


@pytest.fixture
def card() -> Card:
    return Card()


def test_nothing_met_is_nothing_told(card: Card) -> None:
    assert card.told() == []


def test_an_error_is_told_with_its_queue_pair_in_words(card: Card) -> None:
    assert card.told(second=errno.EPERM) == [(1, os.strerror(errno.EPERM))]


def test_an_error_that_goes_on_is_told_once_however_long(card: Card) -> None:
    assert len(card.told(first=errno.EIO)) == 1
    for _ in range(10):
        card.now += 59
        assert card.told(first=errno.EIO) == []


def test_an_error_that_was_gone_for_a_minute_is_told_again(card: Card) -> None:
    card.told(first=errno.EIO)
    card.now += 30
    assert card.told() == []
    card.now += 31
    assert len(card.told(first=errno.EIO)) == 1


def test_another_error_or_another_pairs_is_news(card: Card) -> None:
    card.told(first=errno.EIO)
    assert card.told(first=errno.ECONNREFUSED, second=errno.EIO) == [
        (0, os.strerror(errno.ECONNREFUSED)),
        (1, os.strerror(errno.EIO)),
    ]


def test_the_port_that_took_anothers_place_is_looked_at(card: Card) -> None:
    card.errors.plugged(0, "third")
    assert card.told(first=errno.EIO, third=errno.EPERM) == [(0, os.strerror(errno.EPERM))]
