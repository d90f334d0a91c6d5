"""Serves the metrics: as much HTTP/1.0 as a scrape needs, with a bound on everything a client can ask of us."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

import trio
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .errors import KpollError, os_reason
from .listener import unix_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import CollectorRegistry
    from structlog.typing import FilteringBoundLogger

    from .config import MetricsConfig

HEAD_MAX: Final = 8192  # bytes of request line and headers
TIMEOUT_S: Final = 5.0  # for a whole exchange
CLIENTS_MAX: Final = 8


@contextlib.contextmanager
def open_metrics_sockets(config: MetricsConfig) -> Iterator[list[socket.socket]]:
    """Listen where `config` says, or nowhere; close the sockets on leaving.

    Raises KpollError when the address can't be had.
    """
    with contextlib.ExitStack() as stack:
        if config.path is not None:
            yield [stack.enter_context(unix_listener(config.path, option="--metrics-socket"))]
        elif config.tcp is not None:
            yield [stack.enter_context(sock) for sock in _tcp_listeners(*config.tcp)]
        else:
            yield []


def _tcp_listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on each address of `host`, one socket per address family. Raises KpollError."""
    where = f"--metrics {f'[{host}]' if ':' in host else host}:{port}"
    socks: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(CLIENTS_MAX)
    except OSError as error:
        for sock in socks:
            sock.close()
        raise KpollError(f"{where}: {os_reason(error)}; choose another address or port") from error
    return socks


async def serve_metrics(socks: list[socket.socket], registry: CollectorRegistry, log: FilteringBoundLogger) -> None:
    """Answer scrapes on `socks` until cancelled. A client's misbehaviour costs that client its answer."""
    limit = trio.CapacityLimiter(CLIENTS_MAX)
    async with trio.open_nursery() as nursery:
        for sock in socks:
            log.info("metrics_listening", socket=_name(sock))
            nursery.start_soon(_accept, trio.SocketListener(trio.socket.from_stdlib_socket(sock)), registry, limit)


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, str):
        return name
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


async def _accept(listener: trio.SocketListener, registry: CollectorRegistry, limit: trio.CapacityLimiter) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            # A place first, then a client: those beyond the limit wait in the kernel's backlog.
            owner = object()
            await limit.acquire_on_behalf_of(owner)
            stream = await _next(listener)
            nursery.start_soon(_answer, stream, registry, limit, owner)


async def _next(listener: trio.SocketListener) -> trio.SocketStream:
    while True:
        try:
            return await listener.accept()
        except OSError:  # out of descriptors: clients that leave give theirs back
            await trio.sleep(1)


async def _answer(
    stream: trio.SocketStream, registry: CollectorRegistry, limit: trio.CapacityLimiter, owner: object
) -> None:
    try:
        with trio.move_on_after(TIMEOUT_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await stream.send_all(_response(await _head(stream), registry))
                await stream.send_eof()
    finally:
        limit.release_on_behalf_of(owner)


async def _head(stream: trio.abc.ReceiveStream) -> bytes | None:
    """Read up to the empty line. Returns None when it doesn't come within HEAD_MAX bytes."""
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        piece = await stream.receive_some(HEAD_MAX)
        head += piece
        if not piece or len(head) > HEAD_MAX:
            return None
    return head


def _response(head: bytes | None, registry: CollectorRegistry) -> bytes:
    words = head.split(b"\n", 1)[0].split() if head else []
    if len(words) not in (2, 3):
        return _reply("400 Bad Request", b"bad request\n")
    method, target = words[0], words[1].split(b"?", 1)[0]
    if method not in (b"GET", b"HEAD"):
        return _reply("405 Method Not Allowed", b"only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
    if target not in (b"/metrics", b"/"):
        return _reply("404 Not Found", b"the metrics are at /metrics\n")
    reply = _reply("200 OK", generate_latest(registry), kind=CONTENT_TYPE_LATEST)
    return reply if method == b"GET" else reply[: reply.index(b"\r\n\r\n") + 4]


def _reply(status: str, body: bytes, *, kind: str = "text/plain; charset=utf-8", extra: str = "") -> bytes:
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body
