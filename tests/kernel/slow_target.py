"""A target that is slow to answer: a process between a host and the real one, which passes their words on."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ICRESP = 128  # bytes, NVMe/TCP 1.0 §3.6.2.3: what a target says before it answers any command


@contextmanager
def slow_target(address: str, port: int, connection: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """Be at a port of one's own like the target at `port`, but answer no command on one connection until told to.

    Yields that port, and what tells it.

    Args:
        address: Of both.
        port: The target's.
        connection: Which one is slow, counted from 0.

    """
    ours, theirs = socket.socketpair()
    with ours, socket.create_server((address, 0)) as server:
        process = os.fork()
        if process == 0:
            _pass_on(server, theirs, (address, port), connection)
        theirs.close()
        try:
            yield server.getsockname()[1], lambda: ours.sendall(b"+")
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _pass_on(server: socket.socket, told: socket.socket, target: tuple[str, int], connection: int) -> NoReturn:
    """Be that process, until it is killed."""
    peers: dict[socket.socket, socket.socket] = {}
    count, slow, left = 0, None, _ICRESP  # bytes that the slow one may still say
    try:
        while True:
            watched = [each for each in peers if each is not slow or left > 0]
            ready, _, _ = select.select([server, told, *watched], [], [])
            for each in ready:
                if each is server:
                    host, at_target = server.accept()[0], socket.create_connection(target)
                    peers[host], peers[at_target] = at_target, host
                    slow = at_target if count == connection else slow
                    count += 1
                elif each is told:
                    told.recv(1)
                    slow = None
                elif each in peers:
                    data = each.recv(min(4096, left) if each is slow else 65536)
                    left -= len(data) if each is slow else 0
                    peer = peers[each]
                    if data:
                        peer.sendall(data)
                    else:
                        del peers[each], peers[peer]
                        each.close()
                        peer.close()
    finally:
        os._exit(1)
