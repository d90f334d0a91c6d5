"""A vhost-user connection under trio: whole messages with their file descriptors, whatever the other side does.

Resource handling: every descriptor that arrives is owned by an `Fds` from the moment it is out of the ancillary data,
and closed by it unless somebody takes it. Room for ancillary data is what the kernel can send, more than the
specification allows: it would close a surplus itself, within our recvmsg(2), and may have to wait for that.
"""

from __future__ import annotations

import array
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import trio

from kpoll.vhost.descriptors import discard
from kpoll.vhost.messages import FDS_MAX, Header
from kpoll.vhost.payloads import MessageError

if TYPE_CHECKING:
    from types import TracebackType

SCM_MAX_FD = 253  # include/net/scm.h
ANCILLARY_SIZE = socket.CMSG_SPACE(SCM_MAX_FD * array.array("i").itemsize)


class Fds:
    """File descriptors that came with a message: closed at the end of the `with`, unless taken.

    Attributes:
        truncated: There were more, which the kernel threw away (too many, or this process is out of descriptors).

    """

    def __init__(self) -> None:
        """Begin with none."""
        self._fds: list[int] = []
        self.truncated = False

    def __len__(self) -> int:
        """How many are left to take."""
        return len(self._fds)

    def count(self) -> int:
        """How many came with the message. Raises MessageError when some were lost."""
        if self.truncated:
            raise MessageError("file descriptors lost: too many, or this process can have no more")
        return len(self._fds)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what nobody took."""
        self.close()

    def close(self) -> None:
        """Close what nobody took. May be called twice."""
        while self._fds:
            discard(self._fds.pop())

    def add(self, fd: int) -> None:
        """Become the owner of a descriptor."""
        self._fds.append(fd)

    def take(self) -> int:
        """Hand the next descriptor over, in the order of arrival. Who takes it closes it.

        Raises:
            MessageError: There is none, though the message needs one.

        """
        if not self._fds:
            raise MessageError("file descriptor missing")
        return self._fds.pop(0)

    def collect(self, ancillary: list[tuple[int, int, bytes]], *, truncated: bool) -> None:
        """Become the owner of all descriptors in what recvmsg(2) returned beside the data.

        A message can come in many pieces, each with descriptors: those beyond FDS_MAX are closed at once.
        """
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        self.truncated |= truncated or len(self._fds) > FDS_MAX
        while len(self._fds) > FDS_MAX:
            discard(self._fds.pop())


@dataclass(frozen=True)
class Received:
    """A message off the wire, unparsed. Close `fds` (it is a context manager)."""

    header: Header
    payload: bytes
    fds: Fds


class Connection:
    """One end of a vhost-user socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        """Take over a connected stream socket; `close` closes it."""
        self._socket = sock

    def close(self) -> None:
        """Hang up. May be called twice.

        The other side sees it at once; what it sent and nobody read (descriptors, too) goes with the socket, unwaited.
        """
        if self._socket.fileno() < 0:
            return
        with suppress(OSError):  # it has hung up already
            self._socket.shutdown(socket.SHUT_RDWR)
        trio.lowlevel.notify_closing(self._socket.fileno())
        discard(self._socket.detach())

    async def receive(self) -> Received | None:
        """Receive the next message.

        Returns:
            The message, or None when the other side has hung up between two messages.

        Raises:
            MessageError: Fatal: no vhost-user header, or hung up within a message.
            OSError: The connection broke.

        """
        fds = Fds()
        try:
            start = await self._receive_exactly(Header.LAYOUT.size, fds)
            if not start:
                fds.close()
                return None
            header = Header.unpack(start)
            payload = await self._receive_exactly(header.size, fds, may_end=False)
        except BaseException:
            fds.close()
            raise
        return Received(header, payload, fds)

    async def _receive_exactly(self, size: int, fds: Fds, *, may_end: bool = True) -> bytes:
        """Read `size` bytes, or none when the other side has hung up; descriptors may come with any of them."""
        data = b""
        while len(data) < size:
            piece, ancillary, flags, _ = await self._socket.recvmsg(
                size - len(data), ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
            fds.collect(ancillary, truncated=bool(flags & socket.MSG_CTRUNC))
            if not piece and may_end and not data:
                return b""
            if not piece:
                raise MessageError(f"hung up after {len(data)} of {size} bytes", fatal=True)
            data += piece
        return data

    async def send(self, data: bytes) -> None:
        """Send a whole message.

        Raises:
            OSError: The other side has left.

        """
        while data:
            data = data[await self._socket.send(data, socket.MSG_NOSIGNAL) :]
