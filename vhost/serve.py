"""One front-end over one socket: receive, handle, answer, until it leaves or has to go."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from kpoll.vhost.connection import Connection
from kpoll.vhost.payloads import MessageError
from kpoll.vhost.session import Session, SessionEndedError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.device import Device

AnySocket = socket.socket | trio.socket.SocketType | trio.SocketStream


def _trio_socket(sock: AnySocket) -> trio.socket.SocketType:
    if isinstance(sock, trio.SocketStream):
        return sock.socket
    if isinstance(sock, socket.socket):
        return trio.socket.from_stdlib_socket(sock)
    return sock


async def serve_connection(sock: AnySocket, device: Device, log: FilteringBoundLogger, conn_id: int | str) -> None:
    """Serve one front-end until it leaves.

    Whatever the front-end does, this returns, with one line in the log; only bugs of ours and cancellation raise.

    Args:
        sock: A connected unix stream socket; closed in the end.
        device: What to serve; it must serve nobody else meanwhile.
        log: Bound to the device; `conn` is added here.
        conn_id: What to call this connection in the log.

    Resource handling: when this returns or raises, every vring has been stopped, guest memory unmapped and every
    descriptor that came from the front-end closed.

    """
    log = log.bind(conn=conn_id)
    connection = Connection(_trio_socket(sock))
    try:
        session = Session(device, log)
    except BaseException:
        connection.close()
        raise
    log.info("frontend_connected")
    reason = None
    try:
        while (received := await connection.receive()) is not None:
            await connection.send(await session.handle(received))
    except (MessageError, SessionEndedError, OSError) as e:
        reason = str(e)
    finally:
        # Hanging up is what a front-end waits for: QEMU then takes the position from used.idx in guest memory, so
        # nothing may be popped or published any more by that time.
        try:
            await session.close()
        finally:
            connection.close()
    if reason is None:
        log.info("frontend_disconnected")
    else:
        log.warning("frontend_disconnected", error=reason)
