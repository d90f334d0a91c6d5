"""What a device is to this library: the hooks that a vhost-user session calls, and what it hands over.

A device is steered by one session at a time (one front-end). The session owns the socket, the guest's memory and the
descriptors; the device borrows them between `start_vring` and the return of `stop_vring`, never longer. That is the
whole of the contract that keeps guest memory mapped while anybody may touch it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from enum import IntFlag

    from kpoll.vhost.memory import MemoryTable


class DeviceError(Exception):
    """A device refuses what the front-end asks for. The request fails, the daemon goes on."""


@dataclass(frozen=True)
class VringConfig:
    """Everything a device needs to serve one vring, valid from `start_vring` until `stop_vring` has returned.

    Attributes:
        index: The vring's number, 0 .. num_queues - 1.
        size: Entries (SET_VRING_NUM), 1 .. queue_size_max.
        desc_uva: Front-end virtual address of the descriptor table (packed: of the descriptor ring).
        avail_uva: The same of the available ring (packed: of the driver event suppression structure).
        used_uva: The same of the used ring (packed: of the device event suppression structure).
        base: Where to go on (SET_VRING_BASE, or what `stop_vring` returned last), as `virtq_init` takes it.
        features: The negotiated virtio feature bits, without VHOST_USER_F_PROTOCOL_FEATURES.
        kick_fd: To be watched, never read; None when the front-end wants the ring polled (invalid FD flag).
        call_fd: To be written 8 bytes to; the number is stable while what is behind it may change at any moment.
        err_fd: The same, for faults.
        memory: The guest's memory.
        enabled: False for one that must have no effect; see `Device.runs_disabled`.

    """

    index: int
    size: int
    desc_uva: int
    avail_uva: int
    used_uva: int
    base: int
    features: int
    kick_fd: int | None
    call_fd: int
    err_fd: int | None
    memory: MemoryTable
    enabled: bool = True


class SessionHandle(Protocol):
    """What a device may ask of the session that it serves."""

    async def config_changed(self) -> None:
        """Tell the front-end that the configuration space has changed, if it gave a channel for that."""


class Device(ABC):
    """A virtio device, steered by one vhost-user session at a time.

    Methods are called from the session's task only, never two at once. An OSError or DeviceError that one of them
    raises fails the front-end's request; any other exception is a bug and ends the session's caller.
    """

    num_queues: int
    queue_size_max: int
    _session: SessionHandle | None = None

    @abstractmethod
    def features(self) -> int:
        """Give the virtio feature bits on offer. VHOST_USER_F_PROTOCOL_FEATURES is added by the session."""

    def feature_names(self) -> type[IntFlag] | None:
        """Give the feature bits of this kind of device by their names in the specification, for the log."""
        return None

    def protocol_features(self) -> int:
        """Give protocol feature bits to offer beyond those that the session serves by itself."""
        return 0

    def withheld_protocol_features(self) -> int:
        """Give protocol feature bits that the session could serve, but that had better not be offered."""
        return 0

    def get_config(self, offset: int, size: int) -> bytes:
        """Read the virtio configuration space.

        Args:
            offset: First byte, bounded by the session to 4096.
            size: Bytes wanted, likewise.

        Returns:
            At most `size` bytes; the session pads what lies beyond the space with zeros.

        """
        del offset, size
        return b""

    def set_config(self, offset: int, data: bytes, flags: int) -> None:
        """Write the virtio configuration space. No vring runs meanwhile.

        Args:
            offset: First byte.
            data: What to write.
            flags: 0: the guest writes, only writable fields may change; 1: live migration.

        Raises:
            DeviceError: The field is read-only, or the value is out of range.

        """
        del data, flags
        msg = f"no writable configuration field at offset {offset}"
        raise DeviceError(msg)

    def set_features(self, features: int) -> None:
        """Take note of the negotiated virtio feature bits, a subset of `features()`. No vring runs meanwhile."""
        del features

    def set_mtu(self, mtu: int) -> None:
        """Take note of the MTU that a front-end tells its guest (NET_SET_MTU); for who has MTU in `protocol_features`.

        Args:
            mtu: In bytes, whatever the front-end sent.

        Raises:
            DeviceError: It can't be.

        """
        raise DeviceError(f"no MTU can be set, not {mtu}")

    def send_rarp(self, mac: bytes) -> None:
        """Announce a guest that has moved here (SEND_RARP); for who has RARP in `protocol_features`.

        Args:
            mac: Its address, six bytes, whatever the front-end sent.

        Raises:
            OSError, DeviceError: It can't be.

        """
        raise DeviceError(f"{mac.hex(':')} can't be announced")

    async def settle(self) -> None:
        """Finish what `set_config` or `set_features` began, before the front-end is answered. No vring runs meanwhile.

        Raises:
            OSError: It can't be finished.

        """
        return

    async def set_memory(self, memory: MemoryTable | None) -> None:
        """Take note of the guest's memory, for who keeps more of it than what `start_vring` hands over.

        No vring runs meanwhile. Called inside a shielded scope, and may not fail: when it returns, the memory that was
        told of before and isn't in `memory` is unmapped.

        Args:
            memory: What there is from now on; None when the front-end has left.

        """
        del memory

    @abstractmethod
    async def start_vring(self, vring: VringConfig) -> None:
        """Begin to serve a vring; look at the ring once at the start, a kick may have come before.

        Raises:
            OSError: With the errno of `virtq_init` when the rings are misplaced (EFAULT: outside guest memory).
            DeviceError: The device can't serve such a vring.

        """

    @abstractmethod
    async def stop_vring(self, index: int) -> int:
        """Stop serving a vring. Called inside a shielded scope: has to end by itself, and in bounded time.

        Returns:
            The vring base to go on from, once everything in flight has finished and nothing touches guest memory,
            the descriptors or the rings any more.

        """

    def runs_disabled(self, index: int) -> bool:
        """Whether a vring that is started but was disabled runs all the same; for who has to discard what comes there.

        Args:
            index: Its number.

        """
        del index
        return False

    def no_such_vring(self, index: int) -> str:
        """Say what is wrong when a front-end names a vring that isn't there; for who knows what would help.

        Args:
            index: Its number, `num_queues` or more.

        """
        return f"vring {index} of {self.num_queues}"

    def set_running(self, running: frozenset[int]) -> None:
        """Take note of which vrings run, whenever it has become others; for who shares out work among them.

        A vring that is stopped and started again while something else changes is not told of.

        Args:
            running: Their numbers.

        """
        del running

    async def reset(self) -> None:
        """Return to the initial state: RESET_DEVICE, a device status of 0, or the front-end has left.

        Raises:
            OSError, DeviceError: It can't; where the front-end has left that is a line in the log.

        """
        return

    def attach(self, session: SessionHandle | None) -> None:
        """Learn which session steers the device from now on; None when the front-end has left."""
        self._session = session

    async def config_changed(self) -> None:
        """Tell the front-end, if there is one, to read the configuration space again."""
        if self._session is not None:
            await self._session.config_changed()
