"""All vrings of a session, and the one place that starts and stops them on the device.

Whatever a running vring depends on - its addresses, its kick descriptor, the negotiated features, guest memory - is
only ever changed inside `Vrings.paused`: the vrings concerned are stopped (the device has drained them and touches
nothing any more), the change is made, and those that are ready go on from where they were.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from kpoll.vhost.device import DeviceError, VringConfig
from kpoll.vhost.features import VirtioFeature, without
from kpoll.vhost.payloads import MessageError
from kpoll.vhost.vring import Vring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.device import Device
    from kpoll.vhost.memory import MemoryTable

VRINGS_MAX = 256
"""What the 8-bit vring index of SET_VRING_KICK can name."""


class Vrings:
    """The vrings of one session.

    Attributes:
        features: Negotiated virtio features, with VHOST_USER_F_PROTOCOL_FEATURES.
        memory: Guest memory, once there is any.

    """

    def __init__(self, device: Device, log: FilteringBoundLogger) -> None:
        """Make the device's vrings, all stopped."""
        if not 1 <= device.num_queues <= VRINGS_MAX:
            raise ValueError(f"a vhost-user device has 1 to {VRINGS_MAX} queues, not {device.num_queues}")
        self._device = device
        self._log = log
        self._vrings = Vring.make(device.num_queues)
        self._running: frozenset[int] = frozenset()
        self.features = 0
        self.memory: MemoryTable | None = None

    def __iter__(self) -> Iterator[Vring]:
        """Iterate in order of index."""
        return iter(self._vrings)

    def __getitem__(self, index: int) -> Vring:
        """Find the vring that a message names. Raises MessageError when the device has none of that number."""
        if index >= len(self._vrings):
            raise MessageError(self._device.no_such_vring(index))
        return self._vrings[index]

    def close(self) -> None:
        """Give all descriptors back. No vring may run any more."""
        for vring in self._vrings:
            vring.close()

    async def stop(self, vring: Vring) -> None:
        """Stop a vring, if it runs: its base is up to date and nothing touches guest memory when this returns."""
        with self._changing():
            await self._stop(vring)

    async def stop_all(self) -> None:
        """Stop every vring that runs."""
        with self._changing():
            await self._stop_all()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Tell the device at the end which vrings run, if they are others than those that it was told last."""
        try:
            yield
        finally:
            running = frozenset(vring.index for vring in self._vrings if vring.running)
            if running != self._running:
                self._running = running
                self._device.set_running(running)

    async def _stop(self, vring: Vring) -> None:
        if not vring.running:
            return
        with trio.CancelScope(shield=True):
            vring.base = await self._device.stop_vring(vring.index)
        vring.running = False
        self._log.info("vring_stopped", queue=vring.index, base=vring.base)

    async def _stop_all(self) -> None:
        for vring in self._vrings:
            await self._stop(vring)

    @asynccontextmanager
    async def paused(self, vring: Vring) -> AsyncIterator[None]:
        """Change something about one vring.

        Raises:
            OSError, DeviceError: After the change the vring is ready to run, but can't.

        """
        with self._changing():
            await self._stop(vring)
            try:
                yield
            finally:
                if self._ready(vring):
                    await self._start(vring)

    @asynccontextmanager
    async def all_paused(self) -> AsyncIterator[None]:
        """Change something that concerns all vrings.

        A vring that can't go on after it stays stopped and is tried again after the next change: a front-end replaces
        memory under running vrings by REM_MEM_REG and ADD_MEM_REG, between which the ring itself may be missing.
        """
        with self._changing():
            await self._stop_all()
            try:
                yield
            finally:
                for vring in self._vrings:
                    if self._ready(vring):
                        await self._try_start(vring)

    def _ready(self, vring: Vring) -> bool:
        by_default = not self.features & VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
        has_memory = self.memory is not None and len(self.memory.regions) > 0
        runs_disabled = self._device.runs_disabled(vring.index)
        ready = vring.ready(enabled_by_default=by_default, runs_disabled=runs_disabled)
        return has_memory and not vring.running and ready

    async def _try_start(self, vring: Vring) -> None:
        try:
            await self._start(vring)
        except (OSError, DeviceError) as e:
            self._log.warning("vring_start_failed", queue=vring.index, error=str(e))

    async def _start(self, vring: Vring) -> None:
        assert self.memory is not None
        assert vring.addr is not None
        config = VringConfig(
            index=vring.index,
            size=vring.size,
            desc_uva=vring.addr.descriptor,
            avail_uva=vring.addr.available,
            used_uva=vring.addr.used,
            base=vring.base,
            features=without(self.features, VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES),
            kick_fd=vring.kick,
            call_fd=vring.call.fd,
            err_fd=vring.err.fd,
            memory=self.memory,
            enabled=vring.enabled is not False,
        )
        with trio.CancelScope(shield=True):
            await self._device.start_vring(config)
        vring.running = True
        self._log.info("vring_started", queue=vring.index, size=vring.size, base=vring.base, enabled=config.enabled)
