"""The AF_XDP sockets behind `--backend xdp:IFACE[,queue=N]`: a card's queues, without the host's network stack.

Each queue pair has a queue of the interface, from N on: what arrives there is the guest's, all else the host's.
They are received whatever their address (promiscuous mode): the guest's isn't the interface's own.

One chunk of shared memory holds one frame, so frames are limited; multi-buffer frames aren't used.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from kpoll.kernel.busy_poll import set_busy_poll
from kpoll.vhost._core import ffi as core
from kpoll.vhost._core import lib

from .errors import KpollError, os_reason
from .net_busy_poll import BUDGET
from .net_libxdp import XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, XdpLibraries, ffi, load_libraries
from .net_xdp_program import PERMISSION, XdpProgram
from .sandbox import CAP_IPC_LOCK, CAP_NET_RAW, Kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .net_options import XdpBackend

MTU_MAX: Final = 3400
"""A chunk without the kernel's headroom (XDP_PACKET_HEADROOM), Ethernet's header, and a driver's tail."""

_HEADERS: Final = 18
"""Bytes of a frame beyond the MTU: Ethernet's header and one VLAN tag, as much as Linux lets through a bridge."""

KEPT: Final = Kept(frozenset({CAP_NET_RAW, CAP_IPC_LOCK}), xdp=True)
"""What the sandbox has to leave, so that the interface can be had again after it was deleted.

A hijacked daemon could open AF_XDP sockets on other interfaces with it, and send and receive there. Without it only a
restart would bring the card back. It keeps no CAP_NET_ADMIN and no CAP_BPF: the program is there already.
"""

_AF_XDP: Final = 44
_SOL_XDP: Final = 283
_XDP_OPTIONS: Final = 8
_XDP_OPTIONS_ZEROCOPY: Final = 1
_XDP_USE_NEED_WAKEUP: Final = 1 << 3

_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1
_PACKET_MREQ: Final = struct.Struct("iHH8x")  # struct packet_mreq

_SIOCGIFMTU: Final = 0x8921
_SIOCGIFHWADDR: Final = 0x8927
_SIOCGIFINDEX: Final = 0x8933
_IFREQ_INT: Final = struct.Struct("16si20x")
_IFREQ_FAMILY: Final = struct.Struct("16sH22x")
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772  # whose frames have an Ethernet header, too


class _Socket:
    """One bound socket with its memory and its rings, and the C port on it.

    Attributes:
        handle: A `struct net_port *`.
        parts: The `struct net_xdp *` that it was made of.
        fd: The socket.
        sock: The same, for its options.

    """

    def __init__(
        self,
        libraries: XdpLibraries,
        backend: XdpBackend,
        queue: int,
        mtu: int,
        busy_poll_us: int | None,
        stack: ExitStack,
    ) -> None:
        """Open it, to send nothing that `mtu` is too small for; `stack` closes it. Raises OSError, KpollError."""
        xdp = libraries.libxdp
        option = f"--backend {backend}"
        area = mmap.mmap(-1, lib.NET_XDP_UMEM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        stack.callback(area.close)
        pinned = ffi.from_buffer(area)
        stack.callback(ffi.release, pinned)
        rings: dict[str, Any] = {name: ffi.new("struct xsk_ring *") for name in ("rx", "tx", "fill", "completion")}
        stack.callback(rings.clear)  # they may not go before: libxdp finds in them what it has to unmap at the end
        umem, sock = ffi.new("struct xsk_umem **"), ffi.new("struct xsk_socket **")
        size = lib.NET_XDP_RING
        error = xdp.xsk_umem__create(
            umem,
            pinned,
            lib.NET_XDP_UMEM,
            rings["fill"],
            rings["completion"],
            ffi.new("struct xsk_umem_config *", [size, size, lib.NET_XDP_CHUNK, 0, 0]),
        )
        if error:
            raise KpollError(f"{option}: {_umem_reason(-error)}")
        stack.callback(xdp.xsk_umem__delete, umem[0])
        # Without flags for it the kernel takes zero-copy where the driver can, else copies.
        config = [size, size, XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, 0, _XDP_USE_NEED_WAKEUP]
        error = xdp.xsk_socket__create(
            sock,
            os.fsencode(backend.interface),
            queue,
            umem[0],
            rings["rx"],
            rings["tx"],
            ffi.new("struct xsk_socket_config *", config),
        )
        if error:
            raise KpollError(f"{option}: {_bind_reason(-error, backend.interface, queue)}")
        stack.callback(xdp.xsk_socket__delete, sock[0])
        self.fd = int(xdp.xsk_socket__fd(sock[0]))
        same = socket.socket(_AF_XDP, socket.SOCK_RAW, 0, fileno=os.dup(self.fd))
        self.sock = stack.enter_context(same)
        polled = set_busy_poll(self.sock, busy_poll_us, BUDGET)
        out = core.new("struct net_port **")
        with_ = core.new("struct net_xdp *", {"fd": self.fd, "umem": _address(pinned)})
        with_.busy_poll = polled.us > 0
        with_.frame_max = mtu + _HEADERS
        for name, ring in rings.items():
            part = getattr(with_, name)
            part.producer, part.consumer, part.flags = (
                core.cast("uint32_t *", int(ffi.cast("uintptr_t", at)))
                for at in (ring.producer, ring.consumer, ring.flags)
            )
            part.entries = _address(ring.ring)
        self.parts = with_
        if lib.net_port_xdp(out, with_):
            raise KpollError(f"{option}: out of memory")
        stack.callback(lib.net_port_destroy, out[0])
        self.handle = out[0]

    @property
    def zero_copy(self) -> bool:
        """Whether the card reads and writes our memory itself."""
        return bool(self.sock.getsockopt(_SOL_XDP, _XDP_OPTIONS) & _XDP_OPTIONS_ZEROCOPY)


def _address(at: Any) -> Any:
    """Hand a pointer from one cffi to the other."""
    return core.cast("void *", int(ffi.cast("uintptr_t", at)))


class Xdp:
    """An interface whose queues are ours. Made by `open_xdp`, which also closes it.

    Attributes:
        name: The interface's name.
        index: Its number when it was opened.
        mtu: What a frame can hold there, in bytes.
        sockets: One per queue pair.

    """

    def __init__(
        self, backend: XdpBackend, pairs: int, mtu: int | None, busy_poll_us: int | None, stack: ExitStack
    ) -> None:
        """Open all; `stack` closes it. Raises KpollError."""
        self.name = backend.interface
        self._option = f"--backend {backend}"
        self._backend = backend
        self._pairs = pairs
        self._busy_poll_us = busy_poll_us
        self._libraries = load_libraries(self._option)
        self._promiscuous = self._packet_socket()
        stack.callback(self._promiscuous.close)
        self._replaced: list[ExitStack] = []  # queues that a worker may still use
        self.index = self._find()
        self._check_ethernet()
        self.mtu = self._check_mtu(mtu)
        self._program = XdpProgram(self._libraries, self._option)
        stack.callback(self._program.close)
        self.sockets, self._opened = self._open(self.index)
        stack.callback(self._close)

    @property
    def handles(self) -> tuple[Any, ...]:
        """A `struct net_port *` for each queue pair."""
        return tuple(sock.handle for sock in self.sockets)

    @property
    def mode(self) -> str:
        """How frames cross: zero-copy or copy."""
        return "zero-copy" if all(sock.zero_copy for sock in self.sockets) else "copy"

    def _close(self) -> None:
        """Close the queues that are open now, not those of the beginning."""
        self._close_replaced()
        self._opened.close()

    def _close_replaced(self) -> None:
        while self._replaced:
            self._replaced.pop().close()

    @contextmanager
    def opened_again(self) -> Iterator[tuple[Any, ...]]:
        """Open the queues of an interface that was deleted and is back; gives the new handles.

        The old ones stay until the end of the block, for whoever still uses them; and if it fails, until one succeeds:
        the next one gives the same new handles, as nobody else can have these queues meanwhile. Raises KpollError.
        """
        index = self._find()
        self._check_ethernet()
        self._check_mtu(self.mtu)
        if not self._replaced or index != self.index:
            sockets, opened = self._open(index)
            self._replaced.append(self._opened)
            self.index, self.sockets, self._opened = index, sockets, opened
        yield self.handles
        self._close_replaced()

    def _open(self, index: int) -> tuple[list[_Socket], ExitStack]:
        """Open the queues of the interface that is there now, and has this number. Raises KpollError."""
        try:
            return self._open_queues(index)
        except OSError as error:
            raise KpollError(f"{self._option}: {self.name} can't be had: {os_reason(error)}") from error

    def _open_queues(self, index: int) -> tuple[list[_Socket], ExitStack]:
        with ExitStack() as opened:
            self._program.attach(self.name, index)
            sockets = []
            for queue in range(self._backend.queue, self._backend.queue + self._pairs):
                sockets.append(_Socket(self._libraries, self._backend, queue, self.mtu, self._busy_poll_us, opened))
                self._program.direct(queue, sockets[-1].fd)
            self._receive_all(index)
            return sockets, opened.pop_all()

    def _find(self) -> int:
        try:
            answer = fcntl.ioctl(self._promiscuous, _SIOCGIFINDEX, _IFREQ_INT.pack(os.fsencode(self.name), 0))
            return int(_IFREQ_INT.unpack(answer)[1])
        except OSError:
            raise KpollError(
                f"{self._option}: there is no interface {self.name} here; `ip link` lists those that there are"
            ) from None

    def _check_ethernet(self) -> None:
        """Check that what arrives there are frames: the kernel runs XDP on tunnels of IP packets as well."""
        try:
            request = _IFREQ_FAMILY.pack(os.fsencode(self.name), 0)
            answer = fcntl.ioctl(self._promiscuous, _SIOCGIFHWADDR, request)
        except OSError as error:
            raise KpollError(f"{self._option}: {self.name}: {os_reason(error)}") from error
        if _IFREQ_FAMILY.unpack(answer)[1] not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
            raise KpollError(f"{self._option}: {self.name} has no Ethernet: use an interface that carries its frames")

    def _check_mtu(self, asked: int | None) -> int:
        try:
            answer = fcntl.ioctl(self._promiscuous, _SIOCGIFMTU, _IFREQ_INT.pack(os.fsencode(self.name), 0))
        except OSError as error:
            raise KpollError(f"{self._option}: {self.name}: {os_reason(error)}") from error
        mtu = int(_IFREQ_INT.unpack(answer)[1])
        if mtu > MTU_MAX:
            raise KpollError(
                f"{self._option}: {self.name} has an MTU of {mtu}, and AF_XDP here takes {MTU_MAX} at most: "
                f"`ip link set dev {self.name} mtu 1500`"
            )
        if asked is not None and asked > mtu:
            raise KpollError(
                f"--mtu {asked}: {self.name} takes {mtu}: use that, or `ip link set dev {self.name} mtu {asked}`"
            )
        return mtu

    def _packet_socket(self) -> socket.socket:
        """Open the socket that keeps the interface promiscuous for as long as it is open, and by which we ask about it.

        It receives nothing itself. It stays open when the interface goes: the sandbox lets nobody open another one.
        """
        try:
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except OSError as error:
            what = PERMISSION if error.errno == errno.EPERM else os_reason(error)
            raise KpollError(f"{self._option}: {what}") from error

    def _receive_all(self, index: int) -> None:
        try:
            request = _PACKET_MREQ.pack(index, _PACKET_MR_PROMISC, 0)
            self._promiscuous.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except OSError as error:
            raise KpollError(f"{self._option}: {self.name} can't be made promiscuous: {os_reason(error)}") from error


def _umem_reason(error: int) -> str:
    match error:
        case errno.EPERM | errno.EACCES:
            return PERMISSION
        case errno.ENOBUFS | errno.ENOMEM:
            need = lib.NET_XDP_UMEM // 1024
            return (
                f"it takes {need} KiB of locked memory for each queue pair: raise RLIMIT_MEMLOCK (`ulimit -l`, "
                "LimitMEMLOCK= of systemd), or give kpoll the capability CAP_IPC_LOCK"
            )
        case errno.EAFNOSUPPORT:
            return "this kernel has no AF_XDP: use --backend tap:NAME"
        case _:
            return f"memory for its frames can't be had: {os.strerror(error)}"


def _bind_reason(error: int, interface: str, queue: int) -> str:
    match error:
        case errno.EPERM | errno.EACCES:
            return PERMISSION
        case errno.EINVAL:
            return (
                f"{interface} has no queue {queue}: give a smaller queue=N or --num-queue-pairs "
                f"(`ethtool -l {interface}` tells how many it has)"
            )
        case errno.EBUSY:
            return f"queue {queue} of {interface} is busy: stop the other process that has it, or use another queue=N"
        case errno.EOPNOTSUPP | errno.ENOPROTOOPT:
            return f"{interface} can't do AF_XDP: use another interface, or --backend tap:NAME on a bridge"
        case _:
            return f"queue {queue} of {interface} can't be had: {os.strerror(error)}"


@contextmanager
def open_xdp(backend: XdpBackend, *, pairs: int, mtu: int | None, busy_poll_us: int | None = None) -> Iterator[Xdp]:
    """Open the queues that `backend` names; on leaving, the interface is the host's again.

    Args:
        backend: The interface, and the first of its queues.
        pairs: How many queues.
        mtu: What the guest is to be told, or None.
        busy_poll_us: SO_BUSY_POLL of the sockets, or None: as the host has it.

    Raises KpollError with what to do when they can't be had.

    """
    with ExitStack() as stack:
        yield Xdp(backend, pairs, mtu, busy_poll_us, stack)
