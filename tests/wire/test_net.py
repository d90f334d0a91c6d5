"""What only network cards are asked for: an MTU, and to announce a guest that has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.features import ProtocolFeature
from kpoll.vhost.frontend import FrontendError
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import U64, MacAddress

if TYPE_CHECKING:
    from tests.wire.harness import Backend, RecordingDevice

MAC = bytes.fromhex("525400123456")


@pytest.fixture
def card(device: RecordingDevice) -> RecordingDevice:
    device.extra_protocol_features = ProtocolFeature.MTU | ProtocolFeature.RARP
    return device


def test_the_device_learns_the_mtu(backend: Backend, card: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        frontend.request(Request.NET_SET_MTU, U64(1400))
    assert card.count("set_mtu", 1400) == 1


def test_an_mtu_that_the_device_refuses_fails_the_request_alone(backend: Backend, card: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        with pytest.raises(FrontendError):
            frontend.request(Request.NET_SET_MTU, U64(1 << 40))
        assert frontend.queue_num() == 2, "the session goes on"
    assert card.count("set_mtu") == 0


def test_the_device_is_told_whom_to_announce(backend: Backend, card: RecordingDevice) -> None:
    with backend.negotiated() as frontend:
        frontend.request(Request.SEND_RARP, MacAddress(MAC))
    assert card.count("send_rarp", MAC) == 1


@pytest.mark.parametrize(
    ("request_", "payload"), [(Request.NET_SET_MTU, U64(1500)), (Request.SEND_RARP, MacAddress(MAC))]
)
def test_a_device_that_is_no_card_is_asked_for_neither(
    backend: Backend, device: RecordingDevice, request_: Request, payload: U64 | MacAddress
) -> None:
    with backend.negotiated() as frontend, pytest.raises(FrontendError):
        frontend.request(request_, payload)
    assert device.count("set_mtu") == device.count("send_rarp") == 0
