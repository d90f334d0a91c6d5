"""The back-end's side of one front-end: every request of the specification that is served, and what it does.

A session knows no socket: `Session.handle` takes a received message and gives the bytes to answer with. Requests are
handled one after the other, and each is finished - vrings drained, memory unmapped - before it is answered.

Error handling: what a front-end gets wrong fails its request. If it asked for an acknowledgement (NEED_REPLY) it is
told so and may go on; else the specification leaves no way to tell it but to hang up: `SessionEndedError`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, ClassVar

import trio

from kpoll.vhost.descriptors import discard, is_unix_socket
from kpoll.vhost.device import DeviceError
from kpoll.vhost.features import ProtocolFeature, VirtioFeature, names, without
from kpoll.vhost.memory import MEM_SLOTS_MAX, MemoryTable, map_regions
from kpoll.vhost.messages import RULES, BackendRequest, Request, pack_reply, pack_request, parse
from kpoll.vhost.payloads import (
    U64,
    Config,
    Empty,
    MacAddress,
    MemoryRegions,
    MessageError,
    Payload,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)
from kpoll.vhost.vring import check_doorbell
from kpoll.vhost.vrings import Vrings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.connection import Fds, Received
    from kpoll.vhost.device import Device
    from kpoll.vhost.messages import Header

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.STATUS
)
"""Served by the session itself. Never INBAND_NOTIFICATIONS: QEMU acknowledges it without implementing it."""

FAILURES_MAX = 100
"""Failed requests in a session after which it ends: each is a line in the log."""

FAILURE = U64(1)
SUCCESS = U64(0)


class SessionEndedError(Exception):
    """The front-end did something after which it can only be disconnected."""


class Session:
    """One front-end's session with a device, from the connection to the hang-up."""

    def __init__(self, device: Device, log: FilteringBoundLogger) -> None:
        """Begin a session; `close` must follow, whatever happens in between.

        Args:
            device: Serves this session alone until `close` has returned.
            log: Already bound to the device and the connection.

        """
        self._device = device
        self._log = log
        self._vrings = Vrings(device, log)
        self._protocol_features = 0
        self._status = 0
        self._failures = 0
        self._channel: socket.socket | None = None
        device.attach(self)

    async def close(self) -> None:
        """End the session: all vrings are stopped, then memory and descriptors are given back. Ignores cancellation.

        A device that can't be reset is a line in the log: the next front-end negotiates anew in any case.
        """
        with trio.CancelScope(shield=True):
            self._device.attach(None)
            await self._vrings.stop_all()
            try:
                await self._device.reset()
            except (OSError, DeviceError) as e:
                self._log.warning("reset_failed", error=str(e))
            finally:
                await self._device.set_memory(None)
                self._give_back()

    def _give_back(self) -> None:
        """Give back all that the front-end gave us. No vring may run any more."""
        if self._vrings.memory is not None:
            self._vrings.memory.close()
        self._vrings.close()
        self._close_channel()

    async def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again, if it gave a channel for that."""
        await trio.lowlevel.checkpoint()
        if self._channel is None or not self._protocol_features & ProtocolFeature.CONFIG:
            return
        message = pack_request(BackendRequest.CONFIG_CHANGE_MSG, Empty())
        try:
            self._channel.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as e:  # full or closed by a front-end that doesn't listen: nothing to wait for
            self._log.warning("backend_request_lost", request=BackendRequest.CONFIG_CHANGE_MSG.name, error=str(e))

    async def handle(self, received: Received) -> bytes:
        """Do what a message asks for.

        Args:
            received: The message; its descriptors are closed unless they are kept for what the message sets.

        Returns:
            The reply's wire form; empty when none is due.

        Raises:
            SessionEndedError: The request failed, and hanging up is the only way to say so.

        """
        header = received.header
        may_ack = self._protocol_features
        with received.fds as fds:
            try:
                request, payload = parse(header, received.payload, fds.count())
                answer = await self._HANDLERS[request](self, payload, fds)
            except (MessageError, DeviceError, OSError) as e:
                self._failed(header.name, e)
                fatal = isinstance(e, MessageError) and e.fatal
                if fatal or not _wants_ack(header, may_ack):
                    raise SessionEndedError(f"{header.name}: {e}") from e
                return pack_reply(header.request, FAILURE)
        # SET_PROTOCOL_FEATURES can ask for an acknowledgement whether it brings REPLY_ACK or takes it away.
        if answer is None and _wants_ack(header, may_ack | self._protocol_features):
            answer = SUCCESS
        return b"" if answer is None else pack_reply(request, answer)

    def _failed(self, name: str, error: Exception) -> None:
        self._log.warning("request_failed", request=name, error=str(error))
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            raise SessionEndedError(f"{self._failures} requests failed") from error

    # Negotiation.

    async def _get_features(self, _: Empty, __: Fds) -> U64:
        return U64(self._device.features() | VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES)

    async def _set_features(self, payload: U64, _: Fds) -> None:
        offered = self._device.features() | VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
        unknown = without(payload.value, offered)
        if unknown:
            raise MessageError(f"features not offered: {self._names(unknown)}")
        async with self._vrings.all_paused():
            self._device.set_features(without(payload.value, VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES))
            self._vrings.features = payload.value
            await self._device.settle()
        self._log.info("features_negotiated", features=self._names(payload.value))

    def _names(self, features: int) -> list[str]:
        return names(features, VirtioFeature, self._device.feature_names())

    def _protocol_features_offered(self) -> int:
        device = self._device
        return (PROTOCOL_FEATURES | device.protocol_features()) & ~device.withheld_protocol_features()

    async def _get_protocol_features(self, _: Empty, __: Fds) -> U64:
        return U64(self._protocol_features_offered())

    async def _set_protocol_features(self, payload: U64, _: Fds) -> None:
        unknown = without(payload.value, self._protocol_features_offered())
        if unknown:
            raise MessageError(f"protocol features not offered: {names(unknown, ProtocolFeature)}")
        self._protocol_features = payload.value
        self._log.info("protocol_features_negotiated", features=names(payload.value, ProtocolFeature))

    async def _get_queue_num(self, _: Empty, __: Fds) -> U64:
        return U64(self._device.num_queues)

    # What only network cards offer.

    async def _net_set_mtu(self, payload: U64, _: Fds) -> None:
        self._need(ProtocolFeature.MTU)
        self._device.set_mtu(payload.value)

    async def _send_rarp(self, payload: MacAddress, _: Fds) -> None:
        self._need(ProtocolFeature.RARP)
        self._device.send_rarp(payload.mac)

    def _need(self, feature: ProtocolFeature) -> None:
        if not self._protocol_features & feature:
            raise MessageError(f"{feature.name} was not negotiated")

    # Ownership, status and reset.

    async def _set_owner(self, _: Empty, __: Fds) -> None:
        return

    async def _reset_owner(self, _: Empty, __: Fds) -> None:
        """Disable all rings, the specification's advice; without SET_VRING_ENABLE they can only be stopped."""
        await self._vrings.stop_all()
        for vring in self._vrings:
            if self._vrings.features & VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES:
                vring.enabled = False
            else:
                vring.drop_kick()

    async def _reset_device(self, _: Empty, __: Fds) -> None:
        await self._vrings.stop_all()
        for vring in self._vrings:
            vring.reset()
        await self._forget_negotiation()

    async def _get_status(self, _: Empty, __: Fds) -> U64:
        return U64(self._status)

    async def _set_status(self, payload: U64, _: Fds) -> None:
        if payload.value > 0xFF:
            raise MessageError(f"device status {payload.value:#x}")
        if payload.value == 0:  # virtio 1.2 §2.1: the driver resets the device
            await self._vrings.stop_all()
            for vring in self._vrings:
                vring.drop_kick()
            await self._forget_negotiation()
        self._status = payload.value

    async def _forget_negotiation(self) -> None:
        """Reset the device, but keep memory: QEMU sends only what differs from what it sent before the reset."""
        self._status = 0
        self._vrings.features &= VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
        await self._device.reset()
        self._log.info("device_reset")

    # Memory.

    async def _set_mem_table(self, payload: MemoryRegions, fds: Fds) -> None:
        if len(fds) != len(payload.regions):
            raise MessageError(f"{len(payload.regions)} memory regions with {len(fds)} file descriptors")
        await self._replace_memory(map_regions((), payload.regions, fds))

    async def _get_max_mem_slots(self, _: Empty, __: Fds) -> U64:
        return U64(MEM_SLOTS_MAX)

    async def _add_mem_reg(self, payload: SingleMemoryRegion, fds: Fds) -> None:
        present = self._vrings.memory.regions if self._vrings.memory else ()
        if len(present) >= MEM_SLOTS_MAX:
            raise MessageError(f"all {MEM_SLOTS_MAX} memory slots are in use")
        await self._replace_memory(map_regions(present, (payload.region,), fds))

    async def _rem_mem_reg(self, payload: SingleMemoryRegion, _: Fds) -> None:
        memory = self._vrings.memory
        gone = memory.find(payload.region) if memory else None
        if memory is None or gone is None:
            raise MessageError(f"no such memory region: {payload.region}")
        await self._replace_memory(MemoryTable(mapped for mapped in memory.regions if mapped is not gone))

    async def _replace_memory(self, memory: MemoryTable) -> None:
        old = self._vrings.memory
        async with self._vrings.all_paused():
            self._vrings.memory = memory
            with trio.CancelScope(shield=True):
                await self._device.set_memory(memory)
            if old is not None:
                old.close(successor=memory)
        self._log.info("memory_changed", regions=len(memory.regions), bytes=memory.size)

    # Vrings.

    async def _set_vring_num(self, payload: VringState, _: Fds) -> None:
        vring = self._vrings[payload.index]
        if not 1 <= payload.num <= self._device.queue_size_max:
            raise MessageError(f"vring of {payload.num} entries, not 1 to {self._device.queue_size_max}")
        async with self._vrings.paused(vring):
            vring.size = payload.num

    async def _set_vring_addr(self, payload: VringAddr, _: Fds) -> None:
        vring = self._vrings[payload.index]
        async with self._vrings.paused(vring):
            vring.addr = payload

    async def _set_vring_base(self, payload: VringState, _: Fds) -> None:
        vring = self._vrings[payload.index]
        async with self._vrings.paused(vring):
            vring.base = payload.num

    async def _get_vring_base(self, payload: VringState, _: Fds) -> VringState:
        vring = self._vrings[payload.index]
        await self._vrings.stop(vring)
        vring.drop_kick()
        return VringState(vring.index, vring.base)

    async def _set_vring_enable(self, payload: VringState, _: Fds) -> None:
        vring = self._vrings[payload.index]
        if payload.num > 1:
            raise MessageError(f"SET_VRING_ENABLE {payload.num}")
        if vring.enabled == bool(payload.num):
            return
        async with self._vrings.paused(vring):
            vring.enabled = bool(payload.num)

    async def _set_vring_kick(self, payload: VringFd, fds: Fds) -> None:
        vring = self._vrings[payload.index]
        fd = _take(payload, fds)
        if fd is not None:
            try:
                check_doorbell(fd)
            except OSError:
                discard(fd)
                raise
        async with self._vrings.paused(vring):
            vring.start(fd)

    async def _set_vring_call(self, payload: VringFd, fds: Fds) -> None:
        slot = self._vrings[payload.index].call
        fd = _take(payload, fds)
        slot.clear() if fd is None else slot.point_at(fd)

    async def _set_vring_err(self, payload: VringFd, fds: Fds) -> None:
        slot = self._vrings[payload.index].err
        fd = _take(payload, fds)
        slot.clear() if fd is None else slot.point_at(fd)

    # Configuration space, and the channel for requests of ours.

    async def _get_config(self, payload: Config, _: Fds) -> Config | Empty:
        """Reply with as many bytes as were asked for, whatever the space has; an empty payload signals an error."""
        try:
            data = self._device.get_config(payload.offset, payload.size)
        except (DeviceError, OSError) as e:
            self._failed(Request.GET_CONFIG.name, e)
            return Empty()
        return Config(payload.offset, payload.size, payload.flags, data[: payload.size].ljust(payload.size, b"\0"))

    async def _set_config(self, payload: Config, _: Fds) -> None:
        if len(payload.data) != payload.size or payload.flags > 1:
            raise MessageError(f"SET_CONFIG of {payload.size} bytes with {len(payload.data)}, flags {payload.flags}")
        async with self._vrings.all_paused():
            self._device.set_config(payload.offset, payload.data, payload.flags)
            await self._device.settle()

    async def _set_backend_req_fd(self, _: Empty, fds: Fds) -> None:
        fd = fds.take()
        if not is_unix_socket(fd):
            discard(fd)
            raise MessageError("the back-end channel is no unix stream socket")
        channel = socket.socket(fileno=fd)
        if channel.type != socket.SOCK_STREAM:
            discard(channel.detach())
            raise MessageError("the back-end channel is no unix stream socket")
        self._close_channel()
        self._channel = channel

    def _close_channel(self) -> None:
        if self._channel is not None:
            discard(self._channel.detach())
        self._channel = None

    _HANDLERS: ClassVar[dict[Request, Callable[[Session, Any, Fds], Awaitable[Payload | None]]]] = {
        Request.GET_FEATURES: _get_features,
        Request.SET_FEATURES: _set_features,
        Request.SET_OWNER: _set_owner,
        Request.RESET_OWNER: _reset_owner,
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.SET_VRING_NUM: _set_vring_num,
        Request.SET_VRING_ADDR: _set_vring_addr,
        Request.SET_VRING_BASE: _set_vring_base,
        Request.GET_VRING_BASE: _get_vring_base,
        Request.SET_VRING_KICK: _set_vring_kick,
        Request.SET_VRING_CALL: _set_vring_call,
        Request.SET_VRING_ERR: _set_vring_err,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.GET_QUEUE_NUM: _get_queue_num,
        Request.SET_VRING_ENABLE: _set_vring_enable,
        Request.NET_SET_MTU: _net_set_mtu,
        Request.SEND_RARP: _send_rarp,
        Request.SET_BACKEND_REQ_FD: _set_backend_req_fd,
        Request.GET_CONFIG: _get_config,
        Request.SET_CONFIG: _set_config,
        Request.RESET_DEVICE: _reset_device,
        Request.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        Request.ADD_MEM_REG: _add_mem_reg,
        Request.REM_MEM_REG: _rem_mem_reg,
        Request.SET_STATUS: _set_status,
        Request.GET_STATUS: _get_status,
    }


def _wants_ack(header: Header, protocol_features: int) -> bool:
    """Whether NEED_REPLY is asked for, and means something: a request that has a reply gets no other."""
    solicits_reply = header.request in RULES and RULES[header.request].replies is not None
    return header.need_reply and not solicits_reply and bool(protocol_features & ProtocolFeature.REPLY_ACK)


def _take(payload: VringFd, fds: Fds) -> int | None:
    """Take the doorbell that belongs to a message, or None for the invalid FD flag."""
    if payload.has_fd:
        return fds.take()
    if len(fds):
        raise MessageError("a file descriptor beside the invalid FD flag")
    return None
