"""What one `kpoll blk` was asked to do: parsed from the command line once, valid from then on.

Only what can be decided from the words alone is decided here (exit code 2); what depends on the host - does the file
exist, may this process run on that CPU - is found out where it is used (exit code 1).
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from .errors import KpollError, UsageError

if TYPE_CHECKING:
    from kpoll.kernel.probe import KernelFacts

SECTOR: Final = 512
SERIAL_BYTES: Final = 20  # VIRTIO_BLK_ID_BYTES, virtio 1.2 §5.2.6.1
QUEUES_MAX: Final = 256  # a vring's index is the low byte of SET_VRING_KICK's u64 (vhost-user spec)
WORKERS_MAX: Final = 256
POLL_US_DEFAULT: Final = 100
POLL_US_MAX: Final = 1_000_000
SIZE_MAX: Final = (1 << 63) - SECTOR  # offsets are off_t

type_engine = Literal["auto", "aio", "io_uring", "null"]
type_poll = Literal["kernel", "module", "user", "off"]

_SIZE_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def default_num_queues() -> int:
    """Return how many virtqueues a front-end may use unless --num-queues says so.

    QEMU takes one per vCPU and refuses a back-end that offers fewer; an unused queue costs nothing until it is set
    up. So: a generous 16, or one per host CPU where that is more.
    """
    return min(max(16, os.cpu_count() or 1), QUEUES_MAX)


def parse_size(text: str) -> int:
    """Parse a disk size: bytes, or a number with K, M, G or T (powers of 1024).

    Returns bytes, a multiple of 512. Raises UsageError for anything else.
    """
    match = re.fullmatch(r"([0-9]{1,19})([KMGT]?)", text.upper())
    if match is None:
        raise UsageError(f"--size {text}: give bytes, or a number followed by K, M, G or T, such as 64G")
    size = int(match[1]) * _SIZE_UNITS[match[2]]
    if not 0 < size <= SIZE_MAX:
        raise UsageError(f"--size {text}: give a size above 0 and below 8 EiB")
    if size % SECTOR:
        raise UsageError(f"--size {text}: give a multiple of {SECTOR} bytes, a disk is made of sectors")
    return size


def parse_cpus(text: str) -> tuple[int, ...]:
    """Parse a CPU list as taskset(1) and cpuset(7) write it: `0,2-4`.

    Returns the CPU numbers in the order given. Raises UsageError for a malformed list or a CPU named twice.
    """
    cpus: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if match is None:
            raise UsageError(f"--cpus {text}: give CPU numbers and ranges, such as 0,2-4")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last - first >= WORKERS_MAX:
            raise UsageError(f"--cpus {text}: {part.strip()} is no range of at most {WORKERS_MAX} CPUs")
        cpus.extend(range(first, last + 1))
    if len(set(cpus)) != len(cpus):
        raise UsageError(f"--cpus {text}: name each CPU once")
    return tuple(cpus)


def parse_mode(text: str) -> int:
    """Parse --socket-mode, octal permission bits such as 0660. Raises UsageError."""
    if re.fullmatch(r"0?o?[0-7]{3}", text) is None:
        raise UsageError(f"--socket-mode {text}: give octal permission bits, such as 0660")
    return int(text.replace("o", ""), 8)


def parse_host_port(text: str) -> tuple[str, int]:
    """Parse --metrics HOST:PORT; an IPv6 address stands in brackets, an empty HOST means every address.

    Returns (host, port). Raises UsageError.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise UsageError(f"--metrics {text}: give HOST:PORT, such as 127.0.0.1:9100 or [::1]:9100")
    return match[1] or match[2], int(match[3])


def parse_serial(text: str) -> bytes:
    """Parse --serial: what GET_ID answers, up to 20 printable ASCII characters. Raises UsageError."""
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= SERIAL_BYTES):
        raise UsageError(f"--serial {text}: give 1 to {SERIAL_BYTES} printable ASCII characters")
    return text.encode()


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How to log: `style` auto, json or console; `level` info, warning or error."""

    style: Literal["auto", "json", "console"] = "auto"
    level: Literal["info", "warning", "error"] = "info"


@dataclass(frozen=True, kw_only=True)
class SocketConfig:
    """Where front-ends come from: a path to listen on, or a descriptor that somebody else opened. Exactly one."""

    path: str | None = None
    fd: int | None = None
    mode: int | None = None  # permission bits of the path
    group: str | None = None  # group name or number that owns the path

    def __post_init__(self) -> None:
        """Check the combination. Raises UsageError."""
        if self.path is not None and self.fd is not None:
            raise UsageError("--socket-path and --fd exclude each other: give one of them")
        if self.path is None and self.fd is None:
            raise UsageError("no socket: give --socket-path PATH, or --fd N for one that is already open")
        if self.path == "":
            raise UsageError("--socket-path is empty: give the path of the socket to make")
        if self.fd is not None and self.fd < 0:
            raise UsageError(f"--fd {self.fd}: give the number of an open descriptor")
        if self.fd is not None and (self.mode is not None or self.group is not None):
            raise UsageError(
                "--socket-mode and --socket-group are for --socket-path: with --fd the socket exists already"
            )


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus finds the metrics: TCP (host, port), a unix socket's path, or neither. Never both."""

    tcp: tuple[str, int] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        """Check the combination. Raises UsageError."""
        if self.tcp is not None and self.path is not None:
            raise UsageError("--metrics and --metrics-socket exclude each other: give one of them")
        if self.path == "":
            raise UsageError("--metrics-socket is empty: give the path of the socket to make")


@dataclass(frozen=True, kw_only=True)
class PollConfig:
    """How workers wait: the strategy, why it was taken (and not a better one), and the longest spin in microseconds.

    `warning` says what keeps the strategy from doing its work on this host, if something does.
    """

    strategy: type_poll
    why: str
    max_us: int = POLL_US_DEFAULT
    warning: str | None = None


_NO_IOCTL: Final = "the running kernel has no EVENTFD_SET_POLL ioctl"
_NEVER_SPINS: Final = "polling is off on this host, so the kernel sleeps at once; its administrator turns it on with "


def choose_poll(asked: str, max_us: int, kernel: KernelFacts) -> PollConfig:
    """Turn --poll and --poll-max-us (microseconds) into the strategy that will be used on a kernel like this.

    Raises KpollError when `kernel` or `module` is asked for and isn't there.
    """
    match asked:
        case "kernel":
            _need_patch(kernel)
        case "module":
            _need_module(kernel)
    if max_us == 0 and asked in ("auto", "kernel", "module"):
        return PollConfig(strategy="off", why="--poll-max-us 0 leaves no time to poll", max_us=0)
    match asked:
        case "kernel":
            warning = None if kernel.spin_us != 0 else f"{_NEVER_SPINS}`sysctl fs.eventfd_busy_poll=50`"
            return PollConfig(strategy="kernel", why="asked for", max_us=max_us, warning=warning)
        case "module":
            warning = None if kernel.net_busy_poll_us != 0 else f"{_NEVER_SPINS}`sysctl net.core.busy_poll=50`"
            return PollConfig(strategy="module", why="asked for", max_us=max_us, warning=warning)
        case "off":
            return PollConfig(strategy="off", why="asked for", max_us=0)
        case "user":
            return PollConfig(strategy="user", why="asked for", max_us=max_us)
        case _:
            return _best_poll(max_us, kernel)


_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM)


def _no_patch(error: int) -> str:
    """Say why there is no EVENTFD_SET_POLL, from its errno."""
    if error == errno.ENOTTY:
        return _NO_IOCTL
    if error in _NOT_ALLOWED:
        return "this process may not use the EVENTFD_SET_POLL ioctl, if there is one (a container's policy?)"
    return f"the EVENTFD_SET_POLL ioctl fails here ({os.strerror(error)})"


def _no_module(error: int) -> str:
    """Say why there is no module, from the errno."""
    if error in _NOT_ALLOWED:
        return "this process may not open the module's /dev/eventfd_poll"
    if error in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "the eventfd_poll module isn't loaded"
    return f"the module's /dev/eventfd_poll doesn't work here ({os.strerror(error)})"


def _no_spin(sysctl: str, us: int | None, whose: str) -> str:
    """Say why polling isn't known to be on: a sysctl that is 0, or that can't be read."""
    if us is None:
        return f"{sysctl} can't be read here (another network namespace?), so {whose} polling may be off"
    return f"{sysctl} is 0: the administrator has {whose} polling off"


def _need_patch(kernel: KernelFacts) -> None:
    if kernel.set_poll:
        return
    remedy = "boot one that has kpoll's patch" if kernel.patch == errno.ENOTTY else "allow it"
    raise KpollError(
        f"--poll kernel: {_no_patch(kernel.patch)}: {remedy}, or load the module and use --poll module "
        "(kernel/README.md tells how), or use --poll user"
    )


def _need_module(kernel: KernelFacts) -> None:
    if kernel.module == 0:
        return
    if kernel.module in _NOT_ALLOWED:
        raise KpollError(
            "--poll module: this process may not open /dev/eventfd_poll: give its user or group access "
            "(kernel/README.md), or use --poll user"
        )
    raise KpollError(
        f"--poll module: /dev/eventfd_poll can't be used ({os.strerror(kernel.module)}): load the module with "
        "`modprobe eventfd_poll` (kernel/README.md tells how to build it), or use --poll user"
    )


def _best_poll(max_us: int, kernel: KernelFacts) -> PollConfig:
    """Take the kernel's polling where there is any and its administrator is known to want it; else say why not."""
    if kernel.set_poll and kernel.spin_us:
        return PollConfig(strategy="kernel", why="the kernel has EVENTFD_SET_POLL", max_us=max_us)
    if kernel.set_poll:
        # Both sysctls turn it on. Where the kernel's own is 0 and the other can't be read, that one decides.
        own = kernel.eventfd_busy_poll_us
        name = "fs.eventfd_busy_poll" if own is None or kernel.spin_us == 0 else "net.core.busy_poll"
        why = _no_spin(name, kernel.spin_us, "the kernel's")
    else:
        why = _no_patch(kernel.patch)
    if kernel.module == 0 and kernel.net_busy_poll_us:
        return PollConfig(strategy="module", why=f"the eventfd_poll module is there; {why}", max_us=max_us)
    if kernel.module == 0:
        module = _no_spin("net.core.busy_poll", kernel.net_busy_poll_us, "the module's")
    else:
        module = _no_module(kernel.module)
    return PollConfig(strategy="user", why=f"{why}; {module}", max_us=max_us)


@dataclass(frozen=True, kw_only=True)
class BlkConfig:
    """One block device: what is behind it, who may connect, who serves it."""

    socket: SocketConfig
    poll: PollConfig
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
    blk_file: str | None = None
    read_only: bool = False
    engine: type_engine = "auto"
    size: int | None = None  # bytes, null engine only
    num_queues: int = 1
    serial: bytes = b""
    workers: int = 1
    cpus: tuple[int, ...] = ()  # one per worker, or none: the scheduler chooses
    sandbox: bool | None = None  # None: as much as this host can do

    def __post_init__(self) -> None:
        """Check what the options say about each other. Raises UsageError."""
        paths = self.socket.path, self.metrics.path
        if None not in paths and len({os.path.abspath(path) for path in paths if path}) == 1:  # noqa: PTH100
            raise UsageError(f"--metrics-socket {self.metrics.path}: is the --socket-path; give another path")
        if self.engine == "null":
            if self.blk_file is not None:
                raise UsageError("--engine null has no file behind it: give --size instead of --blk-file")
            if self.size is None:
                raise UsageError("--engine null needs a disk size: give --size SIZE, such as 64G")
        else:
            if self.size is not None:
                raise UsageError("--size is for --engine null: the size of a file or device is its own")
            if not self.blk_file:
                raise UsageError("no disk: give --blk-file PATH (a file or block device)")
        if not 1 <= self.num_queues <= QUEUES_MAX:
            raise UsageError(f"--num-queues {self.num_queues}: give 1 to {QUEUES_MAX}")
        if not 1 <= self.workers <= self.num_queues:
            raise UsageError(
                f"--workers {self.workers} with {self.num_queues} queues: give 1 to {self.num_queues}, "
                "a worker serves at least one queue"
            )
        if self.cpus and len(self.cpus) != self.workers:
            raise UsageError(f"--cpus names {len(self.cpus)} CPUs for {self.workers} workers: name one per worker")

    @property
    def device(self) -> str:
        """The `device` of logs and metrics: the serial, else the file's name, else `null`."""
        if self.serial:
            return self.serial.decode()
        if self.blk_file is None:
            return "null"
        # A file name is bytes; what is no text in it must not break the one who reads the metrics.
        return os.fsencode(Path(self.blk_file).name).decode(errors="backslashreplace")
