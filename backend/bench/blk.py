"""One benchmark run against a vhost-user-blk socket: connect, set queues up, generate the load, count.

The load itself is C (backend/c/bench_blk.c), in one thread; this side prepares it, watches the connection meanwhile,
and reads what the back-end's process cost. It is a run in phases, each of which starts and ends with nothing in
flight: lay out (verify only), warm up, measure, read back (verify only).
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from kpoll.backend.bench.report import Latency, Report
from kpoll.backend.bench.watch import peer_pid, process_cpu_ns, watched
from kpoll.backend.blk_config import BlkFeature
from kpoll.backend.config import SECTOR
from kpoll.backend.errors import KpollError, UsageError, os_reason
from kpoll.vhost._core import ffi, lib
from kpoll.vhost.driver import Driver, lay_out
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from kpoll.vhost.frontend import Memory

type_rw = Literal["randread", "randwrite", "randrw", "read", "write"]
type_wait = Literal["poll", "sleep"]

_RW: Final[dict[str, int]] = {
    "read": lib.BENCH_READ,
    "write": lib.BENCH_WRITE,
    "randread": lib.BENCH_RANDREAD,
    "randwrite": lib.BENCH_RANDWRITE,
    "randrw": lib.BENCH_RANDRW,
}
_CONFIG_BYTES: Final = 60  # of struct virtio_blk_config: all that QEMU 7.2 knows, so every back-end answers to it
_SIZE_MIN: Final = 128  # entries of a queue, QEMU's default
_SIZE_MAX: Final = 32768  # virtio 1.2 §2.7
_AREA_MAX: Final = 16 << 30  # bytes of request memory: more is a slip of the finger
_QUEUES_MAX: Final[int] = lib.BENCH_QUEUES_MAX
_PAGE: Final = 4096
_REGION: Final = 2 << 20  # SPDK registers guest memory in huge pages' worth
_VERIFY_SIZE: Final = 1 << 30  # bytes to verify unless told: a whole disk may take hours
THINK_US_MAX: Final = 1_000_000  # a longer pause is no load
_FOREVER: Final = 1e9  # seconds: 30 years, and what a u64 of nanoseconds holds
_NS: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class BlkLoad:
    """What to do to the disk.

    Attributes:
        rw: Direction and order; `randrw` reads and writes half each.
        block_size: Bytes of a request, a multiple of 512.
        iodepth: Requests in flight per queue.
        queues: Virtqueues, all driven by one thread.
        runtime: Seconds to measure; None: until `requests` are done.
        warmup: Seconds of the same load before the measurement, not counted.
        requests: Requests to measure at most; None: until `runtime` is over.
        wait: `poll` spins on the used rings, `sleep` waits for interrupts.
        packed: Packed virtqueues.
        event_idx: Negotiate VIRTIO_F_EVENT_IDX if offered.
        indirect: Negotiate VIRTIO_F_INDIRECT_DESC if offered.
        verify: Fill the range first, check every read, read all back at the end.
        size: Bytes from the disk's start that may be touched; None: all of it, or its first GiB to verify.
        cpu: CPU for the load's thread; None: the scheduler chooses.
        think_us: Mean time from answers to the requests that replace them, microseconds.
        seed: Of offsets, contents and think times.
        stall: Seconds without an answer after which the back-end counts as hung.

    """

    rw: type_rw = "randread"
    block_size: int = 4096
    iodepth: int = 1
    queues: int = 1
    runtime: float | None = 5.0
    warmup: float = 0.5
    requests: int | None = None
    wait: type_wait = "poll"
    packed: bool = False
    event_idx: bool = True
    indirect: bool = True
    verify: bool = False
    size: int | None = None
    cpu: int | None = None
    think_us: int = 0
    seed: int = 1
    stall: float = 10.0

    def __post_init__(self) -> None:
        """Check what can be checked without a disk. Raises UsageError."""
        cpus = sorted(os.sched_getaffinity(0))
        memory = self.block_size * self.iodepth * self.queues
        wrong = {
            f"--rw {self.rw}: give one of {', '.join(get_args(type_rw))}": self.rw not in get_args(type_rw),
            f"--bs {self.block_size}: give a multiple of {SECTOR} bytes below 4 GiB, such as 4k": (
                not SECTOR <= self.block_size < 1 << 32 or self.block_size % SECTOR
            ),
            f"--iodepth {self.iodepth}: give 1 to {_SIZE_MAX}": not 1 <= self.iodepth <= _SIZE_MAX,
            f"--queues {self.queues}: give 1 to {_QUEUES_MAX}": not 1 <= self.queues <= _QUEUES_MAX,
            "--bs times --iodepth times --queues is more than 16 GiB of memory: give less": memory > _AREA_MAX,
            "a run without an end: give --runtime or --requests": self.runtime is None and self.requests is None,
            f"--runtime {self.runtime}: give seconds above 0": self.runtime is not None
            and not 0 < self.runtime < _FOREVER,
            f"--warmup {self.warmup}: give seconds, 0 for none": not 0 <= self.warmup < _FOREVER,
            f"--requests {self.requests}: give at least 1": self.requests is not None
            and not 0 < self.requests < 1 << 63,
            f"--size {self.size}: give at least one block of {self.block_size} bytes": (
                self.size is not None and self.size < self.block_size
            ),
            f"--think-us {self.think_us}: give 0 to {THINK_US_MAX}": not 0 <= self.think_us <= THINK_US_MAX,
            f"--cpu {self.cpu}: this process may run on {cpus} only": self.cpu is not None and self.cpu not in cpus,
        }
        for message, holds in wrong.items():
            if holds:
                raise UsageError(message)

    @property
    def writes(self) -> bool:
        """Whether the disk's contents change."""
        return self.verify or self.rw in ("randwrite", "randrw", "write")

    def span(self, disk: int) -> int:
        """How many bytes of a disk of this size are used, from its start."""
        return self.size or (min(disk, _VERIFY_SIZE) if self.verify else disk)

    @property
    def features(self) -> int:
        """The virtio features to acknowledge where they are offered."""
        wanted: int = VirtioFeature.VIRTIO_F_VERSION_1 | BlkFeature.VIRTIO_BLK_F_SIZE_MAX
        wanted |= BlkFeature.VIRTIO_BLK_F_SEG_MAX | BlkFeature.VIRTIO_BLK_F_BLK_SIZE | BlkFeature.VIRTIO_BLK_F_FLUSH
        wanted |= BlkFeature.VIRTIO_BLK_F_RO | BlkFeature.VIRTIO_BLK_F_MQ
        wanted |= VirtioFeature.VIRTIO_F_EVENT_IDX if self.event_idx else 0
        wanted |= VirtioFeature.VIRTIO_F_INDIRECT_DESC if self.indirect else 0
        return wanted | (VirtioFeature.VIRTIO_F_RING_PACKED if self.packed else 0)


@dataclass(frozen=True)
class _Disk:
    """What the back-end says of its disk; bytes."""

    size: int
    segment_max: int
    segments: int
    block: int
    read_only: bool


def _disk(frontend: Frontend) -> _Disk:
    config = frontend.get_config(0, _CONFIG_BYTES)
    capacity, size_max, seg_max, _, block = struct.unpack_from("<QIIII", config)
    has = BlkFeature(frontend.acked_features & sum(BlkFeature))
    return _Disk(
        size=capacity * SECTOR,
        segment_max=size_max // SECTOR * SECTOR if BlkFeature.VIRTIO_BLK_F_SIZE_MAX in has and size_max else 1 << 31,
        segments=seg_max if BlkFeature.VIRTIO_BLK_F_SEG_MAX in has and seg_max else 1,
        block=block if BlkFeature.VIRTIO_BLK_F_BLK_SIZE in has and block else SECTOR,
        read_only=BlkFeature.VIRTIO_BLK_F_RO in has,
    )


def _check_fits(load: BlkLoad, disk: _Disk, queues: int) -> None:
    """Compare what was asked for with what is there. Raises KpollError."""
    if load.queues > queues:
        raise KpollError(f"--queues {load.queues}: the back-end offers {queues}")
    if load.writes and disk.read_only:
        raise KpollError("the disk is read-only: give --rw read or randread, without --verify")
    if load.block_size % disk.block:
        raise KpollError(f"--bs {load.block_size}: the disk's blocks have {disk.block} bytes, give a multiple")
    if (load.size or 0) > disk.size:
        raise KpollError(f"--size {load.size}: the disk has {disk.size} bytes")
    if disk.segment_max == 0 or -(-load.block_size // disk.segment_max) > disk.segments:
        raise KpollError(f"--bs {load.block_size}: the disk takes {disk.segments} segments of {disk.segment_max} bytes")
    if disk.size < load.block_size:
        raise KpollError(f"the disk has {disk.size} bytes: that is less than one block of --bs {load.block_size}")
    if load.verify and load.span(disk.size) // load.block_size <= load.queues * load.iodepth:
        raise KpollError("--verify needs more blocks than requests in flight: give a larger --size or less --iodepth")


def _queue_size(load: BlkLoad, chain: int, features: int) -> int:
    """Room for everything in flight, a power of two: packed rings take any number, but split ones don't."""
    needed = load.iodepth * (1 if features & VirtioFeature.VIRTIO_F_INDIRECT_DESC else chain)
    size = max(_SIZE_MIN, 1 << (max(needed, chain) - 1).bit_length())
    if size > _SIZE_MAX:
        raise KpollError(f"--iodepth {load.iodepth} needs {needed} descriptors, a queue has {_SIZE_MAX} at most")
    return size


class _Bench:
    """The C load generator with its queues and memory, over a connected front-end."""

    def __init__(self, frontend: Frontend, load: BlkLoad, disk: _Disk) -> None:
        config = ffi.new("struct bench_config *")
        config.queues = load.queues
        config.iodepth = load.iodepth
        config.block_size = load.block_size
        config.segment_max = min(disk.segment_max, 1 << 31)
        config.blocks = load.span(disk.size) // load.block_size
        config.seed = load.seed
        config.stall_ns = int(load.stall * _NS)
        config.verify = load.verify
        config.sleep = load.wait == "sleep"
        chain = lib.bench_chain_max(config)
        size = _queue_size(load, chain, frontend.acked_features)
        area = lib.bench_area_bytes(config)
        ring = -(-lay_out(size, frontend.acked_features, chain).end // _PAGE) * _PAGE
        memory: Memory = frontend.add_memory(-(-(area + ring * load.queues) // _REGION) * _REGION)
        self._bytes = ffi.from_buffer("uint8_t[]", memory.mmap)
        config.area = self._bytes
        config.area_gpa = memory.gpa
        self.blocks = int(config.blocks)
        out = ffi.new("struct bench **")
        _check(lib.bench_create(out, config), "load generator")
        self._drivers = [
            Driver(
                frontend,
                index,
                size=size,
                chain_max=chain,
                memory=memory,
                offset=area + ring * index,
            )
            for index in range(load.queues)
        ]
        self.handle = ffi.gc(out[0], lib.bench_destroy)
        for driver in self._drivers:
            _check(lib.bench_add_queue(self.handle, driver.handle, driver.vring.call_fd), "load generator")
        self.err_fds = [driver.vring.err_fd for driver in self._drivers]

    def run(self, rw: int, runtime: float | None, requests: int | None, think_us: int = 0) -> Any:
        """Run one phase to its end, in the calling thread. Gives C's counters."""
        load = ffi.new("struct bench_load *", (rw, int((runtime or 0) * _NS), requests or 0, think_us * 1000))
        result = ffi.new("struct bench_result *")
        _check(lib.bench_run(self.handle, load, result), "load generator")
        return result

    def stop(self) -> None:
        """Make `run` raise at once. From any thread."""
        lib.bench_stop(self.handle)

    def close(self) -> None:
        """Free everything but the shared memory."""
        ffi.release(self.handle)
        for driver in self._drivers:
            driver.close()


def _check(rc: int, what: str) -> None:
    if rc == -errno.ETIMEDOUT:
        raise KpollError("the back-end does not answer: requests are in flight, and nothing comes back")
    if rc == -errno.EPROTO:
        raise KpollError("the back-end returned a request that it was not given")
    if rc < 0:
        raise KpollError(f"{what}: {os.strerror(-rc)}")


def _phases(bench: _Bench, load: BlkLoad, pid: int) -> Report:
    """Run all phases, in the calling thread."""
    if load.cpu is not None:
        os.sched_setaffinity(0, {load.cpu})
    rw = _RW[load.rw]
    checks = []
    if load.verify:
        filled = bench.run(lib.BENCH_WRITE, None, bench.blocks)
        if filled.errors:
            raise KpollError(f"{filled.errors} of {bench.blocks} writes failed while laying the disk out")
    if load.warmup:
        checks.append(bench.run(rw, load.warmup, None, load.think_us))
    before = process_cpu_ns(pid)
    result = bench.run(rw, load.runtime, load.requests, load.think_us)
    after = process_cpu_ns(pid)
    checks.append(result)
    if load.verify:
        checks.append(bench.run(lib.BENCH_READ, None, bench.blocks))
    bad = next((check for check in checks if check.mismatches), None)
    return Report(
        seconds=result.elapsed_ns / _NS,
        reads=result.reads,
        writes=result.writes,
        errors=sum(check.errors for check in checks),
        block_size=load.block_size,
        latency=Latency.of(result),
        backend_cpu_ns=None if before is None or after is None else after - before,
        kicks=result.kicks,
        calls=result.calls,
        checked=sum(check.checked for check in checks) if load.verify else None,
        mismatches=sum(check.mismatches for check in checks) if load.verify else None,
        first_mismatch=None if bad is None else bad.mismatch_block * load.block_size + bad.mismatch_offset,
    )


def _silent(_message: str) -> None:
    """Tell nobody."""


def run_blk(where: str | Path | socket.socket, load: BlkLoad, progress: Callable[[str], None] = _silent) -> Report:
    """Connect to a vhost-user-blk back-end, put a load on it, and report.

    Args:
        where: Path of its socket, or a connected one.
        load: What to do.
        progress: Told in one line what takes long before the measurement begins.

    Raises:
        KpollError: Nobody answers there, it isn't a block device, can't do what `load` asks for, or broke down.
        KeyboardInterrupt: Ctrl-C; the load has stopped.

    """
    try:
        with Frontend(where) as frontend:
            frontend.negotiate(load.features)
            if load.packed and not frontend.acked_features & VirtioFeature.VIRTIO_F_RING_PACKED:
                raise KpollError("--packed: the back-end offers no packed virtqueues")
            disk = _disk(frontend)
            _check_fits(load, disk, frontend.queue_num())
            bench = _Bench(frontend, load, disk)
            try:
                if load.verify:
                    filled = bench.blocks * load.block_size / (1 << 20)
                    progress(f"filling {filled:,.1f} MiB of the disk's {disk.size / (1 << 20):,.1f} MiB with a pattern")
                return watched(frontend, bench, lambda: _phases(bench, load, peer_pid(frontend.sock)))
            finally:
                bench.close()
    except FrontendError as e:
        raise KpollError(f"{where}: {e}") from e
    except OSError as e:
        raise KpollError(f"{where}: {os_reason(e)}; is a vhost-user-blk back-end listening there?") from e
