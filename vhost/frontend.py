"""The front-end side of vhost-user: what QEMU is to a back-end, for the benchmark and the tests.

Deliberately synchronous: blocking sockets with a timeout, one request at a time, as QEMU does it. Those who use it
run it in a thread or process of their own, so that a back-end under test never shares an event loop with it. It works
with any back-end, ours or another's, and acknowledges only what the back-end offers.

It speaks the protocol and shares memory; it drives no rings. `Memory` gives the raw bytes and their three addresses
(offset, guest physical, front-end virtual), so that `kpoll.vhost.driver`, or a test that wants to be hostile, can.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kpoll.vhost._core import ffi
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.messages import FLAG_REPLY, RULES, VERSION, BackendRequest, Header, Request, pack_request
from kpoll.vhost.payloads import (
    U64,
    Config,
    Empty,
    MemoryRegion,
    MemoryRegions,
    Payload,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

TIMEOUT_S = 10.0
GPA_START = 0x4000_0000
GPA_STEP = 0x1000_0000


class FrontendError(Exception):
    """The back-end answered with a failure, something else than was asked for, or not at all."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Shared memory that the back-end can see.

    Attributes:
        mmap: The bytes, ours to read and write.
        fd: The memfd behind them.
        gpa: Guest physical address of the first byte: what descriptors speak of.
        uva: Our virtual address of it: what ring addresses speak of.
        size: Bytes.

    """

    mmap: mmap.mmap
    fd: int
    gpa: int
    uva: int
    size: int

    @property
    def region(self) -> MemoryRegion:
        """What the back-end is told of it."""
        return MemoryRegion(guest_address=self.gpa, size=self.size, user_address=self.uva, mmap_offset=0)


@dataclass(frozen=True, eq=False)
class Vring:
    """A vring's doorbells: non-blocking eventfds. Poll them before you read them.

    Attributes:
        index: The vring's number.
        kick_fd: Write 8 bytes to notify the back-end.
        call_fd: Readable when the back-end has used buffers.
        err_fd: Readable when the back-end gave the vring up.

    """

    index: int
    kick_fd: int
    call_fd: int
    err_fd: int

    def kick(self) -> None:
        """Notify the back-end."""
        os.eventfd_write(self.kick_fd, 1)

    def wait_call(self, timeout: float = TIMEOUT_S) -> bool:
        """Wait until the back-end calls, at most `timeout` seconds, and consume the call. False: it didn't."""
        return _consume(self.call_fd, timeout)

    def wait_err(self, timeout: float = TIMEOUT_S) -> bool:
        """Wait until the back-end reports an error on this vring. False: it didn't within `timeout` seconds."""
        return _consume(self.err_fd, timeout)


def _consume(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        return False
    os.eventfd_read(fd)
    return True


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class Frontend:
    """A vhost-user front-end, connected and owner of its session.

    Attributes:
        features: Virtio feature bits on offer, with VHOST_USER_F_PROTOCOL_FEATURES.
        protocol_features: Protocol feature bits on offer.
        acked_features: What `negotiate` settled on.
        acked_protocol_features: Likewise.
        memory: What has been shared so far.

    """

    def __init__(self, where: str | Path | socket.socket, timeout: float = TIMEOUT_S) -> None:
        """Connect, take ownership, and ask what is on offer.

        Args:
            where: Path of the back-end's listening socket, or a socket that is connected already (then ours).
            timeout: Seconds that any answer may take.

        Raises:
            OSError: Nobody listens.
            FrontendError: The back-end is no vhost-user back-end.

        """
        if isinstance(where, socket.socket):
            self._socket = where
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout)
            try:
                self._socket.connect(str(where))
            except OSError:
                self._socket.close()
                raise
        self._socket.settimeout(timeout)
        self._channel: socket.socket | None = None
        self._answered = False
        self._vrings: dict[int, Vring] = {}
        self.memory: list[Memory] = []
        self.acked_features = 0
        self.acked_protocol_features = 0
        self.protocol_features = 0
        try:
            self.features = self.get_u64(Request.GET_FEATURES)
            if self.features & VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES:
                self.protocol_features = self.get_u64(Request.GET_PROTOCOL_FEATURES)
            self.request(Request.SET_OWNER)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the back-end."""
        self.close()

    def close(self) -> None:
        """Leave the back-end and give everything back. May be called twice."""
        self._socket.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for vring in self._vrings.values():
            for fd in (vring.kick_fd, vring.call_fd, vring.err_fd):
                os.close(fd)
        self._vrings.clear()
        for memory in self.memory:
            os.close(memory.fd)
        self.memory.clear()

    @property
    def sock(self) -> socket.socket:
        """The connection, for those who ask for the peer's credentials or want to misbehave."""
        return self._socket

    # The exchange of messages.

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send raw bytes, with descriptors alongside."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        sent = self._socket.sendmsg([data], ancillary)
        if sent < len(data):  # an empty send would tell of a peer that has read all and left
            self._socket.sendall(data[sent:])

    def receive(self) -> tuple[Header, bytes]:
        """Receive one message.

        Raises:
            FrontendError: The back-end hung up or takes longer than the timeout.

        """
        header = Header.unpack(self._receive_exactly(self._socket, Header.LAYOUT.size))
        return header, self._receive_exactly(self._socket, header.size)

    def _receive_exactly(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = sock.recv(size - len(data))
            except TimeoutError as e:
                raise FrontendError("the back-end does not answer") from e
            except ConnectionError as e:
                raise FrontendError(self._hung_up()) from e
            if not piece:
                raise FrontendError(self._hung_up())
            data += piece
            self._answered = True
        return data

    def _hung_up(self) -> str:
        return "the back-end hung up" + ("" if self._answered else "; does it serve another front-end already?")

    def request(self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()) -> bytes:
        """Send a request and wait for what the specification promises: its reply, or the REPLY_ACK.

        Args:
            request: Which.
            payload: What it carries; nothing if None.
            fds: Descriptors that go with it; they stay ours.

        Returns:
            The reply's payload; empty for a request without one.

        Raises:
            FrontendError: The back-end acknowledged with a failure, answered to something else, or left.

        """
        replies = RULES[request].replies is not None
        ack = not replies and bool(self.acked_protocol_features & ProtocolFeature.REPLY_ACK)
        try:
            self.send(pack_request(request, payload or Empty(), need_reply=ack), fds)
        except ConnectionError as e:
            raise FrontendError(f"{request.name}: {self._hung_up()}") from e
        if not replies and not ack:
            return b""
        header, data = self.receive()
        if header.request != request or not header.is_reply:
            raise FrontendError(f"{request.name} was answered with {header}")
        if ack:
            if U64.unpack(data).value:
                raise FrontendError(f"{request.name} failed: {U64.unpack(data).value}")
            return b""
        return data

    def get_u64(self, request: Request) -> int:
        """Send a request that is answered with a number."""
        return U64.unpack(self.request(request)).value

    # Negotiation.

    def negotiate(
        self,
        features: int = VirtioFeature.VIRTIO_F_VERSION_1,
        protocol_features: int = ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.CONFIG
        | ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ) -> None:
        """Acknowledge what is both wanted and on offer; see `acked_features` for the outcome.

        Args:
            features: Virtio feature bits wanted. VHOST_USER_F_PROTOCOL_FEATURES follows from the offer.
            protocol_features: Protocol feature bits wanted; 0 negotiates no protocol features at all.

        """
        wanted = features | (VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES if protocol_features else 0)
        self.acked_features = wanted & self.features
        if self.acked_features & VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES:
            acked = protocol_features & self.protocol_features
            self.request(Request.SET_PROTOCOL_FEATURES, U64(acked))
            self.acked_protocol_features = acked
        self.request(Request.SET_FEATURES, U64(self.acked_features))

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self.acked_protocol_features & feature)

    def queue_num(self) -> int:
        """How many vrings the back-end has (GET_QUEUE_NUM; 1 for a back-end without MQ)."""
        return self.get_u64(Request.GET_QUEUE_NUM) if self._has(ProtocolFeature.MQ) else 1

    # Memory.

    def add_memory(self, size: int, gpa: int | None = None) -> Memory:
        """Make shared memory and show it to the back-end.

        Args:
            size: Bytes; need be no multiple of a page.
            gpa: Its guest physical address; by default a free one.

        """
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        shared = mmap.mmap(fd, size)
        uva = int(ffi.cast("uintptr_t", ffi.from_buffer(shared)))
        if gpa is None:
            ends = [memory.gpa + memory.size for memory in self.memory]
            gpa = GPA_START if not ends else (max(ends) + GPA_STEP) // GPA_STEP * GPA_STEP
        memory = Memory(shared, fd, gpa, uva, size)
        self.memory.append(memory)
        if self._has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.request(Request.ADD_MEM_REG, SingleMemoryRegion(memory.region), [fd])
        else:
            self.set_mem_table()
        return memory

    def set_mem_table(self) -> None:
        """Show all memory (at most 8 regions) in one SET_MEM_TABLE."""
        regions = MemoryRegions(tuple(memory.region for memory in self.memory))
        self.request(Request.SET_MEM_TABLE, regions, [memory.fd for memory in self.memory])

    def remove_memory(self, memory: Memory) -> None:
        """Take memory away from the back-end again. Our own mapping stays as long as somebody holds it."""
        self.memory.remove(memory)
        if self._has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.request(Request.REM_MEM_REG, SingleMemoryRegion(memory.region))
        else:
            self.set_mem_table()
        os.close(memory.fd)

    # Vrings.

    def setup_vring(self, index: int, size: int, desc: int, avail: int, used: int, base: int = 0) -> Vring:
        """Set a vring up, doorbells included; it runs once it is enabled.

        Args:
            index: Its number.
            size: Entries.
            desc: Front-end virtual address of the descriptor area.
            avail: The same of the driver area.
            used: The same of the device area.
            base: Where the back-end begins: 0 for new split rings, 0x80008000 for new packed ones.

        """
        vring = Vring(index, _eventfd(), _eventfd(), _eventfd())
        self._forget(index)
        self._vrings[index] = vring
        self.request(Request.SET_VRING_NUM, VringState(index, size))
        self.request(Request.SET_VRING_BASE, VringState(index, base))
        self.request(Request.SET_VRING_ADDR, VringAddr(index, 0, desc, used, avail, 0))
        self.request(Request.SET_VRING_CALL, VringFd(index, has_fd=True), [vring.call_fd])
        self.request(Request.SET_VRING_ERR, VringFd(index, has_fd=True), [vring.err_fd])
        self.request(Request.SET_VRING_KICK, VringFd(index, has_fd=True), [vring.kick_fd])
        return vring

    def _forget(self, index: int) -> None:
        old = self._vrings.pop(index, None)
        if old is not None:
            for fd in (old.kick_fd, old.call_fd, old.err_fd):
                os.close(fd)

    def enable(self, index: int, *, on: bool = True) -> None:
        """Enable or disable a vring, if that was negotiated; else rings are enabled from the start."""
        if self.acked_features & VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES:
            self.request(Request.SET_VRING_ENABLE, VringState(index, int(on)))

    def get_vring_base(self, index: int) -> int:
        """Stop a vring; nothing is in flight any more when this returns. Gives where to go on."""
        return VringState.unpack(self.request(Request.GET_VRING_BASE, VringState(index, 0))).num

    # Configuration space and the back-end's own requests.

    def get_config(self, offset: int, size: int) -> bytes:
        """Read `size` bytes of configuration space.

        Raises:
            ValueError: No bytes are wanted: the empty answer would look like an error.
            FrontendError: The back-end signalled an error, or gave another number of bytes.

        """
        if size == 0:
            raise ValueError("GET_CONFIG of 0 bytes")
        data = self.request(Request.GET_CONFIG, Config(offset, size, 0, bytes(size)))
        if not data:
            raise FrontendError("GET_CONFIG failed")
        config = Config.unpack(data)
        if len(config.data) != size:
            raise FrontendError(f"GET_CONFIG of {size} bytes was answered with {len(config.data)}")
        return config.data

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write configuration space, as the guest would."""
        self.request(Request.SET_CONFIG, Config(offset, len(data), flags, data))

    def open_backend_channel(self) -> None:
        """Give the back-end the channel on which it may send requests of its own (needs BACKEND_REQ)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(self._socket.gettimeout())
        with theirs:
            try:
                self.request(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        self._channel = ours

    def next_backend_request(self) -> BackendRequest:
        """Wait for the back-end's next request (CONFIG_CHANGE_MSG …) and acknowledge it if it wants that.

        Raises:
            FrontendError: There is no channel, or none came within the timeout.

        """
        if self._channel is None:
            raise FrontendError("there is no back-end channel")
        header = Header.unpack(self._receive_exactly(self._channel, Header.LAYOUT.size))
        self._receive_exactly(self._channel, header.size)
        if header.need_reply:
            ack = struct.pack("=Q", 0)
            self._channel.sendall(Header(header.request, VERSION | FLAG_REPLY, len(ack)).pack() + ack)
        return BackendRequest(header.request)
