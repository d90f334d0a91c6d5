"""One benchmark run against a vhost-user-net socket: connect, set queue pairs up, send and receive, count.

The load itself is C (backend/c/bench_net.c), in one thread; this side prepares it, watches the connection meanwhile,
and reads what the back-end's process cost: under the load, and when nothing happens any more.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from kpoll.backend.bench.net_report import NetReport, RoundTrip
from kpoll.backend.bench.watch import peer_pid, process_cpu_ns, watched
from kpoll.backend.errors import KpollError, UsageError, os_reason
from kpoll.backend.net_config import NetFeature
from kpoll.vhost._core import ffi, lib
from kpoll.vhost.driver import Driver, lay_out
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from kpoll.backend.bench.datagrams import Datagrams
    from kpoll.vhost.frontend import Memory

type_mode = Literal["tx", "rx", "echo"]

_MODE: Final[dict[str, int]] = {"tx": lib.BENCH_NET_TX, "rx": lib.BENCH_NET_RX, "echo": lib.BENCH_NET_ECHO}
_HEADER: Final[int] = lib.NET_HDR_LEN
_SIZE_MIN: Final[int] = lib.BENCH_NET_FRAME_MIN
_SIZE_MAX: Final[int] = lib.BENCH_NET_FRAME_MAX
_PAIRS_MAX: Final[int] = lib.BENCH_NET_PAIRS_MAX
_BATCH_MAX: Final[int] = lib.BENCH_NET_BATCH_MAX
_QUEUE_MAX: Final = 32768  # virtio 1.2 §2.7
_RX_BUFFER: Final = 2048  # bytes: what a driver offers that has room for a frame of 1,500 and its header
_AREA_MAX: Final = 16 << 30  # bytes of frames and buffers: more is a slip of the finger
_LINE: Final = 64
_PAGE: Final = 4096
_REGION: Final = 2 << 20  # DPDK registers guest memory in huge pages' worth
_FOREVER: Final = 1e9  # seconds: 30 years, and what a u64 of nanoseconds holds
_SETTLE_S: Final = 0.2  # a back-end that spins for a while has fallen asleep by then
_NS: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class NetLoad:
    """What to do to the card.

    Attributes:
        mode: `tx` sends, `rx` receives, `echo` sends and waits for the same frames to come back.
        size: Bytes of a frame, from its destination address to its payload's end.
        depth: Frames under way per pair (echo); of the feeder's (rx).
        batch: Most frames, or buffers, that are published at once.
        pairs: Queue pairs, all driven by one thread.
        queue_size: Entries of each queue.
        runtime: Seconds to measure; None: until `frames` are through.
        warmup: Seconds of the same load before the measurement, not counted.
        frames: Frames to measure at most; None: until `runtime` is over.
        idle: Seconds to see afterwards what the back-end does when there is nothing to do.
        packed: Packed virtqueues.
        event_idx: Negotiate VIRTIO_F_EVENT_IDX if offered.
        mrg_rxbuf: Negotiate VIRTIO_NET_F_MRG_RXBUF if offered.
        verify: Every frame's bytes follow from its number, and are compared.
        cpu: CPU for the load's thread; None: the scheduler chooses.
        seed: Of the frames' bytes.
        stall: Seconds without any frame after which the back-end counts as hung.
        reflector: A connected datagram socket at the other end of the path, on which all that comes is sent back.
        feeder: Such a socket, and what is sent there so that something comes (rx); None: others send.

    """

    mode: type_mode = "echo"
    size: int = 64
    depth: int = 1
    batch: int = 32
    pairs: int = 1
    queue_size: int = 256
    runtime: float | None = 5.0
    warmup: float = 0.5
    frames: int | None = None
    idle: float = 0.0
    packed: bool = False
    event_idx: bool = True
    mrg_rxbuf: bool = True
    verify: bool = False
    cpu: int | None = None
    seed: int = 1
    stall: float = 10.0
    reflector: socket.socket | None = None
    feeder: tuple[socket.socket, Datagrams] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a card. Raises UsageError."""
        cpus = sorted(os.sched_getaffinity(0))
        power = self.queue_size > 0 and self.queue_size & (self.queue_size - 1) == 0
        wrong = {
            f"--mode {self.mode}: give one of {', '.join(get_args(type_mode))}": self.mode not in get_args(type_mode),
            f"--size {self.size}: give {_SIZE_MIN} to {_SIZE_MAX} bytes": not _SIZE_MIN <= self.size <= _SIZE_MAX,
            f"--batch {self.batch}: give 1 to {_BATCH_MAX}": not 1 <= self.batch <= _BATCH_MAX,
            f"--pairs {self.pairs}: give 1 to {_PAIRS_MAX}": not 1 <= self.pairs <= _PAIRS_MAX,
            f"--queue-size {self.queue_size}: give 1 to {_QUEUE_MAX}, a power of two unless --packed": (
                not 1 <= self.queue_size <= _QUEUE_MAX or not (power or self.packed)
            ),
            f"--depth {self.depth}: give 1 to {self.queue_size}, the --queue-size": (
                not 1 <= self.depth <= self.queue_size
            ),
            "--size times --queue-size times --pairs is more than 16 GiB of memory: give less": (
                (self.size + self.rx_buffer) * self.queue_size * self.pairs > _AREA_MAX
            ),
            "a run without an end: give --runtime or --frames": self.runtime is None and self.frames is None,
            f"--runtime {self.runtime}: give seconds above 0": self.runtime is not None
            and not 0 < self.runtime < _FOREVER,
            f"--warmup {self.warmup}: give seconds, 0 for none": not 0 <= self.warmup < _FOREVER,
            f"--idle {self.idle}: give seconds, 0 for none": not 0 <= self.idle < _FOREVER,
            f"--frames {self.frames}: give at least 1": self.frames is not None and not 0 < self.frames < 1 << 63,
            f"--cpu {self.cpu}: this process may run on {cpus} only": self.cpu is not None and self.cpu not in cpus,
        }
        for message, holds in wrong.items():
            if holds:
                raise UsageError(message)

    @property
    def rx_buffer(self) -> int:
        """Bytes of a buffer to receive into: where frames may come in several, they need not hold the longest."""
        whole = -(-(_HEADER + self.size) // _LINE) * _LINE
        return _RX_BUFFER if self.mrg_rxbuf else max(_RX_BUFFER, min(whole, _HEADER + _SIZE_MAX))

    @property
    def features(self) -> int:
        """The virtio features to acknowledge where they are offered. No offloads: our frames are whole."""
        wanted: int = VirtioFeature.VIRTIO_F_VERSION_1
        wanted |= VirtioFeature.VIRTIO_F_EVENT_IDX if self.event_idx else 0
        wanted |= VirtioFeature.VIRTIO_F_RING_PACKED if self.packed else 0
        wanted |= NetFeature.VIRTIO_NET_F_MRG_RXBUF if self.mrg_rxbuf else 0
        return wanted | (NetFeature.VIRTIO_NET_F_MQ if self.pairs > 1 else 0)


def _check_fits(load: NetLoad, frontend: Frontend) -> None:
    """Compare what was asked for with what is there. Raises KpollError."""
    acked = frontend.acked_features
    if not acked & VirtioFeature.VIRTIO_F_VERSION_1:
        raise KpollError("the back-end does not offer VIRTIO_F_VERSION_1: only modern devices can be measured")
    if load.packed and not acked & VirtioFeature.VIRTIO_F_RING_PACKED:
        raise KpollError("--packed: the back-end offers no packed virtqueues")
    if load.pairs > 1 and not acked & NetFeature.VIRTIO_NET_F_MQ:
        raise KpollError(f"--pairs {load.pairs}: the back-end offers one")
    if load.pairs > 1 and load.pairs > frontend.queue_num():
        raise KpollError(f"--pairs {load.pairs}: the back-end offers {frontend.queue_num()}")


class _Bench:
    """The C load generator with its queue pairs and memory, over a connected front-end."""

    def __init__(self, frontend: Frontend, load: NetLoad) -> None:
        mergeable = bool(frontend.acked_features & NetFeature.VIRTIO_NET_F_MRG_RXBUF)
        config = ffi.new("struct bench_net_config *")
        config.pairs = load.pairs
        config.queue_size = load.queue_size
        config.size = load.size
        config.rx_buffer = load.rx_buffer
        config.batch = load.batch
        config.depth = load.depth
        config.mrg_rxbuf = mergeable
        config.verify = load.verify
        config.seed = load.seed
        config.stall_ns = int(load.stall * _NS)
        config.reflect_fd = -1 if load.reflector is None else load.reflector.fileno()
        if load.feeder is not None:
            config.feed_fd, config.feed = load.feeder[0].fileno(), load.feeder[1].handle
        area = -(-int(lib.bench_net_area_bytes(config)) // _PAGE) * _PAGE
        ring = -(-lay_out(load.queue_size, frontend.acked_features, 1).end // _PAGE) * _PAGE
        memory: Memory = frontend.add_memory(-(-(area + ring * 2 * load.pairs) // _REGION) * _REGION)
        self._bytes = ffi.from_buffer("uint8_t[]", memory.mmap)
        config.area = self._bytes
        config.area_gpa = memory.gpa
        out = ffi.new("struct bench_net **")
        _check(lib.bench_net_create(out, config))
        self._drivers = [
            Driver(frontend, index, size=load.queue_size, chain_max=1, memory=memory, offset=area + ring * index)
            for index in range(2 * load.pairs)
        ]
        self.handle = ffi.gc(out[0], lib.bench_net_destroy)
        for rx, tx in zip(self._drivers[::2], self._drivers[1::2], strict=True):
            rc = lib.bench_net_add_pair(self.handle, rx.handle, tx.handle, rx.vring.call_fd, tx.vring.call_fd)
            _check(rc)
        self.err_fds = [driver.vring.err_fd for driver in self._drivers]

    def run(self, mode: int, runtime: float | None, frames: int | None) -> Any:
        """Run one phase to its end, in the calling thread. Gives C's counters."""
        load = ffi.new("struct bench_net_load *", (mode, int((runtime or 0) * _NS), frames or 0))
        result = ffi.new("struct bench_net_result *")
        _check(lib.bench_net_run(self.handle, load, result))
        return result

    def stop(self) -> None:
        """Make `run` raise at once. From any thread."""
        lib.bench_net_stop(self.handle)

    def close(self) -> None:
        """Free everything but the shared memory."""
        ffi.release(self.handle)
        for driver in self._drivers:
            driver.close()


def _check(rc: int) -> None:
    if rc == -errno.ETIMEDOUT:
        raise KpollError("the back-end has been silent: no frame comes back, or in, and none goes out")
    if rc == -errno.EPROTO:
        raise KpollError("the back-end returned a buffer that it was not given")
    if rc == -errno.EBADMSG:
        raise KpollError("the back-end filled a buffer with what is no frame")
    if rc < 0:
        raise KpollError(f"load generator: {os.strerror(-rc)}")


def _idle_cpu(pid: int, seconds: float) -> float | None:
    """Measure what share of a CPU the process takes when there is nothing to do; None: not asked for, or not known."""
    if not seconds:
        return None
    time.sleep(_SETTLE_S)
    start, before = time.monotonic_ns(), process_cpu_ns(pid)
    time.sleep(seconds)
    after, end = process_cpu_ns(pid), time.monotonic_ns()
    return None if before is None or after is None else (after - before) / (end - start)


def _phases(bench: _Bench, load: NetLoad, pid: int) -> NetReport:
    """Warm up, measure, rest; in the calling thread."""
    if load.cpu is not None:
        os.sched_setaffinity(0, {load.cpu})
    mode = _MODE[load.mode]
    if load.warmup:
        bench.run(mode, load.warmup, None)
    before = process_cpu_ns(pid)
    result = bench.run(mode, load.runtime, load.frames)
    after = process_cpu_ns(pid)
    if not (result.sent if load.mode == "tx" else result.received):
        raise KpollError(f"not one frame got through in {load.runtime} s")
    return NetReport(
        mode=load.mode,
        size=load.size,
        seconds=result.elapsed_ns / _NS,
        sent=result.sent,
        received=result.received,
        received_bytes=result.bytes,
        lost=None if load.mode == "tx" else result.lost,
        foreign=result.foreign,
        mismatches=result.mismatches,
        first_mismatch=result.mismatch_number if result.mismatches else None,
        rtt=RoundTrip.of(result) if load.mode == "echo" else None,
        backend_cpu_ns=None if before is None or after is None else after - before,
        idle_cpu=_idle_cpu(pid, load.idle),
        kicks=result.kicks,
        calls=result.calls,
    )


def run_net(where: str | Path | socket.socket, load: NetLoad) -> NetReport:
    """Connect to a vhost-user-net back-end, put a load on it, and report.

    Args:
        where: Path of its socket, or a connected one.
        load: What to do.

    Raises:
        KpollError: Nobody answers there, it can't do what `load` asks for, or broke down.
        KeyboardInterrupt: Ctrl-C; the load has stopped.

    """
    try:
        with Frontend(where) as frontend:
            frontend.negotiate(load.features)
            _check_fits(load, frontend)
            bench = _Bench(frontend, load)
            try:
                return watched(frontend, bench, lambda: _phases(bench, load, peer_pid(frontend.sock)))
            finally:
                bench.close()
    except FrontendError as e:
        raise KpollError(f"{where}: {e}") from e
    except OSError as e:
        raise KpollError(f"{where}: {os_reason(e)}; is a vhost-user-net back-end listening there?") from e
