"""What arrives on the socket in pieces, in heaps, cut off, or with descriptors that nobody asked for."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from kpoll.vhost.connection import Connection
from kpoll.vhost.descriptors import discard, wait_discarded
from kpoll.vhost.features import ProtocolFeature
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.messages import Header, Request, pack_request
from kpoll.vhost.payloads import U64, Empty, MemoryRegion, MemoryRegions, VringFd
from tests.wire.harness import Backend, resources

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GET_QUEUE_NUM = pack_request(Request.GET_QUEUE_NUM, Empty())


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())])


def test_a_message_may_come_byte_by_byte(backend: Backend) -> None:
    with backend.frontend() as frontend:
        for byte in pack_request(Request.SET_FEATURES, U64(0)) + GET_QUEUE_NUM:
            frontend.send(bytes([byte]))
        assert frontend.receive()[1] == U64(2).pack()


def test_many_messages_may_come_at_once(backend: Backend) -> None:
    with backend.frontend() as frontend:
        frontend.send(GET_QUEUE_NUM * 100)
        assert [frontend.receive()[1] for _ in range(100)] == [U64(2).pack()] * 100


def test_a_descriptor_may_come_with_the_payload_instead_of_the_header(backend: Backend, eventfd: int) -> None:
    with backend.negotiated() as frontend:
        message = pack_request(Request.SET_VRING_CALL, VringFd(0, has_fd=True), need_reply=True)
        frontend.send(message[: Header.LAYOUT.size])
        send_fds(frontend.sock, message[Header.LAYOUT.size :], [eventfd])
        assert frontend.receive()[1] == U64(0).pack()


def test_a_descriptor_that_nobody_asked_for_is_closed(backend: Backend, eventfd: int) -> None:
    with backend.negotiated() as frontend:
        held = resources()
        send_fds(frontend.sock, pack_request(Request.SET_OWNER, Empty(), need_reply=True), [eventfd])
        assert frontend.receive()[1] == U64(1).pack()
        assert resources() == held


@pytest.mark.parametrize("count", [2, 8, 9, 64])
def test_surplus_descriptors_are_closed(backend: Backend, eventfd: int, count: int) -> None:
    with backend.negotiated() as frontend:
        held = resources()
        message = pack_request(Request.SET_VRING_CALL, VringFd(0, has_fd=True), need_reply=True)
        send_fds(frontend.sock, message, [eventfd] * count)
        assert frontend.receive()[1] == U64(1).pack()
        assert resources() == held


def test_descriptors_dribbled_in_with_every_byte_do_not_pile_up(backend: Backend, eventfd: int) -> None:
    with backend.negotiated() as frontend:
        held = resources()
        *most, last = pack_request(
            Request.SET_MEM_TABLE, MemoryRegions((MemoryRegion(0, 4096, 0, 0),)), need_reply=True
        )
        for byte in most:
            send_fds(frontend.sock, bytes([byte]), [eventfd] * 8)
        # All but the last byte has been read once the socket's buffer is empty: descriptors wait with the data.
        frontend.send(bytes([last]))
        assert frontend.receive()[1] == U64(1).pack()
        assert resources() == held


def test_a_missing_descriptor_fails_the_request(backend: Backend) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        frontend.request(Request.SET_VRING_CALL, VringFd(0, has_fd=True))


def test_a_descriptor_beside_the_invalid_fd_flag_fails_the_request(backend: Backend, eventfd: int) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        frontend.request(Request.SET_VRING_CALL, VringFd(0, has_fd=False), [eventfd])


@pytest.mark.parametrize(
    "garbage",
    [
        Header(Request.GET_FEATURES, 0, 0).pack(),
        Header(Request.GET_FEATURES, 2, 0).pack(),
        Header(Request.SET_MEM_TABLE, 1, 0xFFFFFFFF).pack(),
        Header(Request.GET_CONFIG, 1, 4097).pack(),
        Header(Request.GET_FEATURES, 0x5, 0).pack(),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(4096),
    ],
    ids=["version 0", "version 2", "4 GiB", "a byte too long", "a reply", "another protocol", "zeros"],
)
def test_garbage_ends_the_session_and_nothing_else(backend: Backend, eventfd: int, garbage: bytes) -> None:
    with backend.socket() as sock:
        send_fds(sock, garbage, [eventfd])
        with pytest.raises((FrontendError, ConnectionError)):
            Frontend(sock)
    [line] = backend.events("frontend_disconnected")
    assert line["log_level"] == "warning"
    assert line["error"]
    with backend.frontend() as frontend:
        assert frontend.get_u64(Request.GET_QUEUE_NUM) == 2, "the next one is served"


@pytest.mark.parametrize("length", [1, 11, 12, 15, 20])
def test_a_front_end_may_leave_in_the_middle_of_a_message(backend: Backend, eventfd: int, length: int) -> None:
    message = pack_request(Request.SET_VRING_CALL, VringFd(0, has_fd=True))
    assert len(message) == 20
    with backend.socket() as sock:
        send_fds(sock, message[:length], [eventfd])
    assert len(backend.events("frontend_disconnected")) == 1


def test_a_front_end_may_leave_without_waiting_for_its_answers(backend: Backend) -> None:
    with backend.socket() as sock:
        sock.sendall(GET_QUEUE_NUM * 1000)
    assert len(backend.events("frontend_disconnected")) == 1


@pytest.mark.parametrize("size", [0, 4, 7, 9, 100, 4096])
@pytest.mark.parametrize(
    "request_", [Request.SET_FEATURES, Request.SET_VRING_ADDR, Request.ADD_MEM_REG, Request.GET_CONFIG]
)
def test_a_payload_of_the_wrong_size_fails_its_request(backend: Backend, request_: Request, size: int) -> None:
    with backend.negotiated(~ProtocolFeature.STATUS) as frontend:
        frontend.send(Header(request_, 0x1 | 0x8, size).pack() + b"\xff" * size)
        if request_ == Request.GET_CONFIG:  # has a reply, so there is no way to say that it failed
            with pytest.raises(FrontendError, match="hung up"):
                frontend.receive()
        else:
            assert frontend.receive()[1] == U64(1).pack()
            assert frontend.queue_num() == 2


def test_one_failed_request_is_one_line_in_the_log(backend: Backend) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError):
        frontend.request(Request.SET_FEATURES, U64(1 << 63))
    [line] = backend.events("request_failed")
    assert (line["request"], line["conn"], line["log_level"]) == ("SET_FEATURES", 1, "warning")
    assert "0x8000000000000000" in line["error"]


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """Give a TCP socket whose last close(2) waits until the peer has read all, or has gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with peer:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
            yield sock


def inside_a_socket(fd: int) -> int:
    """Give a unix socket with a descriptor in its queue."""
    ours, theirs = socket.socketpair()
    with ours:
        send_fds(ours, b".", [fd])
    return theirs.detach()


SET_OWNER = pack_request(Request.SET_OWNER, Empty(), need_reply=True)
SET_CALL = pack_request(Request.SET_VRING_CALL, VringFd(0, has_fd=True), need_reply=True)
SET_CHANNEL = pack_request(Request.SET_BACKEND_REQ_FD, Empty(), need_reply=True)


@pytest.mark.parametrize(
    ("message", "count", "inside"),
    [
        (SET_OWNER, 1, False),
        (SET_OWNER, 20, False),
        (SET_OWNER, 1, True),
        (SET_CALL, 1, False),
        (SET_CHANNEL, 1, False),
    ],
    ids=["surplus", "far too many", "inside a socket", "doorbell", "channel"],
)
def test_a_descriptor_that_takes_long_to_close_holds_nobody_up(
    backend: Backend, message: bytes, count: int, inside: bool
) -> None:
    with backend.negotiated() as frontend, lingering() as sock:
        fd = inside_a_socket(sock.fileno()) if inside else os.dup(sock.fileno())
        sock.close()
        send_fds(frontend.sock, message, [fd] * count)
        discard(fd)  # not close: ours may be the last one already
        assert frontend.receive()[1] == U64(1).pack()
        assert frontend.queue_num() == 2


def test_hanging_up_does_not_wait_for_what_nobody_read() -> None:
    async def hang_up(sock: socket.socket) -> None:
        Connection(trio.socket.from_stdlib_socket(sock)).close()

    ours, theirs = socket.socketpair()
    with ours:
        with lingering() as sock:
            send_fds(ours, b".", [sock.fileno()])
            sock.close()
            trio.run(hang_up, theirs)
            assert select.select([ours], [], [], 0)[0], "the other side sees it at once"
            assert not wait_discarded(0), "though the closing still goes on"
        assert wait_discarded(10)
