"""What a back-end offers, what it accepts, and how it acknowledges."""

from __future__ import annotations

import pytest

from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import FrontendError
from kpoll.vhost.messages import RULES, Header, Request, pack_request
from kpoll.vhost.payloads import U64, Config, Empty, Payload, VringState
from kpoll.vhost.session import FAILURES_MAX
from tests.wire.harness import CONFIG, Backend, RecordingDevice, add_ring_memory, set_up


def test_offers_the_devices_features_and_protocol_features(backend: Backend) -> None:
    with backend.frontend() as frontend:
        assert frontend.features == backend.device.features() | VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES


def test_offers_only_protocol_features_that_it_serves(backend: Backend) -> None:
    with backend.frontend() as frontend:
        assert frontend.protocol_features == (
            ProtocolFeature.MQ
            | ProtocolFeature.REPLY_ACK
            | ProtocolFeature.CONFIG
            | ProtocolFeature.CONFIGURE_MEM_SLOTS
            | ProtocolFeature.BACKEND_REQ
            | ProtocolFeature.RESET_DEVICE
            | ProtocolFeature.STATUS
        )


def test_tells_the_device_what_was_negotiated(backend: Backend, device: RecordingDevice) -> None:
    with backend.frontend() as frontend:
        frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1)
        assert device.calls == [("set_features", VirtioFeature.VIRTIO_F_VERSION_1)]


@pytest.mark.parametrize("bit", [0, 34, 41, 63])
def test_features_that_were_not_offered_are_refused(backend: Backend, device: RecordingDevice, bit: int) -> None:
    with backend.negotiated() as frontend:
        device.calls.clear()
        with pytest.raises(FrontendError):
            frontend.request(Request.SET_FEATURES, U64(1 << bit))
        assert device.calls == []
        assert frontend.queue_num() == 2, "the session goes on"


@pytest.mark.parametrize("bit", [ProtocolFeature.INBAND_NOTIFICATIONS, 1 << 17, 1 << 63])
def test_protocol_features_that_were_not_offered_end_the_session(backend: Backend, bit: int) -> None:
    with backend.frontend() as frontend:
        frontend.request(Request.SET_PROTOCOL_FEATURES, U64(bit))
        with pytest.raises(FrontendError, match="hung up"):
            frontend.get_u64(Request.GET_FEATURES)
    assert len(backend.events("request_failed")) == 1


def test_the_log_names_the_devices_own_features(backend: Backend) -> None:
    with backend.frontend() as frontend:
        frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1 | 1 << 6)
    [line] = backend.events("features_negotiated")
    assert line["features"] == ["RECORDING_F_TAPE", "VHOST_USER_F_PROTOCOL_FEATURES", "VIRTIO_F_VERSION_1"]


def test_tells_how_many_queues_and_memory_slots_there_are(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        assert frontend.queue_num() == 2
        assert frontend.get_u64(Request.GET_MAX_MEM_SLOTS) == 509


@pytest.mark.parametrize(
    "request_", [r for r in Request if r in RULES and RULES[r].replies is None], ids=lambda r: r.name
)
def test_need_reply_is_answered_exactly_once_on_every_message(backend: Backend, request_: Request) -> None:
    """Whether it succeeds (0) or fails (non-zero), here without descriptors: the answer must come, and only one."""
    payloads: dict[type[Payload], Payload] = {Empty: Empty(), U64: U64(0), VringState: VringState(0, 1)}
    with backend.negotiated() as frontend:
        payload = payloads.get(RULES[request_].payload)
        data = payload.pack() if payload is not None else b""
        frontend.send(Header(request_, 0x1 | 0x8, len(data)).pack() + data)
        header, answer = frontend.receive()
        assert (header.request, header.flags, header.size) == (request_, 0x1 | 0x4, 8)
        U64.unpack(answer)
        if request_ != Request.SET_PROTOCOL_FEATURES:  # which took REPLY_ACK back
            assert frontend.queue_num() == 2, "nothing else lies in between"


def test_need_reply_on_a_message_that_has_a_reply_changes_nothing(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.send(pack_request(Request.GET_QUEUE_NUM, Empty(), need_reply=True))
        assert frontend.receive() == (Header(Request.GET_QUEUE_NUM, 0x5, 8), U64(2).pack())
        assert frontend.get_u64(Request.GET_MAX_MEM_SLOTS) == 509


def test_need_reply_means_nothing_before_reply_ack(backend: Backend) -> None:
    with backend.frontend() as frontend:
        frontend.send(pack_request(Request.SET_OWNER, Empty(), need_reply=True))
        assert frontend.get_u64(Request.GET_QUEUE_NUM) == 2, "the next thing that comes is this reply"


def test_the_message_that_negotiates_reply_ack_can_ask_for_one(backend: Backend) -> None:
    with backend.frontend() as frontend:
        frontend.send(pack_request(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK), need_reply=True))
        assert frontend.receive() == (Header(Request.SET_PROTOCOL_FEATURES, 0x5, 8), U64(0).pack())


def test_unknown_requests_are_refused_when_they_ask_for_an_answer(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.send(Header(4711, 0x1 | 0x8, 4).pack() + b"what")
        assert frontend.receive() == (Header(4711, 0x5, 8), U64(1).pack())
        assert frontend.queue_num() == 2
    assert [entry["request"] for entry in backend.events("request_failed")] == ["request 4711"]


def test_unknown_requests_end_the_session_otherwise(backend: Backend) -> None:
    with backend.frontend() as frontend:
        frontend.send(Header(4711, 0x1, 0).pack())
        with pytest.raises(FrontendError, match="hung up"):
            frontend.receive()


def test_a_front_end_that_fails_all_the_time_is_hung_up_on(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        for _ in range(FAILURES_MAX - 1):
            frontend.send(Header(4711, 0x1 | 0x8, 0).pack())
            assert frontend.receive()[1] == U64(1).pack()
        frontend.send(Header(4711, 0x1 | 0x8, 0).pack())
        with pytest.raises(FrontendError, match="hung up"):
            frontend.receive()
    [line] = backend.events("frontend_disconnected")
    assert line["error"] == f"{FAILURES_MAX} requests failed"


def test_requests_of_features_that_are_not_served_are_refused(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        for request in (Request.SET_LOG_BASE, Request.GET_INFLIGHT_FD, Request.POSTCOPY_ADVISE, Request.VRING_KICK):
            frontend.send(Header(request, 0x1 | 0x8, 0).pack())
            assert frontend.receive()[1] == U64(1).pack()


def test_get_config_of_256_bytes_is_answered_with_256_bytes(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        assert frontend.get_config(0, 256) == CONFIG + bytes(196)


def test_get_config_reads_from_the_middle_and_beyond_the_end(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        assert frontend.get_config(58, 4) == CONFIG[58:] + bytes(2)
        assert frontend.get_config(600, 4) == bytes(4)


def test_get_config_of_nothing_is_a_mistake_of_the_caller(backend: Backend) -> None:
    with backend.negotiated() as frontend, pytest.raises(ValueError, match="0 bytes"):
        frontend.get_config(0, 0)


def test_get_config_may_leave_its_payload_out(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.send(pack_request(Request.GET_CONFIG, Config(0, 16, 0, b"")))
        assert Config.unpack(frontend.receive()[1]).data == CONFIG[:16]


def test_a_config_error_is_an_empty_payload(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.send(pack_request(Request.GET_CONFIG, Config(2000, 4, 0, bytes(4))))
        assert frontend.receive() == (Header(Request.GET_CONFIG, 0x5, 0), b"")


def test_get_config_beyond_all_bounds_ends_the_session(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        frontend.send(pack_request(Request.GET_CONFIG, Config(0xFFFFFFF0, 0x10000000, 0, b"")))
        with pytest.raises(FrontendError, match="hung up"):
            frontend.receive()


def test_set_config_reaches_the_device(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        frontend.set_config(32, b"\1", flags=1)
        assert device.count("set_config", 32, b"\1", 1) == 1


def test_set_config_of_a_read_only_field_fails(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        with pytest.raises(FrontendError):
            frontend.set_config(0, b"\1")
        assert frontend.get_config(0, 60) == CONFIG


def test_the_device_status_is_kept(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        for status in (0x1, 0x3, 0xB, 0xF):
            frontend.request(Request.SET_STATUS, U64(status))
            assert frontend.get_u64(Request.GET_STATUS) == status


def test_a_device_status_that_is_no_byte_is_refused(backend: Backend) -> None:
    with backend.negotiated() as frontend:
        with pytest.raises(FrontendError):
            frontend.request(Request.SET_STATUS, U64(0x100))
        assert frontend.get_u64(Request.GET_STATUS) == 0


def test_the_device_hears_that_the_front_end_left(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
    assert device.calls[-2:] == [("stop", 0), ("reset",)]
    assert [entry["log_level"] for entry in backend.events("frontend_disconnected")] == ["info"]


def test_the_next_front_end_begins_anew(backend: Backend, device: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        set_up(frontend, add_ring_memory(frontend))
    with backend.negotiated() as frontend:
        assert not device.running
        set_up(frontend, add_ring_memory(frontend))
        assert list(device.running) == [0]
