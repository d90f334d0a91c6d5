"""What the checks of the module need; they run inside the VM (test_module.py)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.kernel.watched import DEVICE, LONG, WAITERS, Memory, Waiter, Watched, busy_poll

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_busy_poll() -> Iterator[None]:
    """Leave busy_poll at the administrator's default, before and after."""
    busy_poll(0)
    yield
    busy_poll(0)


@pytest.fixture
def device() -> Iterator[int]:
    """/dev/eventfd_poll, open."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    with contextlib.suppress(OSError):
        os.close(fd)


@pytest.fixture
def watched(device: int) -> Iterator[Watched]:
    """Make an eventfd with its wrapper."""
    made = Watched(device)
    yield made
    made.close()


@pytest.fixture
def memory() -> Memory:
    """One page of memory."""
    return Memory()


@pytest.fixture(params=list(WAITERS))
def waiter(request: pytest.FixtureRequest, watched: Watched) -> Iterator[Waiter]:
    """Each way to wait for the wrapper in turn; epoll learns what is a socket when busy_poll is above 0."""
    busy_poll(LONG)
    made: Waiter = WAITERS[request.param](watched.fd)
    yield made
    made.close()
