"""A tap: the host's end of a network cable whose other end is a descriptor (Documentation/networking/tuntap.rst).

Attached to where it exists, made where it doesn't, or opened by somebody else and passed to us. Each queue pair has a
descriptor of its own, and the kernel deals frames for the guest to those that are attached. Frames come with the header
of virtio itself (virtio 1.2 §5.1.6), so that checksums and segmentation stay with whoever does them best. The
administrator's part is left alone: addresses, bridges, up and down.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING, Final

from .errors import KpollError, os_reason
from .net_config import NO_OFFLOADS, NetFeature, usable_offloads
from .net_options import TapBackend, mac_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .net_options import TapFdBackend

TUN_PATH: Final = "/dev/net/tun"
VNET_HDR_BYTES: Final = 12  # struct virtio_net_hdr with num_buffers, which VIRTIO_F_VERSION_1 always has

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETQUEUE: Final = 0x400454D9
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_ATTACH_QUEUE: Final = 0x0200
_IFF_DETACH_QUEUE: Final = 0x0400
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_FLAGS: Final = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR

_SIOCGIFMTU: Final = 0x8921
_SIOCGIFHWADDR: Final = 0x8927
_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq: the name, and the union as far as flags go
_IFREQ_INT: Final = struct.Struct("16si20x")  # the same with a number
_HWADDR: Final = struct.Struct("16x2x6s16x")  # struct ifreq with a struct sockaddr of an Ethernet address
_INT: Final = struct.Struct("i")

_TUN_F: Final = {
    NetFeature.VIRTIO_NET_F_GUEST_CSUM: 0x01,  # TUN_F_CSUM
    NetFeature.VIRTIO_NET_F_GUEST_TSO4: 0x02,
    NetFeature.VIRTIO_NET_F_GUEST_TSO6: 0x04,
    NetFeature.VIRTIO_NET_F_GUEST_ECN: 0x08,  # TUN_F_TSO_ECN
    NetFeature.VIRTIO_NET_F_GUEST_UFO: 0x10,
    NetFeature.VIRTIO_NET_F_GUEST_USO4: 0x20,
    NetFeature.VIRTIO_NET_F_GUEST_USO6: 0x40,
}
_TUN_F_USO: Final = 0x60

# Every tap has these. Frames from the guest need no ioctl: their header says what is left to do.
_OFFLOADS: Final = (
    NetFeature.VIRTIO_NET_F_CSUM
    | NetFeature.VIRTIO_NET_F_HOST_TSO4
    | NetFeature.VIRTIO_NET_F_HOST_TSO6
    | NetFeature.VIRTIO_NET_F_HOST_ECN
    | NetFeature.VIRTIO_NET_F_GUEST_CSUM
    | NetFeature.VIRTIO_NET_F_GUEST_TSO4
    | NetFeature.VIRTIO_NET_F_GUEST_TSO6
    | NetFeature.VIRTIO_NET_F_GUEST_ECN
)
_UFO: Final = NetFeature.VIRTIO_NET_F_GUEST_UFO | NetFeature.VIRTIO_NET_F_HOST_UFO
_USO: Final = NetFeature.VIRTIO_NET_F_GUEST_USO4 | NetFeature.VIRTIO_NET_F_GUEST_USO6 | NetFeature.VIRTIO_NET_F_HOST_USO


def tun_offload(features: int) -> int:
    """Return the TUN_F_* bits for TUNSETOFFLOAD: what the kernel may leave to a guest that negotiated `features`.

    The kernel knows no USO for one version of IP alone.
    """
    usable = usable_offloads(features)
    bits = sum(bit for feature, bit in _TUN_F.items() if usable & feature)
    return bits if bits & _TUN_F_USO == _TUN_F_USO else bits & ~_TUN_F_USO


def _probe_offloads(fd: int) -> NetFeature:
    """Find out which offloads this kernel's tap can do: it refuses what it doesn't know. Leaves some of them on."""
    able = _OFFLOADS
    for more in _UFO, _USO:  # gone in Linux 4.14 and back as an emulation; new in 6.2
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _TUNSETOFFLOAD, tun_offload(able | more))
            able |= more
    return able


def _interface(fd: int) -> tuple[str, int]:
    """Return name and IFF_* flags of the interface behind a tap's descriptor. Raises OSError when there is none."""
    name, flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
    return os.fsdecode(name.rstrip(b"\0")), int(flags)


def _set_interface(fd: int, name: str, flags: int) -> None:
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))


def _set_queue(fd: int, *, attach: bool) -> None:
    flag = _IFF_ATTACH_QUEUE if attach else _IFF_DETACH_QUEUE
    fcntl.ioctl(fd, _TUNSETQUEUE, _IFREQ.pack(b"", flag))


def _hardware_address(fd: int, name: str) -> bytes:
    """Return the MAC address of an interface; `fd` is its tap, or any socket of its network. Raises OSError."""
    (mac,) = _HWADDR.unpack(fcntl.ioctl(fd, _SIOCGIFHWADDR, _IFREQ.pack(os.fsencode(name), 0)))
    return bytes(mac)


def _index(name: str, mac: bytes) -> int | None:
    """Return the number of the interface in this network; None if it isn't the one with that address.

    A tap that was passed to us may be another network namespace's, and only its administrator could ask which.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            return socket.if_nametoindex(name) if _hardware_address(any_socket.fileno(), name) == mac else None
    except OSError:
        return None


def _mtu(name: str) -> int | None:
    """Return the MTU of an interface in this network; None where it can't be asked."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFMTU, _IFREQ_INT.pack(os.fsencode(name), 0))
    except OSError:
        return None
    return int(_IFREQ_INT.unpack(answer)[1])


class Tap:
    """An attached tap. Made by `open_tap`, which also closes it.

    Attributes:
        name: The interface's name.
        fds: One non-blocking descriptor per queue pair; they stay the same for as long as the tap is open.
        index: Its number in this network when it was opened; None where it is in another, and can't be watched.
        mac: The address of the host's end.
        made: Whether it wasn't there before; it goes with its last descriptor.
        mtu: The interface's when it was opened; None where it can't be asked.
        offloads: What this kernel's tap can do, for `device_features`.

    """

    def __init__(self, option: str, name: str, fds: tuple[int, ...], *, made: bool = False) -> None:
        """Take over descriptors that are attached to `name`. Raises OSError."""
        self.name = name
        self.fds = fds
        self.made = made
        self._option = option
        self._features = int(NO_OFFLOADS)
        self._detached: frozenset[int] = frozenset()  # pairs that frames aren't dealt to
        self.mac = _hardware_address(fds[0], name)
        self.index = _index(name, self.mac)
        self.mtu = None if self.index is None else _mtu(name)
        self.offloads = _probe_offloads(fds[0])
        self._configure()

    @property
    def attached(self) -> bool:
        """Whether there is an interface behind each descriptor; deleting it leaves them open, and dead."""
        return all(_is_attached(fd) for fd in self.fds)

    def set_features(self, features: int) -> None:
        """Have the kernel leave to the guest what it negotiated, and nothing else.

        A tap that was deleted leaves it nothing, which is no error: one that is back is told when it is attached to.

        Raises OSError when the kernel refuses (a security module can).
        """
        self._features = features
        try:
            fcntl.ioctl(self.fds[0], _TUNSETOFFLOAD, tun_offload(features))
        except OSError:
            if self.attached:  # asked afterwards: it may go at any moment
                raise

    def deal_to(self, pairs: Collection[int]) -> None:
        """Have the kernel deal frames to these pairs alone; in any case to the first one, where they wait for a guest.

        What waits for a pair that is left out is lost; what it sends is still taken. A tap that was deleted deals
        nothing, which is no error.

        Raises OSError when the kernel refuses (a security module can).
        """
        refusal = None
        for pair, fd in enumerate(self.fds[1:], 1):
            if (pair in pairs) != (pair in self._detached):
                continue  # it is as it should be: a guest that changes its mind doesn't keep the kernel's network lock
            try:
                _set_queue(fd, attach=pair in pairs)
            except OSError as error:
                refusal = error
            else:
                self._detached ^= {pair}
        if refusal is not None and self.attached:
            raise refusal

    def attach_again(self) -> None:
        """Attach the descriptors to an interface that was deleted and is back under its name; it deals to them all.

        Until this has returned nobody may read or write them: the kernel would take our header for a shorter one.

        Raises KpollError when it can't be had; some of them may be attached then.
        """
        _attach(self.fds, self.name, self._option)
        self._detached = frozenset()
        try:
            self.mac = _hardware_address(self.fds[0], self.name)
            self._configure()
        except OSError as error:
            raise KpollError(f"{self._option}: {os_reason(error)}") from error

    def _configure(self) -> None:
        """Set what belongs to the interface, not to one descriptor."""
        fcntl.ioctl(self.fds[0], _TUNSETVNETHDRSZ, _INT.pack(VNET_HDR_BYTES))
        fcntl.ioctl(self.fds[0], _TUNSETVNETLE, _INT.pack(1))  # virtio 1.2 §5.1.6: le16, whatever the host is
        self.set_features(self._features)


def _open_tun(option: str) -> int:
    """Open another descriptor of the driver. Raises KpollError."""
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                what = f"there is no {TUN_PATH}: `modprobe tun`; a container is given it with --device {TUN_PATH}"
            case errno.EACCES | errno.EPERM:
                what = f"this user may not open {TUN_PATH}: allow it to read and write, or pass a tap by tap-fd:N"
            case _:
                what = f"{TUN_PATH}: {os_reason(error)}"
        raise KpollError(f"{option}: {what}") from error


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _attach_error(error: OSError, name: str, option: str, pairs: int) -> KpollError:
    queues = " multi_queue" if pairs > 1 else ""
    match error.errno:
        case errno.EPERM:
            what = (
                f"permission denied: have root make it for this user, `ip tuntap add dev {name} mode tap user "
                f"{_user()}{queues}`, or give kpoll the capability CAP_NET_ADMIN"
            )
        case errno.EBUSY:
            what = f"{name} is busy: stop the other process that has it, or use another tap"
        case errno.E2BIG:
            what = f"{name} has no {pairs} queues left: stop others that have it, or give a smaller --num-queue-pairs"
        case errno.EINVAL if pairs > 1:
            what = (
                f"{name} exists and is no tap with several queues: have root make it anew, "
                f"`ip tuntap del dev {name} mode tap && ip tuntap add dev {name} mode tap user {_user()} multi_queue`, "
                "or use another name, or --num-queue-pairs 1"
            )
        case errno.EINVAL:
            what = f"{name} exists and is no tap: use another name (`ip tuntap show` lists the taps)"
        case _:
            what = f"{name} can't be attached to: {os_reason(error)}"
    return KpollError(f"{option}: {what}")


def _attach(fds: tuple[int, ...], name: str, option: str) -> None:
    """Attach each descriptor that isn't yet, to a queue of its own. Raises KpollError.

    The flag for several queues has to be as it was when the interface was made, else EINVAL, as for what is no tap. One
    queue of an interface that can have several will do for one pair. The other way round nothing is tried: a descriptor
    is rid of its interface only when it is closed, and the sandbox lets nobody open another one.
    """
    waiting = [fd for fd in fds if not _is_attached(fd)]
    try:
        for fd in waiting:
            try:
                _set_interface(fd, name, _FLAGS if len(fds) == 1 else _FLAGS | _IFF_MULTI_QUEUE)
            except OSError as error:
                if error.errno != errno.EINVAL or len(fds) > 1:
                    raise
                _set_interface(fd, name, _FLAGS | _IFF_MULTI_QUEUE)
    except OSError as error:
        raise _attach_error(error, name, option, len(fds)) from error


def _is_attached(fd: int) -> bool:
    try:
        _interface(fd)
    except OSError:
        return False
    return True


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _passed(fd: int, option: str) -> str:
    """Check a descriptor that somebody else opened, and make it ours. Returns its name. Raises KpollError."""
    try:
        name, flags = _interface(fd)
    except OSError as error:
        match error.errno:
            case errno.EBADF:
                what = "is no open descriptor"
            case errno.EBADFD | errno.ENOLINK:
                what = "has no interface (any more): attach it with TUNSETIFF before it is passed"
            case _:
                what = "is no tap"
        raise KpollError(f"{option}: {what}; pass an open tap") from error
    if not flags & _IFF_TAP:
        raise KpollError(f"{option}: {name} is a tun, which has no Ethernet; pass a tap")
    # IFF_NO_PI can't be checked: TUNGETIFF gives the same bit another meaning, IFF_NOFILTER.
    if not flags & _IFF_VNET_HDR:
        raise KpollError(f"{option}: {name} has no vnet_hdr; open it with IFF_NO_PI and IFF_VNET_HDR")
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    return name


def _check_mac(tap: Tap, mac: bytes, option: str) -> None:
    if tap.mac == mac:
        raise KpollError(
            f"--mac {mac_text(mac)}: is the address of {tap.name}, the host's end of {option}; give another one"
        )


@contextlib.contextmanager
def open_tap(backend: TapBackend | TapFdBackend, *, pairs: int, mac: bytes) -> Iterator[Tap]:
    """Open the tap that `backend` names; close it on leaving. One that we made is gone then.

    Args:
        backend: A name, or a descriptor that becomes ours.
        pairs: Queue pairs, one descriptor each; 1 for a passed descriptor.
        mac: The guest's address, which must not be the tap's.

    Raises KpollError with what to do when it can't be had.

    """
    option = f"--backend {backend}"
    made = False
    with contextlib.ExitStack() as opened:
        if isinstance(backend, TapBackend):
            made = not _exists(backend.name)
            fds: list[int] = []
            for _ in range(pairs):
                fds.append(_open_tun(option))
                opened.callback(os.close, fds[-1])
            _attach(tuple(fds), backend.name, option)
            name = backend.name
        else:
            fds = [backend.fd]
            name = _passed(backend.fd, option)
            opened.callback(os.close, backend.fd)
        try:
            tap = Tap(option, name, tuple(fds), made=made)
        except OSError as error:
            raise KpollError(f"{option}: {name} can't be set up: {os_reason(error)}") from error
        _check_mac(tap, mac, option)
        yield tap
