"""The block device as vhost-user sees it (virtio 1.2 §5.2): negotiation here, requests in C."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from kpoll.vhost._core import ffi, lib
from kpoll.vhost.device import DeviceError

from .blk_config import CAPACITY_SIZE, WRITEBACK_OFFSET, BlkFeature, config_space, device_features, writes_back
from .blk_pins import GuestPins
from .blk_queue import BlkQueue
from .engines import candidates, open_lanes
from .errors import KpollError
from .iopoll import Iopoll, choose_iopoll
from .service import WorkerDevice, nothing
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from enum import IntFlag

    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.device import SessionHandle, VringConfig
    from kpoll.vhost.memory import MemoryTable

    from .blk_disk import Disk
    from .config import BlkConfig
    from .engines import Engine


class BlkDevice(WorkerDevice):
    """A disk with `num_queues` virtqueues, spread over the workers in turn.

    Made by `open_device`, which also frees it.

    Attributes:
        disk: What is behind it.
        engine: How its I/O is done.
        iopoll: Whether completions are polled for, and why (not).
        pins: Registers guest memory with it, where that was asked for.
        lifetime_used: Called when a driver may begin to ask how worn the disk is (GET_LIFETIME).

    """

    queues: tuple[BlkQueue, ...]

    def __init__(
        self,
        disk: Disk,
        engine: Engine,
        iopoll: Iopoll,
        pins: GuestPins | None,
        queues: tuple[BlkQueue, ...],
        workers: tuple[Worker, ...],
        log: FilteringBoundLogger,
    ) -> None:
        """Put the parts together; queue i already belongs to worker i modulo their number."""
        self.disk = disk
        self.engine = engine
        self.iopoll = iopoll
        self.pins = pins
        self.queues = queues
        self.workers = workers
        self.num_queues = len(queues)
        self.queue_size_max = int(lib.VIRTQ_SIZE_MAX)
        self.lifetime_used: Callable[[], None] = nothing
        self._log = log
        self._features = device_features(disk.limits, lifetime=bool(disk.lifetime))
        self._negotiated = 0
        # Virtio 1.2 §5.2.5: after reset the mode may be either, and says so. A driver that reads writethrough leaves
        # its flushes out: where there is no cache they would make nothing safer. Should the device get one all the
        # same (its administrator, a controller that comes back), each write is still durable: it carries RWF_DSYNC,
        # which the kernel drops for a device without a cache (FUA), as it does a flush.
        self._writeback_reset = int(disk.limits.write_cache)
        self._writeback = self._writeback_reset
        self._writeback_known = False  # to the guest of this session
        self._capacity_known: int | None = None  # as this session's front-end last read it
        self._started = False  # a vring, in this session
        self._cached = False  # writes may have been answered that aren't durable

    def attach(self, session: SessionHandle | None) -> None:
        """Begin with a new front-end, whose guest may have been running for long, or end with one.

        QEMU tells a back-end that it reconnects to neither the size nor the cache mode that its guest believes in, and
        reads the configuration only before the guest first starts. So what it has not read by then it doesn't know.

        A disk that is stopped (--on-error stop) isn't any more: nothing waits since the last one left, and who comes
        now would wait for a SIGHUP that nobody sends. If the disk still fails it is stopped, and that is told, anew.
        """
        super().attach(session)
        if session is not None:
            if self.disk.dev.stopped:
                lib.blk_dev_resume(self.disk.dev)
            self._writeback = self._writeback_reset
            self._writeback_known = self._started = False
            self._capacity_known = None

    def features(self) -> int:
        """Give the feature bits on offer."""
        return self._features

    @property
    def lifetime_in_use(self) -> bool:
        """Whether the driver may ask how worn the disk is."""
        return self.connected and bool(self._negotiated & BlkFeature.VIRTIO_BLK_F_LIFETIME)

    def feature_names(self) -> type[IntFlag]:
        """Give the block device's feature bits by name."""
        return BlkFeature

    def get_config(self, offset: int, size: int) -> bytes:
        """Read struct virtio_blk_config."""
        if offset == 0 and size >= CAPACITY_SIZE:
            self._capacity_known = self.disk.capacity
        if offset <= WRITEBACK_OFFSET < offset + size and not self._started:
            self._writeback_known = True
            self._apply_cache_mode()
        return self._config()[offset : offset + size]

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Write struct virtio_blk_config: `writeback` may change, all else has to stay as it is.

        A front-end may write one byte or the whole space (as it does on migration), so what counts is the outcome.
        Any value but 0 means writeback, as QEMU has it; a driver that writes the field without having negotiated
        CONFIG_WCE breaks a rule (virtio 1.2 §5.2.5.1) but nothing else, since the field then counts for nothing.

        Raises DeviceError when anything else would change.
        """
        del flags
        wanted = bytearray(self._config())
        if offset + len(data) > len(wanted):
            raise DeviceError("write beyond the configuration space")
        wanted[offset : offset + len(data)] = data
        writeback = wanted[WRITEBACK_OFFSET]
        if wanted != self._config(writeback):
            raise DeviceError("only writeback may be written in the configuration space")
        self._writeback = int(writeback != 0)
        self._writeback_known = True
        self._apply_cache_mode()

    def set_features(self, features: int) -> None:
        """Take note of what was negotiated; it decides the cache mode (virtio 1.2 §5.2.5)."""
        if features & ~self._negotiated & BlkFeature.VIRTIO_BLK_F_LIFETIME:
            self.lifetime_used()
        self._negotiated = features
        if features & BlkFeature.VIRTIO_BLK_F_CONFIG_WCE and not features & BlkFeature.VIRTIO_BLK_F_FLUSH:
            self._writeback = 0  # §5.2.5.2: a driver that can't flush finds the cache off
        self._apply_cache_mode()

    async def settle(self) -> None:
        """Make durable what was answered under writeback, if that has ended: nobody is going to flush it any more.

        Raises OSError when the disk fails; what is cached stays owed.
        """
        if self._cached and not self.disk.write_back:
            await trio.to_thread.run_sync(self.disk.sync)
            self._cached = False

    async def set_memory(self, memory: MemoryTable | None) -> None:
        """Have it pinned, if that was asked for."""
        if self.pins is not None:
            await self.pins.follow(memory)

    async def reopened(self) -> None:
        """Have the engines use what is behind the disk's descriptor now.

        Raises as Worker.join_lane() does, once all workers were asked; may be called again then.
        """
        self.disk.reopened()
        failed = None
        for lane, worker in {queue.lane: queue.worker for queue in self.queues}.items():
            try:
                await worker.join_lane(lane)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    async def start_vring(self, vring: VringConfig) -> None:
        """Start serving a queue; the guest learns of a size that it can't know yet."""
        await super().start_vring(vring)
        self._started = True
        if self._capacity_known != self.disk.capacity:
            # QEMU drops the news of a change while its device isn't started: paused, in firmware, reconnecting.
            await self.config_changed()

    async def reset(self) -> None:
        """Forget what was negotiated, but not the cache mode: QEMU resets us and doesn't tell its guest."""
        await self.stop_all()
        self.set_features(0)

    def _apply_cache_mode(self) -> None:
        write_back = writes_back(self._negotiated, self._writeback if self._writeback_known else 0)
        if write_back != self.disk.write_back and self.connected:
            self._log.info("cache_mode", write_back=write_back)
        self.disk.write_back = write_back
        self._cached |= write_back

    def _config(self, writeback: int | None = None) -> bytes:
        return config_space(
            self.disk.limits,
            capacity=self.disk.capacity,
            writeback=self._writeback if writeback is None else writeback,
            num_queues=self.num_queues,
            seg_max=lib.BLK_SEG_MAX,
            ranges_max=lib.BLK_RANGES_MAX,
        )


def _make_queue(disk: Disk, index: int, lane: Any, worker: Worker, stack: ExitStack) -> BlkQueue:
    handle = lib.blk_queue_create(disk.dev, index)
    if handle == ffi.NULL:
        raise KpollError("out of memory for virtqueues: use a smaller --num-queues")
    stack.callback(lib.blk_queue_destroy, handle)
    return BlkQueue(index, handle, lib.blk_lane_base(lane), worker)


@contextmanager
def open_device(config: BlkConfig, disk: Disk, log: FilteringBoundLogger) -> Iterator[BlkDevice]:
    """Make the workers, their shares of the disk and the queues; free them on leaving, when no worker runs any more.

    Raises KpollError when the host has no room for them.
    """
    with ExitStack() as stack:
        iopoll = choose_iopoll(
            config,
            block_device=disk.limits.block_device,
            direct=disk.direct,
            polls=disk.polls,
            nowait=disk.nowait,
        )
        engines = candidates(
            config.engine,
            config.iopoll,
            direct=disk.direct,
            polls=iopoll.use,
            kernel_waits=config.poll.strategy == "kernel",
            pins=config.pin_guest_memory,
        )
        engine, lanes = stack.enter_context(open_lanes(disk.dev, engines, config.workers))
        if iopoll.use and not engine.iopoll:
            iopoll = Iopoll(use=False, why=f"{iopoll.why}, but no engine here can poll them: see engine_why")
        pins = GuestPins(lanes, log) if config.pin_guest_memory else None
        workers: list[Worker] = []
        for index, lane in enumerate(lanes):
            worker = Worker(index, config.poll, config.cpus[index] if config.cpus else None, log)
            stack.callback(worker.close)
            worker.add_lane(lib.blk_lane_base(lane))
            workers.append(worker)
        queues = [
            _make_queue(disk, index, lanes[index % len(lanes)], workers[index % len(workers)], stack)
            for index in range(config.num_queues)
        ]
        yield BlkDevice(disk, engine, iopoll, pins, tuple(queues), tuple(workers), log)
