"""The network card as vhost-user sees it (virtio 1.2 §5.1): negotiation here, frames in C."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from kpoll.vhost._core import ffi, lib
from kpoll.vhost.device import DeviceError
from kpoll.vhost.features import ProtocolFeature, VirtioFeature

from .errors import KpollError, os_reason
from .net_config import MTU_MAX, MTU_MIN, NetFeature, NetStatus, config_space, device_features, usable_offloads
from .net_errors import PortErrors
from .net_options import mac_text
from .net_queue import NetQueue
from .net_rarp import rarp_frame, send_twice
from .service import WorkerDevice
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import IntFlag

    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.device import VringConfig

    from .net_options import NetConfig
    from .net_ports import Ports

# Without either, headers have no num_buffers (§5.1.6.1): 10 bytes, where net_hdr.h has 12.
_WHOLE_HEADERS: Final = VirtioFeature.VIRTIO_F_VERSION_1 | NetFeature.VIRTIO_NET_F_MRG_RXBUF


class NetDevice(WorkerDevice):
    """A card with a pair of virtqueues, and a worker, per port.

    Made by `open_device`, which also frees it.

    Attributes:
        ports: What is behind it.
        errors: Why that drops frames.
        link_up: Whether the guest is told that its cable is in.
        mtu: What the guest is told, in bytes; None: nothing.

    """

    queues: tuple[NetQueue, ...]

    def __init__(
        self,
        config: NetConfig,
        ports: Ports,
        queues: tuple[NetQueue, ...],
        workers: tuple[Worker, ...],
        log: FilteringBoundLogger,
    ) -> None:
        """Put the parts together; queues 2n and 2n + 1 already belong to worker n."""
        self.ports = ports
        self.errors = PortErrors(ports.handles, log)
        self.queues = queues
        self.workers = workers
        self.num_queues = len(queues)
        self.queue_size_max = int(lib.VIRTQ_SIZE_MAX)
        self.link_up = True
        self.mtu = ports.mtu if config.mtu is None else config.mtu
        self._config = config
        self._log = log
        self._receiving: frozenset[int] | None = None  # pairs whose rx vring runs; None: nobody has said yet
        self._deal_refused = False
        self._features = device_features(offloads=ports.offloads, mtu=self.mtu, pairs=config.num_queue_pairs)

    def features(self) -> int:
        """Give the feature bits on offer."""
        return self._features

    def feature_names(self) -> type[IntFlag]:
        """Give the card's feature bits by name."""
        return NetFeature

    def withheld_protocol_features(self) -> int:
        """Keep several pairs without memory slots.

        QEMU has a vhost device for each pair behind one connection. It sends a memory table once, but a region as often
        as there are pairs (QEMU 7.2), and the pairs start only if all are taken.
        """
        return ProtocolFeature.CONFIGURE_MEM_SLOTS if self._config.num_queue_pairs > 1 else 0

    def no_such_vring(self, index: int) -> str:
        """Name the option: QEMU compares its queues=, which are pairs, with our number of vrings, and finds enough."""
        pairs = self._config.num_queue_pairs
        return f"{super().no_such_vring(index)}: the front-end has more queue pairs than --num-queue-pairs {pairs}"

    def get_config(self, offset: int, size: int) -> bytes:
        """Read struct virtio_net_config."""
        status = NetStatus.VIRTIO_NET_S_LINK_UP if self.link_up else NetStatus(0)
        space = config_space(mac=self._config.mac, status=status, pairs=self._config.num_queue_pairs, mtu=self.mtu)
        return space[offset : offset + size]

    def set_features(self, features: int) -> None:
        """Have the tap leave to the guest what it negotiated, and nothing else. Raises OSError."""
        if self.ports.tap is not None:
            self.ports.tap.set_features(usable_offloads(features))

    def runs_disabled(self, index: int) -> bool:
        """Discard what a disabled tx queue is given, as vhost-user has it."""
        return index % 2 == 1

    async def start_vring(self, vring: VringConfig) -> None:
        """Serve a vring whose driver writes headers as we read them; otherwise like every device's.

        Raises OSError; DeviceError also for a legacy driver without VIRTIO_NET_F_MRG_RXBUF.
        """
        if not vring.features & _WHOLE_HEADERS:
            raise DeviceError("a legacy driver without VIRTIO_NET_F_MRG_RXBUF: its headers of 10 bytes aren't served")
        await super().start_vring(vring)

    async def stop_vring(self, index: int) -> int:
        """As of every device; nothing of a guest that has left is untold."""
        base = await super().stop_vring(index)
        self.errors.tell()
        return base

    def set_running(self, running: frozenset[int]) -> None:
        """Have nothing dealt to a pair whose rx vring doesn't run."""
        receiving = frozenset(index // 2 for index in running if index % 2 == 0)
        if receiving != self._receiving:
            self._receiving = receiving
            self.deal()

    def deal(self) -> None:
        """Have a tap deal frames to those pairs alone that receive; also to be called when it was attached again."""
        tap = self.ports.tap
        if tap is None:
            return
        try:
            tap.deal_to(self._receiving or frozenset())
        except OSError as error:
            if not self._deal_refused:
                self._log.warning("queues_not_set", interface=tap.name, error=os_reason(error))
            self._deal_refused = True

    def protocol_features(self) -> int:
        """Take an MTU from the front-end; announce the guest where the back-end has a way to."""
        return ProtocolFeature.MTU | (ProtocolFeature.RARP if self.ports.send is not None else 0)

    def set_mtu(self, mtu: int) -> None:
        """Agree to an MTU that the front-end tells the guest. Raises DeviceError."""
        most = MTU_MAX if self.mtu is None else self.mtu
        if not MTU_MIN <= mtu <= most:
            raise DeviceError(
                f"an MTU of {mtu}, not {MTU_MIN} to {most}: give QEMU that as host_mtu=, or kpoll another --mtu"
            )

    def send_rarp(self, mac: bytes) -> None:
        """Announce the guest as far as that can be done now. Raises DeviceError when that is no card's address.

        One that isn't announced is found by its next frame: no reason to take its card away.
        """
        if mac[0] & 1 or self.ports.send is None:
            raise DeviceError(f"{mac.hex(':')} can't be announced")
        try:
            send_twice(self.ports.send, rarp_frame(mac))
        except OSError as error:
            self._log.warning("announce_failed", mac=mac_text(mac), error=os_reason(error))

    async def plug(self, handles: tuple[Any, ...]) -> None:
        """Have the workers go on with other ports; returns when none of them uses the old ones any more.

        Raises KpollError when a worker has ended or can't wait for its port; then some have new ones, and some don't.
        """
        for pair, (worker, queue, port) in enumerate(zip(self.workers, self.queues[::2], handles, strict=True)):
            lib.net_lane_plug(queue.lane, port)
            try:
                await worker.join_lane(queue.lane)
            except OSError as error:
                reason = f"worker {worker.index} can't take its port: {os_reason(error)}"
                raise KpollError(f"--backend {self._config.backend}: {reason}") from error
            self.errors.plugged(pair, port)

    async def unplug(self) -> None:
        """Take the cable out, until `plug`: what the guest sends is refused, and nobody looks at the old ports.

        Raises KpollError as `plug` does.
        """
        await self.plug((lib.net_port_none(),) * len(self.workers))

    async def set_link(self, *, up: bool) -> None:
        """Tell the guest that its cable was put in or taken out."""
        self.errors.tell()
        if up != self.link_up:
            self.link_up = up
            await self.config_changed()

    async def reset(self) -> None:
        """Forget what was negotiated."""
        await self.stop_all()
        self.set_features(0)


@contextmanager
def open_device(config: NetConfig, ports: Ports, log: FilteringBoundLogger) -> Iterator[NetDevice]:
    """Make a worker, a lane and two queues for each port; free them on leaving, when no worker runs any more.

    Raises KpollError when the host has no room for them.
    """
    with ExitStack() as stack:
        workers: list[Worker] = []
        queues: list[NetQueue] = []
        for pair, port in enumerate(ports.handles):
            out = ffi.new("struct net_lane **")
            error = -lib.net_lane_create(out, port)
            if error:
                raise KpollError(f"a queue pair can't be made: {os.strerror(error)}")
            stack.callback(lib.net_lane_destroy, out[0])
            lane = lib.net_lane_base(out[0])
            worker = Worker(pair, config.poll, None, log)
            stack.callback(worker.close)
            worker.add_lane(lane)
            workers.append(worker)
            for index in (2 * pair, 2 * pair + 1):
                handle = lib.net_queue_create(index)
                if handle == ffi.NULL:
                    raise KpollError("out of memory for virtqueues: use a smaller --num-queue-pairs")
                stack.callback(lib.net_queue_destroy, handle)
                queues.append(NetQueue(index, handle, lane, worker))
        yield NetDevice(config, ports, tuple(queues), tuple(workers), log)
