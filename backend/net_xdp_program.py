"""The XDP program that hands the frames of a card's queues to our sockets, and those of other queues to the host.

libxdp has one, too (xsk_setup_xdp_prog). But who attaches that has to detach it at the end, which takes what
the sandbox gave up; and nobody does after a SIGKILL. Ours hangs on a link (bpf_link_create), a descriptor: when it
is closed, however the daemon ended, the host has its interface back. The program is six instructions, so it is here.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from .errors import KpollError
from .net_libxdp import ffi

if TYPE_CHECKING:
    from .net_libxdp import XdpLibraries

_BPF_MAP_TYPE_XSKMAP: Final = 17
_BPF_PROG_TYPE_XDP: Final = 6
_BPF_XDP: Final = 37  # enum bpf_attach_type
_QUEUES: Final = 1024  # keys of the map: numbers of queues

PERMISSION: Final = (
    "permission denied: AF_XDP takes the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF; run kpoll as root, or "
    "with AmbientCapabilities= of systemd"
)


def _instructions(map_fd: int) -> Any:
    """Write `return bpf_redirect_map(&map, ctx->rx_queue_index, XDP_PASS)`."""
    return ffi.new(
        "struct bpf_insn[]",
        [
            (0x61, 0x12, 16, 0),  # r2 = *(u32 *)(r1 + offsetof(struct xdp_md, rx_queue_index))
            (0x18, 0x11, 0, map_fd),  # r1 = the map, by its descriptor (BPF_PSEUDO_MAP_FD) ...
            (0, 0, 0, 0),  # ... which is an instruction of two slots
            (0xB7, 0x03, 0, 2),  # r3 = XDP_PASS, for a queue that has no socket
            (0x85, 0x00, 0, 51),  # call bpf_redirect_map
            (0x95, 0x00, 0, 0),  # exit
        ],
    )


class XdpProgram:
    """The program, its map, and its link to an interface.

    Resource handling: `close` takes it off the interface, and forgets it.
    """

    def __init__(self, libraries: XdpLibraries, option: str) -> None:
        """Load it. Raises KpollError, which begins with `option`."""
        self._bpf = libraries.libbpf
        self._option = option
        self._link: int | None = None
        with ExitStack() as opened:
            self._map = self._made(
                self._bpf.bpf_map_create(_BPF_MAP_TYPE_XSKMAP, b"kpoll_xsk", 4, 4, _QUEUES, ffi.NULL)
            )
            opened.callback(os.close, self._map)
            code = _instructions(self._map)
            self._program = self._made(
                self._bpf.bpf_prog_load(_BPF_PROG_TYPE_XDP, b"kpoll_xsk", b"Apache-2.0", code, len(code), ffi.NULL)
            )
            opened.pop_all()

    def close(self) -> None:
        """Take it off its interface, and close all."""
        self.detach()
        os.close(self._program)
        os.close(self._map)

    def attach(self, interface: str, index: int) -> None:
        """Have it see the frames of an interface, natively where the driver can. Raises KpollError."""
        self.detach()  # from the one before, or from this one, where an earlier attempt got no further
        options = ffi.new("struct bpf_link_create_opts *", {"sz": ffi.sizeof("struct bpf_link_create_opts")})
        link = self._bpf.bpf_link_create(self._program, index, _BPF_XDP, options)
        if link < 0:
            raise KpollError(f"{self._option}: {_attach_reason(-link, interface)}")
        self._link = link

    def detach(self) -> None:
        """Take it off its interface, which may be gone."""
        if self._link is not None:
            os.close(self._link)
            self._link = None

    def direct(self, queue: int, sock: int) -> None:
        """Have the frames of a queue go to a bound AF_XDP socket. Raises KpollError."""
        key, value = ffi.new("uint32_t *", queue), ffi.new("int *", sock)
        self._made(self._bpf.bpf_map_update_elem(self._map, key, value, 0))

    def _made(self, result: int) -> int:
        if result >= 0:
            return result
        match -result:
            case errno.EPERM | errno.EACCES:
                what = PERMISSION
            case errno.ENOSYS:
                what = "this kernel has no bpf(2)"
            case other:
                what = f"its XDP program can't be made: {os.strerror(other)}"
        raise KpollError(f"{self._option}: {what}")


def _attach_reason(error: int, interface: str) -> str:
    match error:
        case errno.EPERM | errno.EACCES:
            return PERMISSION
        case errno.EBUSY | errno.EEXIST:
            return (
                f"{interface} has another XDP program: stop who put it there (another kpoll?), "
                f"or `ip link set dev {interface} xdp off`"
            )
        case errno.EOPNOTSUPP:
            return f"{interface} can't do XDP: use another interface, or --backend tap:NAME on a bridge"
        case errno.EINVAL | errno.ERANGE | errno.ENOSPC:
            return (
                f"{interface} can't do XDP as it is set up ({os.strerror(error)}): try a smaller MTU, "
                f"fewer queues (`ethtool -L {interface}`), no LRO"
            )
        case _:
            return f"an XDP program can't be attached to {interface}: {os.strerror(error)}"
