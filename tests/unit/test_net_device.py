"""A card's workers go on with another port, or say why they can't."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest
import structlog
import trio

from kpoll.backend.config import SocketConfig
from kpoll.backend.errors import KpollError
from kpoll.backend.net_device import open_device
from kpoll.backend.net_options import NetConfig, NullBackend
from kpoll.backend.net_ports import open_ports
from kpoll.backend.poll import PollConfig
from kpoll.vhost._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from kpoll.backend.net_device import NetDevice

CONFIG = NetConfig(
    socket=SocketConfig(path="/run/s"),
    poll=PollConfig(strategy="off", why="a test"),
    backend=NullBackend(),
    mac=bytes.fromhex("525400123456"),
)
LOG: FilteringBoundLogger = structlog.wrap_logger(
    structlog.PrintLogger(), [structlog.testing.LogCapture()], wrapper_class=structlog.make_filtering_bound_logger(0)
)


@pytest.fixture
def odd_port() -> Iterator[Any]:
    """Give a port whose descriptor has become one that can't be waited for, a file's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, tempfile.TemporaryFile() as file:
        out = ffi.new("struct net_port **")
        assert lib.net_port_udp(out, ours.fileno()) == 0
        os.dup2(file.fileno(), ours.fileno())
        yield out[0]
        lib.net_port_destroy(out[0])


def test_a_port_that_a_worker_cannot_wait_for_is_one_line_and_another_one_is_taken(odd_port: Any) -> None:
    async def play(device: NetDevice) -> None:
        [worker] = device.workers
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            try:
                with pytest.raises(
                    KpollError, match="--backend null: worker 0 can't take its port: Operation not permitted"
                ):
                    await device.plug((odd_port,))
                await device.plug(device.ports.handles)
            finally:
                worker.stop()

    with open_ports(CONFIG) as ports, open_device(CONFIG, ports, LOG) as device:
        trio.run(play, device)
