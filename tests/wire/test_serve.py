"""The life of a connection as the daemon sees it."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
import trio.testing
from structlog.testing import LogCapture

from kpoll.vhost.frontend import Frontend
from kpoll.vhost.serve import AnySocket, serve_connection
from kpoll.vhost.vrings import VRINGS_MAX
from tests.wire.harness import RecordingDevice, add_ring_memory, resources, set_up

if TYPE_CHECKING:
    from kpoll.vhost.device import VringConfig

LOG = structlog.wrap_logger(
    structlog.PrintLogger(), [LogCapture()], wrapper_class=structlog.make_filtering_bound_logger(0)
)


Wrap = Callable[[socket.socket], AnySocket]


def as_it_is(sock: socket.socket) -> AnySocket:
    return sock


def as_stream(sock: socket.socket) -> AnySocket:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@pytest.mark.parametrize("wrap", [as_it_is, trio.socket.from_stdlib_socket, as_stream])
def test_a_cancelled_session_stops_its_rings_and_gives_everything_back(
    wrap: Wrap,
) -> None:
    """What SIGTERM does: the front-end is still there, and its rings run."""
    device = RecordingDevice()
    ours, theirs = socket.socketpair()

    def start() -> tuple[Frontend, int]:
        frontend = Frontend(ours)
        frontend.negotiate()
        set_up(frontend, add_ring_memory(frontend))
        return frontend, resources()[1]

    async def run() -> tuple[Frontend, int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_connection, wrap(theirs), device, LOG, conn_id=1))
            started = await trio.to_thread.run_sync(start)
            assert list(device.running) == [0]
            nursery.cancel_scope.cancel()
        return started

    frontend, mappings = trio.run(run)
    assert device.calls[-2:] == [("stop", 0), ("reset",)]
    assert resources()[1] == mappings - 1, "guest memory is no longer mapped here"
    assert frontend.sock.recv(1) == b"", "and the front-end has been left"
    frontend.close()


class SlowDevice(RecordingDevice):
    """Looks, while it still finishes a ring's requests, whether the front-end has been hung up on."""

    def __init__(self, peer: socket.socket) -> None:
        """Watch the front-end's socket."""
        super().__init__()
        self.peer = peer
        self.hung_up: list[bool] = []

    async def stop_vring(self, index: int) -> int:
        """Take a moment."""
        await trio.testing.wait_all_tasks_blocked()
        readable, _, _ = select.select([self.peer], [], [], 0)
        self.hung_up.append(bool(readable))
        return await super().stop_vring(index)


def test_a_front_end_is_hung_up_on_only_when_its_rings_are_at_rest() -> None:
    """QEMU reads used.idx at the hang-up and goes on from there; what were published later would be done twice."""
    ours, theirs = socket.socketpair()
    device = SlowDevice(ours)

    def start() -> Frontend:
        frontend = Frontend(ours)
        frontend.negotiate()
        set_up(frontend, add_ring_memory(frontend))
        return frontend

    async def run() -> Frontend:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_connection, theirs, device, LOG, conn_id=1))
            frontend = await trio.to_thread.run_sync(start)
            nursery.cancel_scope.cancel()
        return frontend

    frontend = trio.run(run)
    assert device.hung_up == [False]
    assert frontend.sock.recv(1) == b""
    frontend.close()


class BuggyDevice(RecordingDevice):
    """Raises what no front-end is to blame for."""

    async def start_vring(self, vring: VringConfig) -> None:
        """Fail."""
        raise ZeroDivisionError(vring.index)


def test_a_bug_in_a_device_is_not_taken_for_the_front_ends_fault() -> None:
    ours, theirs = socket.socketpair()

    def use() -> None:
        with Frontend(ours) as frontend:
            frontend.negotiate()
            set_up(frontend, add_ring_memory(frontend))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, theirs, BuggyDevice(), LOG, 1)
            await trio.to_thread.run_sync(use)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(run)
    assert caught.group_contains(ZeroDivisionError)
    ours.close()


@pytest.mark.parametrize("count", [0, VRINGS_MAX + 1])
def test_a_device_has_between_1_and_256_queues(count: int) -> None:
    device = RecordingDevice()
    device.num_queues = count
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ValueError, match="1 to 256 queues"):
        trio.run(serve_connection, theirs, device, LOG, 1)
    assert theirs.fileno() == -1, "the connection was ours to close"
