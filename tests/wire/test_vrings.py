"""When a vring runs, from where, and that nothing it depends on changes while it does."""

from __future__ import annotations

import itertools
import os
import select
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError, Memory
from kpoll.vhost.messages import BackendRequest, Request, pack_request
from kpoll.vhost.payloads import U64, VringFd, VringState
from kpoll.vhost.virtqueue import VirtqueueFaultError
from tests.wire.harness import (
    AVAIL,
    SIZE,
    Backend,
    RecordingDevice,
    add_ring_memory,
    set_addr,
    set_call,
    set_kick,
    set_num,
    set_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kpoll.vhost.device import VringConfig


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


STEPS: dict[str, Callable[[Frontend, Memory, int], None]] = {
    "num": lambda frontend, _memory, _fd: set_num(frontend, SIZE),
    "addr": lambda frontend, memory, _fd: set_addr(frontend, memory),
    "kick": lambda frontend, _memory, fd: set_kick(frontend, fd),
    "enable": lambda frontend, _memory, _fd: frontend.enable(0),
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids="-".join)
def test_a_vring_runs_once_it_is_sized_placed_started_and_enabled_in_any_order(
    backend: Backend, device: RecordingDevice, eventfd: int, order: tuple[str, ...]
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        for step in order:
            assert not device.running
            STEPS[step](frontend, memory, eventfd)
        assert list(device.running) == [0]


def test_memory_may_come_last(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        frontend.remove_memory(memory)
        set_up(frontend, memory)
        assert not device.running
        # The same bytes at the same addresses: what a front-end does that lists its memory after its rings.
        frontend.memory.append(Memory(memory.mmap, os.memfd_create("guest"), memory.gpa, memory.uva, memory.size))
        os.ftruncate(frontend.memory[0].fd, memory.size)
        frontend.set_mem_table()
        assert list(device.running) == [0]


def test_the_device_is_given_what_the_front_end_set(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, index=1, base=7)
        config, _ = device.running[1]
        assert (config.index, config.size, config.base) == (1, SIZE, 7)
        assert (config.desc_uva, config.avail_uva, config.used_uva) == (
            memory.uva,
            memory.uva + 256,
            memory.uva + 512,
        )
        assert config.features == device.features(), "without VHOST_USER_F_PROTOCOL_FEATURES"


def test_rings_start_enabled_without_protocol_features(backend: Backend, device: RecordingDevice) -> None:
    with backend.frontend() as frontend:
        frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, protocol_features=0)
        set_up(frontend, add_ring_memory(frontend), enable=False)
        assert frontend.get_u64(Request.GET_QUEUE_NUM) == 2, "the messages before have been handled"
        assert list(device.running) == [0]


def test_a_ring_without_a_kick_descriptor_is_started_too(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_num(frontend, SIZE)
        set_addr(frontend, memory)
        frontend.enable(0)
        set_kick(frontend, None)
        assert device.running[0][0].kick_fd is None


def test_get_vring_base_stops_the_ring_until_the_next_kick_message(
    backend: Backend, device: RecordingDevice, eventfd: int
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, base=5)
        assert frontend.get_vring_base(0) == 5
        assert not device.running
        frontend.enable(0, on=False)
        frontend.enable(0)
        set_addr(frontend, memory)
        assert not device.running
        set_kick(frontend, eventfd)
        assert device.count("start", 0, 5) == 2


def test_get_vring_base_of_a_ring_that_never_ran_gives_what_was_set(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.request(Request.SET_VRING_BASE, VringState(1, 42))
        assert frontend.get_vring_base(1) == 42


def test_get_vring_base_is_answered_only_when_the_ring_has_drained(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
        device.hold_stops = True
        frontend.send(pack_request(Request.GET_VRING_BASE, VringState(0, 0)))
        assert device.stopping.wait(10)
        assert not select.select([frontend.sock], [], [], 0)[0], "no answer yet"
        device.release.set()
        assert frontend.receive()[1] == VringState(0, 0).pack()


def test_a_disabled_ring_stops_and_goes_on_from_there(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend), base=3)
        frontend.enable(0, on=False)
        assert not device.running
        frontend.enable(0)
        assert device.count("start", 0, 3) == 2


def test_enabling_an_enabled_ring_does_not_disturb_it(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
        frontend.enable(0)
        assert device.count("stop") == 0


@pytest.mark.parametrize("change", ["addr", "kick", "num"])
def test_a_change_to_a_running_ring_is_made_while_it_stands_still(
    backend: Backend, device: RecordingDevice, eventfd: int, change: str
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, index=0, base=9)
        set_up(frontend, memory, index=1)
        device.calls.clear()
        STEPS[change](frontend, memory, eventfd)
        assert device.calls == [("stop", 0), ("start", 0, 9)], "and the other ring is left alone"


def test_set_features_stops_all_rings_meanwhile(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, index=0)
        set_up(frontend, memory, index=1)
        device.calls.clear()
        frontend.request(Request.SET_FEATURES, U64(frontend.acked_features))
        assert [call[0] for call in device.calls] == ["stop", "stop", "set_features", "start", "start"]


def test_a_pause_is_no_news_of_which_rings_run(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, index=0)
        set_up(frontend, memory, index=1)
        frontend.request(Request.SET_FEATURES, U64(frontend.acked_features))
        frontend.add_memory(4096)
        set_num(frontend, SIZE, index=1)
        frontend.enable(0, on=False)
        frontend.get_vring_base(1)
    assert device.told == [set(), {0}, {0, 1}, {1}, set()]


def test_a_new_call_descriptor_takes_over_without_stopping_the_ring(
    backend: Backend, device: RecordingDevice, eventfd: int
) -> None:
    with backend.negotiated() as frontend:
        vring = set_up(frontend, add_ring_memory(frontend))
        call_fd = device.running[0][0].call_fd
        os.write(call_fd, (1).to_bytes(8, "little"))
        assert vring.wait_call()
        set_call(frontend, eventfd)
        os.write(call_fd, (1).to_bytes(8, "little"))
        assert os.eventfd_read(eventfd) == 1
        assert not vring.wait_call(timeout=0), "the old one is out"
        assert device.count("stop") == 0


def test_calls_go_nowhere_when_the_front_end_polls(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        vring = set_up(frontend, add_ring_memory(frontend))
        set_call(frontend, None)
        os.write(device.running[0][0].call_fd, (1).to_bytes(8, "little"))
        assert not vring.wait_call(timeout=0)


def test_the_call_descriptor_outlives_the_ring(backend: Backend, device: RecordingDevice, eventfd: int) -> None:
    """QEMU sets it when it connects, long before it starts a ring, and does not repeat itself after a stop."""
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_call(frontend, eventfd)
        for _ in range(2):
            set_num(frontend, SIZE)
            set_addr(frontend, memory)
            set_kick(frontend, None)
            frontend.enable(0)
            os.write(device.running[0][0].call_fd, (1).to_bytes(8, "little"))
            assert os.eventfd_read(eventfd) == 1
            frontend.get_vring_base(0)
            frontend.request(Request.RESET_DEVICE)


def test_a_call_descriptor_may_be_a_socket(backend: Backend, device: RecordingDevice) -> None:
    """User-mode Linux hands over one end of a socket pair."""
    ours, theirs = socket.socketpair()
    with ours, theirs, backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
        set_call(frontend, theirs.fileno())
        os.write(device.running[0][0].call_fd, (1).to_bytes(8, "little"))
        assert len(ours.recv(8)) == 8


def test_a_call_descriptor_that_is_full_blocks_nobody(backend: Backend, device: RecordingDevice) -> None:
    full = os.eventfd(0xFFFFFFFE)  # a blocking one
    os.eventfd_write(full, 0xFFFFFFFFFFFFFFFE - 0xFFFFFFFE)
    try:
        with backend.negotiated() as frontend:
            set_up(frontend, add_ring_memory(frontend))
            set_call(frontend, full)
            with pytest.raises(BlockingIOError):
                os.write(device.running[0][0].call_fd, (1).to_bytes(8, "little"))
    finally:
        os.close(full)


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_doorbells_that_could_make_a_worker_wait_for_a_file_system_are_refused(
    backend: Backend, request_: Request
) -> None:
    with backend.negotiated() as frontend, tempfile.TemporaryFile() as file:
        with pytest.raises(FrontendError):
            frontend.request(request_, VringFd(0, has_fd=True), [file.fileno()])
        assert frontend.queue_num() == 2


def test_one_descriptor_may_ring_for_two_vrings(backend: Backend, device: RecordingDevice, eventfd: int) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        for index in (0, 1):
            set_up(frontend, memory, index)
            set_kick(frontend, eventfd, index)
        kicks = {config.kick_fd for config, _ in device.running.values()}
        assert len(kicks) == 2, "two numbers, so that each can be watched and closed by itself"


@pytest.mark.parametrize("num", [0, 1025, 0xFFFFFFFF])
def test_a_vring_size_out_of_range_is_refused(backend: Backend, device: RecordingDevice, num: int) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
        with pytest.raises(FrontendError):
            set_num(frontend, num)
        assert device.running[0][0].size == SIZE
        assert device.count("stop") == 0


@pytest.mark.parametrize("index", [2, 255])
def test_a_vring_that_does_not_exist_is_refused(backend: Backend, index: int) -> None:
    with backend.negotiated() as frontend:
        with pytest.raises(FrontendError, match="failed"):
            frontend.request(Request.SET_VRING_NUM, VringState(index, SIZE))
        with pytest.raises(FrontendError, match="failed"):
            set_kick(frontend, None, index)
        with pytest.raises(FrontendError, match="hung up"):
            frontend.get_vring_base(index)


@pytest.mark.parametrize("offset", [1, 1 << 40, 4096 - 64])
def test_a_ring_that_does_not_lie_in_memory_is_refused_and_its_sibling_goes_on(
    backend: Backend, device: RecordingDevice, offset: int
) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, index=0)
        set_up(frontend, memory, index=1)
        with pytest.raises(FrontendError):
            set_addr(frontend, memory, index=1, at=offset)
        assert list(device.running) == [0]
        set_addr(frontend, memory, index=1)
        assert sorted(device.running) == [0, 1], "and it can be set right"


def test_reset_owner_disables_all_rings(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend), base=4)
        frontend.request(Request.RESET_OWNER)
        assert not device.running
        frontend.enable(0)
        assert device.count("start", 0, 4) == 2


def test_reset_owner_stops_all_rings_where_they_cannot_be_enabled(
    backend: Backend, device: RecordingDevice, eventfd: int
) -> None:
    with backend.frontend() as frontend:
        frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, protocol_features=0)
        set_up(frontend, add_ring_memory(frontend))
        frontend.request(Request.RESET_OWNER)
        assert frontend.get_u64(Request.GET_QUEUE_NUM) == 2
        assert not device.running
        set_kick(frontend, eventfd)
        assert frontend.get_u64(Request.GET_QUEUE_NUM) == 2
        assert list(device.running) == [0]


def test_reset_device_forgets_the_rings_but_not_memory(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        set_up(frontend, memory, base=4)
        frontend.request(Request.SET_STATUS, U64(0xF))
        device.calls.clear()
        frontend.request(Request.RESET_DEVICE)
        assert device.calls == [("stop", 0), ("reset",)]
        assert frontend.get_u64(Request.GET_STATUS) == 0
        assert frontend.get_vring_base(0) == 0
        set_up(frontend, memory)
        assert list(device.running) == [0], "in the memory that is still there"


def test_a_status_of_zero_resets_the_device(backend: Backend, device: RecordingDevice, eventfd: int) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend), base=4)
        frontend.request(Request.SET_STATUS, U64(0xF))
        device.calls.clear()
        frontend.request(Request.SET_STATUS, U64(0))
        assert device.calls == [("stop", 0), ("reset",)]
        assert frontend.get_vring_base(0) == 4, "still there for a front-end that asks afterwards"
        set_kick(frontend, eventfd)
        assert list(device.running) == [0]


class GrowingDevice(RecordingDevice):
    """Changes its configuration whenever a ring starts."""

    async def start_vring(self, vring: VringConfig) -> None:
        """Start it, and say so."""
        await super().start_vring(vring)
        await self.config_changed()


def test_the_front_end_hears_of_a_changed_configuration_on_its_channel() -> None:
    with Backend(GrowingDevice()).negotiated() as frontend:
        frontend.open_backend_channel()
        set_up(frontend, add_ring_memory(frontend))
        assert frontend.next_backend_request() == BackendRequest.CONFIG_CHANGE_MSG


def test_a_changed_configuration_disturbs_nobody_without_a_channel() -> None:
    with Backend(GrowingDevice()).negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
        assert frontend.queue_num() == 2


def test_a_channel_that_nobody_listens_to_holds_nothing_up() -> None:
    backend = Backend(GrowingDevice())
    with backend.negotiated() as frontend:
        ours, theirs = socket.socketpair()
        with theirs:
            frontend.request(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        ours.close()
        set_up(frontend, add_ring_memory(frontend))
        assert frontend.queue_num() == 2
    assert len(backend.events("backend_request_lost")) == 1


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_channel_that_is_no_stream_is_refused(backend: Backend, kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs, backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        frontend.request(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])


def test_a_channel_that_is_no_socket_is_refused(backend: Backend, eventfd: int) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError, match="failed"):
        frontend.request(Request.SET_BACKEND_REQ_FD, None, [eventfd])


def test_the_err_descriptor_tells_the_front_end_of_a_broken_ring(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        memory = add_ring_memory(frontend)
        vring = set_up(frontend, memory)
        memory.mmap[AVAIL + 2 : AVAIL + 4] = (SIZE + 1).to_bytes(2, "little")  # more entries than the ring has
        with pytest.raises(VirtqueueFaultError, match="avail_idx"):
            device.running[0][1].pop()
        assert vring.wait_err()
