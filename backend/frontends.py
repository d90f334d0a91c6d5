"""One front-end after the other: accept, serve, accept again.

A disk has one owner. A second front-end is refused at once, with a line in the log, as qemu-storage-daemon does: one
that waited in silence would leave its QEMU hanging without a word. The exception is a front-end that comes while the
last one's requests are still being finished, such as a QEMU that was restarted quickly: that one waits its turn.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

import trio

from kpoll.vhost.serve import serve_connection

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.device import Device

    from .listener import FrontSocket

_RETRY_S: Final = 1.0  # after accept(2) failed, for want of descriptors or memory


def _has_left(sock: trio.socket.SocketType) -> bool:
    """Whether the other side has hung up, though we may still be busy with what it left."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class _Turn:
    """The front-end being served, if any, and the one that waits for it to be gone."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.current: trio.socket.SocketType | None = None
        self.waiting = False

    def free(self) -> bool:
        """Whether a front-end that comes now is served, at once or as soon as the last one is cleared away."""
        return not self.waiting and (self.current is None or _has_left(self.current))


async def serve_front_ends(front: FrontSocket, device: Device, log: FilteringBoundLogger) -> None:
    """Serve those who come through `front`: in turn and for ever if it listens, else the one it is connected to."""
    log = log.bind(socket=front.name)
    sock = trio.socket.from_stdlib_socket(front.sock)
    if not front.listening:
        await serve_connection(sock, device, log, 1)
        return
    log.info("listening")
    turn = _Turn()
    conn = 0
    async with trio.open_nursery() as nursery:
        while True:
            try:
                peer, _ = await sock.accept()
            except OSError as error:
                log.warning("accept_failed", error=str(error))
                await trio.sleep(_RETRY_S)
                continue
            conn += 1
            if turn.free():
                turn.waiting = True
                nursery.start_soon(_serve, peer, device, log, conn, turn)
            else:
                peer.close()
                log.warning("frontend_refused", conn=conn, error="another front-end is connected")


async def _serve(
    peer: trio.socket.SocketType, device: Device, log: FilteringBoundLogger, conn: int, turn: _Turn
) -> None:
    with peer:
        async with turn.lock:
            turn.waiting = False
            turn.current = peer
            try:
                await serve_connection(peer, device, log, conn)
            finally:
                turn.current = None
