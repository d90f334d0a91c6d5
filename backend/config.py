"""What one `kpoll blk` was asked to do: parsed from the command line once, valid from then on.

Only what can be decided from the words alone is decided here (exit code 2); what depends on the host - does the file
exist, may this process run on that CPU - is found out where it is used (exit code 1).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from .errors import UsageError

if TYPE_CHECKING:
    from .nvme_tcp import NvmeTcp
    from .poll import PollConfig

SECTOR: Final = 512
SERIAL_BYTES: Final = 20  # VIRTIO_BLK_ID_BYTES, virtio 1.2 §5.2.6.1
QUEUES_MAX: Final = 256  # a vring's index is the low byte of SET_VRING_KICK's u64 (vhost-user spec)
WORKERS_MAX: Final = 256
SIZE_MAX: Final = (1 << 63) - SECTOR  # offsets are off_t

type_engine = Literal["auto", "aio", "io_uring", "null"]
type_on_error = Literal["report", "retry", "stop"]
type_iopoll = Literal["auto", "on", "off"]

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


def check_paths(socket: SocketConfig, metrics: MetricsConfig) -> None:
    """Check that two sockets aren't to be made at one path. Raises UsageError."""
    paths = socket.path, metrics.path
    if None not in paths and len({os.path.abspath(path) for path in paths if path}) == 1:  # noqa: PTH100
        raise UsageError(f"--metrics-socket {metrics.path}: is the --socket-path; give another path")


@dataclass(frozen=True, kw_only=True)
class BlkConfig:
    """One block device: what is behind it, who may connect, who serves it."""

    socket: SocketConfig
    poll: PollConfig
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
    blk_file: str | None = None
    nvme_tcp: NvmeTcp | None = None
    read_only: bool = False
    engine: type_engine = "auto"
    iopoll: type_iopoll = "auto"
    pin_guest_memory: bool = False
    size: int | None = None  # bytes, null engine only
    num_queues: int = 1
    serial: bytes = b""
    workers: int = 1
    cpus: tuple[int, ...] = ()  # one per worker, or none: the scheduler chooses
    on_error: type_on_error = "report"
    sandbox: bool | None = None  # None: as much as this host can do

    def __post_init__(self) -> None:
        """Check what the options say about each other. Raises UsageError."""
        check_paths(self.socket, self.metrics)
        if self.engine == "null":
            if self.blk_file is not None or self.nvme_tcp is not None:
                given = "--blk-file" if self.nvme_tcp is None else "--nvme-tcp"
                raise UsageError(f"--engine null has no file behind it: give --size instead of {given}")
            if self.size is None:
                raise UsageError("--engine null needs a disk size: give --size SIZE, such as 64G")
        else:
            if self.size is not None:
                raise UsageError("--size is for --engine null: the size of a file or device is its own")
            if self.blk_file is not None and self.nvme_tcp is not None:
                raise UsageError("--blk-file and --nvme-tcp exclude each other: give one of them")
            if not self.blk_file and self.nvme_tcp is None:
                raise UsageError("no disk: give --blk-file PATH (a file or block device), or --nvme-tcp")
        self._check_engine()
        if not 1 <= self.num_queues <= QUEUES_MAX:
            raise UsageError(f"--num-queues {self.num_queues}: give 1 to {QUEUES_MAX}")
        if not 1 <= self.workers <= self.num_queues:
            raise UsageError(
                f"--workers {self.workers} with {self.num_queues} queues: give 1 to {self.num_queues}, "
                "a worker serves at least one queue"
            )
        if self.cpus and len(self.cpus) != self.workers:
            raise UsageError(f"--cpus names {len(self.cpus)} CPUs for {self.workers} workers: name one per worker")

    def _check_engine(self) -> None:
        """Check that the engine can do what was asked of it. Raises UsageError."""
        if self.iopoll == "on" and self.engine == "null":
            raise UsageError("--iopoll on: --engine null has nothing to poll: give another, or none")
        if self.pin_guest_memory and self.engine in ("aio", "null"):
            raise UsageError(
                f"--pin-guest-memory: --engine {self.engine} has no use for it: give --engine io_uring or auto"
            )

    @property
    def device(self) -> str:
        """The `device` of logs and metrics: the serial, else the file's name or the namespace's, else `null`."""
        if self.serial:
            return self.serial.decode()
        if self.nvme_tcp is not None:
            return str(self.nvme_tcp)
        if self.blk_file is None:
            return "null"
        # A file name is bytes; what is no text in it must not break the one who reads the metrics.
        return os.fsencode(Path(self.blk_file).name).decode(errors="backslashreplace")
