"""What `kpoll doctor` says of network cards: taps and AF_XDP."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from .doctor import Finding
from .errors import KpollError
from .net_libxdp import load_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TUN: Final = "/dev/net/tun"
_AF_XDP: Final = 44
_LIBRARIES: Final = {"libxdp": ("libxdp.so.1", "libxdp1"), "libbpf": ("libbpf.so.1", "libbpf1")}

_finding = partial(Finding, area="cards")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What there is for cards.

    Attributes:
        tun: 0 if taps can be had from /dev/net/tun; else the errno.
        xdp: 0 if an AF_XDP socket can be had; else the errno.
        libraries: Which of libxdp and libbpf can be loaded.

    """

    tun: int = errno.ENOENT
    xdp: int = errno.EAFNOSUPPORT
    libraries: frozenset[str] = frozenset()


def probe_cards() -> CardFacts:
    """Open what there is, and close it."""

    def tun() -> None:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))

    def xdp() -> None:
        socket.socket(_AF_XDP, socket.SOCK_RAW).close()

    return CardFacts(tun=_fails(tun), xdp=_fails(xdp), libraries=frozenset(filter(_loads, _LIBRARIES)))


def _fails(action: Callable[[], None]) -> int:
    """Return 0, or the errno."""
    try:
        action()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _loads(library: str) -> bool:
    try:
        load_library(*_LIBRARIES[library], "kpoll doctor")
    except KpollError:
        return False
    return True


def cards(facts: CardFacts) -> Iterator[Finding]:
    """Yield what is found."""
    yield _tun(facts.tun)
    yield _xdp(facts.xdp)
    for library, (soname, package) in _LIBRARIES.items():
        if library in facts.libraries:
            yield _finding(name=library, state="good", found=f"{soname} can be loaded")
        else:
            found = f"{soname} isn't installed; only xdp: takes it"
            yield _finding(name=library, state="missing", found=found, change=f"`apt install {package}`")


def _tun(error: int) -> Finding:
    name = "taps"
    if error == 0:
        return _finding(name=name, state="good", found=f"{_TUN} can be opened")
    if error in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        found, change = f"there is no {_TUN}", "`modprobe tun`; a container takes `--device /dev/net/tun`"
    elif error in (errno.EACCES, errno.EPERM):
        found = f"this process may not open {_TUN}"
        change = f"`chmod 666 {_TUN}`, as distributions have it; a container takes `--device {_TUN}`"
    else:
        return _finding(name=name, state="missing", found=f"{_TUN} can't be opened: {os.strerror(error)}")
    return _finding(name=name, state="missing", found=found, change=change)


def _xdp(error: int) -> Finding:
    name = "AF_XDP"
    if error == 0:
        return _finding(name=name, state="good", found="sockets can be had")
    if error in (errno.EACCES, errno.EPERM):
        return _finding(
            name=name,
            state="missing",
            found="this process may have no such socket; only xdp: takes it",
            change="give kpoll CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (see rights)",
        )
    if error == errno.EAFNOSUPPORT:
        found, change = (
            "not in this kernel; only xdp: takes it",
            "take a kernel with CONFIG_XDP_SOCKETS, as Debian's is",
        )
        return _finding(name=name, state="missing", found=found, change=change)
    return _finding(name=name, state="missing", found=f"no socket can be had: {os.strerror(error)}")
