"""What one `kpoll net` was asked to do: parsed from the command line once, valid from then on.

As in config.py, only what can be decided from the words alone is decided here (exit code 2). Whether there is such a
tap or such an address is found out where it is opened (exit code 1).
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kpoll.vhost._core import lib

from .config import QUEUES_MAX, LogConfig, MetricsConfig, SocketConfig, check_paths
from .errors import UsageError
from .net_config import MTU_MAX, MTU_MIN

if TYPE_CHECKING:
    from .poll import PollConfig

PAIRS_MAX: Final = QUEUES_MAX // 2  # a pair is a receiveq and a transmitq
VNI_MAX: Final = (1 << 24) - 1  # RFC 7348 §5
VXLAN_PORT: Final = 4789  # RFC 7348 §8.1
IFNAME_MAX: Final = 15  # IFNAMSIZ has room for the NUL

_BACKENDS: Final = (
    "tap:NAME, tap-fd:N, udp:LOCAL,REMOTE, vxlan:vni=N,local=IP,remote=IP, xdp:IFACE[,queue=N], null[:SIZE] or echo"
)
NULL_SIZE: Final = 60  # bytes of a frame from null: the smallest of Ethernet, its check sequence apart
_XDP_QUEUES: Final = 1024  # of an interface, that we can tell apart
_MAC_GROUP: Final = 0x01  # of the first byte: a multicast or broadcast address
_MAC_LOCAL: Final = 0x02  # of the first byte: no manufacturer's, locally administered

type_ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class TapBackend:
    """A tap interface by its name: attached to where it exists, made where it doesn't."""

    name: str

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return f"tap:{self.name}"


@dataclass(frozen=True)
class TapFdBackend:
    """A tap that somebody else opened and passed as a descriptor."""

    fd: int

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return f"tap-fd:{self.fd}"


@dataclass(frozen=True)
class Endpoint:
    """One end of a UDP path."""

    ip: type_ip
    port: int

    def __str__(self) -> str:
        """Give it as ADDR:PORT, an IPv6 address in brackets."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True)
class UdpBackend:
    """Ethernet frames in UDP datagrams between two addresses, one frame each, as QEMU's `-netdev dgram` has them."""

    local: Endpoint
    remote: Endpoint

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return f"udp:{self.local},{self.remote}"


@dataclass(frozen=True)
class VxlanBackend:
    """A VXLAN segment between two tunnel end points (RFC 7348), both at the same port."""

    vni: int
    local: Endpoint
    remote: Endpoint

    def __str__(self) -> str:
        """Give it as --backend has it, the port only where it isn't VXLAN's own."""
        port = "" if self.remote.port == VXLAN_PORT else f",port={self.remote.port}"
        return f"vxlan:vni={self.vni},local={self.local.ip},remote={self.remote.ip}{port}"


@dataclass(frozen=True)
class XdpBackend:
    """Queues of a network interface, from number `queue` on, through AF_XDP."""

    interface: str
    queue: int = 0

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return f"xdp:{self.interface}" + (f",queue={self.queue}" if self.queue else "")


@dataclass(frozen=True)
class NullBackend:
    """A sink that copies every frame into a buffer of its own, and a source that fills all buffers; for the bench.

    Attributes:
        size: Bytes of the frames that it gives; 0: it gives none.

    """

    size: int = NULL_SIZE

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return "null" if self.size == NULL_SIZE else f"null:{self.size}"


@dataclass(frozen=True)
class EchoBackend:
    """Sends every frame back; for the bench."""

    def __str__(self) -> str:
        """Give it as --backend has it."""
        return "echo"


type_backend = TapBackend | TapFdBackend | UdpBackend | VxlanBackend | XdpBackend | NullBackend | EchoBackend


def _check_interface(name: str, option: str) -> None:
    """Check a name by the kernel's rules for names of interfaces (dev_valid_name), and ours.

    The kernel takes a `%d` for a number of its choice, and we would not learn which. Raises UsageError.
    """
    kind = option.removeprefix("--backend ").partition(":")[0]
    if not name:
        raise UsageError(f"{option}: names no interface; give a name, such as {kind}:vm1")
    if len(os.fsencode(name)) > IFNAME_MAX:
        raise UsageError(f"{option}: an interface's name has at most {IFNAME_MAX} bytes; use a shorter one")
    if name in (".", "..") or not name.isprintable() or re.search(r"[\s/:%]", name):
        raise UsageError(f"{option}: is no interface's name; use letters and digits, such as {kind}:vm1")


def _parse_tap_name(name: str) -> TapBackend:
    _check_interface(name, f"--backend tap:{name}")
    return TapBackend(name)


def _parse_null(text: str) -> NullBackend:
    size = text.partition(":")[2]
    low, high = int(lib.NET_FRAME_MIN), int(lib.NET_FRAME_MAX)
    if re.fullmatch(r"[0-9]{1,5}", size) is None or not (int(size) == 0 or low <= int(size) <= high):
        raise UsageError(f"--backend {text}: give the bytes of a frame to receive, {low} to {high}, or 0 for none")
    return NullBackend(int(size))


def _parse_tap_fd(text: str) -> TapFdBackend:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UsageError(f"--backend tap-fd:{text}: give the number of an open descriptor, such as tap-fd:5")
    return TapFdBackend(int(text))


def _parse_endpoint(text: str, option: str) -> Endpoint:
    """Parse ADDR:PORT; an IPv6 address stands in brackets, with a %zone where it is link-local. Raises UsageError."""
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[3]) <= 65535:
        raise UsageError(f"{option}: give ADDR:PORT, such as 192.0.2.1:4000 or [2001:db8::1]:4000, not {text!r}")
    try:
        ip = ipaddress.IPv4Address(match[2]) if match[1] is None else ipaddress.IPv6Address(match[1])
    except ValueError:
        raise UsageError(
            f"{option}: {match[1] or match[2] or 'nothing'} is no IP address; names are not looked up"
        ) from None
    return Endpoint(ip, int(match[3]))


def _parse_udp(text: str) -> UdpBackend:
    """Parse the LOCAL,REMOTE of udp:LOCAL,REMOTE. Raises UsageError."""
    option = f"--backend udp:{text}"
    ends = text.split(",")
    if len(ends) != 2:
        raise UsageError(f"{option}: give both ends, LOCAL,REMOTE, such as udp:192.0.2.1:4000,192.0.2.2:4000")
    local, remote = (_parse_endpoint(end.strip(), option) for end in ends)
    _check_path(local, remote, option, "REMOTE")
    return UdpBackend(local, remote)


def _check_path(local: Endpoint, remote: Endpoint, option: str, name: str) -> None:
    """Check that there can be a path between two ends, of which the peer's is called `name`. Raises UsageError."""
    if local.ip.version != remote.ip.version:
        raise UsageError(f"{option}: one end is IPv4 and the other IPv6; give two of a kind")
    if local.ip.is_multicast or remote.ip.is_multicast or remote.ip == ipaddress.IPv4Address("255.255.255.255"):
        raise UsageError(f"{option}: frames go to one peer; give unicast addresses")
    if remote.ip.is_unspecified:
        raise UsageError(f"{option}: {remote.ip} is nobody's address; give the peer's as {name}")
    if local == remote:
        raise UsageError(f"{option}: both ends are the same; give the peer's as {name} (or use --backend echo)")


def _parse_number(text: str, largest: int, option: str, key: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None or int(text) > largest:
        raise UsageError(f"{option}: {key} is a number up to {largest}, not {text!r}")
    return int(text)


def _parse_ip(text: str, option: str) -> type_ip:
    """Parse an address, of IPv6 also in brackets, as udp: has it. Raises UsageError."""
    in_brackets = re.fullmatch(r"\[([^\[\]]*)\]", text)
    try:
        return ipaddress.ip_address(text) if in_brackets is None else ipaddress.IPv6Address(in_brackets[1])
    except ValueError:
        raise UsageError(f"{option} is no IP address; names are not looked up") from None


def _parse_vxlan(text: str) -> VxlanBackend:
    """Parse the vni=N,local=IP,remote=IP[,port=N] of vxlan:…, in any order. Raises UsageError."""
    option = f"--backend vxlan:{text}"
    example = "such as vxlan:vni=42,local=192.0.2.1,remote=192.0.2.2"
    given: dict[str, str] = {}
    for word in text.split(","):
        key, _, value = (part.strip() for part in word.partition("="))
        if key not in ("vni", "local", "remote", "port"):
            raise UsageError(f"{option}: give vni=N,local=IP,remote=IP[,port=N], not {word!r}")
        if key in given:
            raise UsageError(f"{option}: {key} is there twice; give it once")
        given[key] = value
    missing = [key for key in ("vni", "local", "remote") if not given.get(key)]
    if missing:
        raise UsageError(f"{option}: {missing[0]} is missing; give vni, local and remote, {example}")
    vni = _parse_number(given["vni"], VNI_MAX, option, "vni")
    port = _parse_number(given.get("port", str(VXLAN_PORT)), 65535, option, "port")
    if port == 0:
        raise UsageError(f"{option}: port 0 is nobody's; leave it out for {VXLAN_PORT}, VXLAN's own")
    local, remote = (
        Endpoint(_parse_ip(given[key], f"{option}: {key}={given[key]}"), port) for key in ("local", "remote")
    )
    _check_path(local, remote, option, "remote")
    return VxlanBackend(vni, local, remote)


def _parse_xdp(text: str) -> XdpBackend:
    """Parse the IFACE[,queue=N] of xdp:IFACE[,queue=N]. Raises UsageError."""
    option = f"--backend xdp:{text}"
    interface, comma, rest = text.partition(",")
    _check_interface(interface, option)
    if not comma:
        return XdpBackend(interface)
    match = re.fullmatch(r"queue=([0-9]{1,5})", rest)
    if match is None or int(match[1]) >= _XDP_QUEUES:
        raise UsageError(f"{option}: give xdp:IFACE,queue=N, with N from 0 to {_XDP_QUEUES - 1}")
    return XdpBackend(interface, int(match[1]))


def parse_backend(text: str) -> type_backend:  # noqa: PLR0911 - one for each
    """Parse --backend: where the card's frames come from and go to.

    Raises UsageError for what can't be meant.
    """
    kind, _, rest = text.partition(":")
    match kind:
        case "tap":
            return _parse_tap_name(rest)
        case "tap-fd":
            return _parse_tap_fd(rest)
        case "udp":
            return _parse_udp(rest)
        case "null":
            return NullBackend() if text == kind else _parse_null(text)
        case "echo" if text == kind:
            return EchoBackend()
        case "vxlan":
            return _parse_vxlan(rest)
        case "xdp":
            return _parse_xdp(rest)
        case _:
            raise UsageError(f"--backend {text}: give {_BACKENDS}")


def parse_mac(text: str) -> bytes:
    """Parse --mac: the guest's address, six bytes in hexadecimal, such as 52:54:00:12:34:56. Raises UsageError."""
    if re.fullmatch(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", text) is None:
        raise UsageError(f"--mac {text}: give six bytes in hexadecimal, such as 52:54:00:12:34:56")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & _MAC_GROUP or not any(mac):
        raise UsageError(
            f"--mac {text}: is no single card's address; give a unicast one, whose first byte is even and not all zero"
        )
    return mac


def random_mac() -> bytes:
    """Make a MAC address up: unicast and locally administered, so that it is no manufacturer's."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & ~_MAC_GROUP | _MAC_LOCAL, *rest])


def mac_text(mac: bytes) -> str:
    """Write a MAC address as everybody does: 52:54:00:12:34:56."""
    return mac.hex(":")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """One network card: where its frames go, who may connect, who serves it.

    Attributes:
        mac: The guest's address.
        mtu: What the guest is told, in bytes; None: nothing.
        num_queue_pairs: Pairs of a receiveq and a transmitq on offer.
        busy_poll_us: SO_BUSY_POLL of the back-end's socket, in microseconds; None: as the host has it.
        sandbox: None: as much as this host can do.

    """

    socket: SocketConfig
    poll: PollConfig
    backend: type_backend
    mac: bytes
    mtu: int | None = None
    num_queue_pairs: int = 1
    busy_poll_us: int | None = None
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sandbox: bool | None = None

    def __post_init__(self) -> None:
        """Check ranges, and what the options say about each other. Raises UsageError."""
        check_paths(self.socket, self.metrics)
        if self.mtu is not None and not MTU_MIN <= self.mtu <= MTU_MAX:
            raise UsageError(f"--mtu {self.mtu}: give {MTU_MIN} to {MTU_MAX} bytes")
        if not 1 <= self.num_queue_pairs <= PAIRS_MAX:
            raise UsageError(f"--num-queue-pairs {self.num_queue_pairs}: give 1 to {PAIRS_MAX}")
        if isinstance(self.backend, TapFdBackend):
            if self.num_queue_pairs > 1:
                raise UsageError(
                    f"--num-queue-pairs {self.num_queue_pairs}: a tap's descriptor is one queue pair, and "
                    f"--backend {self.backend} passes one; use --backend tap:NAME for more"
                )
            if self.backend.fd == self.socket.fd:
                raise UsageError(f"--backend {self.backend}: is the descriptor of --fd; pass the tap as another one")
        if isinstance(self.backend, XdpBackend) and self.backend.queue + self.num_queue_pairs > _XDP_QUEUES:
            raise UsageError(
                f"--num-queue-pairs {self.num_queue_pairs}: from queue {self.backend.queue} on there are "
                f"{_XDP_QUEUES - self.backend.queue} at most; use fewer"
            )

    @property
    def cpus(self) -> tuple[int, ...]:
        """The workers' CPUs: none, the scheduler chooses."""
        return ()

    @property
    def device(self) -> str:
        """The `device` of logs and metrics: the back-end as --backend has it."""
        return str(self.backend)
