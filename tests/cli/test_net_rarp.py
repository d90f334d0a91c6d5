"""A guest that has moved here is announced on whatever its frames go to (VHOST_USER_SEND_RARP)."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import MacAddress
from tests import taps
from tests.cli.harness import PATIENCE_S, PROTOCOL, Daemon
from tests.cli.wires import TAP, tap, udp, vxlan
from tests.netns import in_own_network, set_up

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.wires import type_wire

MAC = bytes.fromhex("525400123456")
# RFC 903: who am I, who have this address?
ANNOUNCEMENT = bytes.fromhex("ffffffffffff 525400123456 8035 0001 0800 06 04 0003") + (MAC + bytes(4)) * 2


@pytest.mark.parametrize("kind", [tap, udp, vxlan])
@in_own_network
def test_a_guest_that_has_moved_here_is_announced(tmp_path: Path, kind: type_wire) -> None:
    with kind() as wire, Daemon("net", "--backend", wire.backend, "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL | ProtocolFeature.RARP)
            with pytest.raises(FrontendError):
                frontend.request(Request.SEND_RARP, MacAddress(b"\xff" * 6))
            frontend.request(Request.SEND_RARP, MacAddress(MAC))
            assert wire.receive() == ANNOUNCEMENT.ljust(60, b"\0")
        assert daemon.stop() == 0


@in_own_network
def test_a_guest_is_announced_though_nobody_was_there_before(tmp_path: Path) -> None:
    with udp() as wire, Daemon("net", "--backend", wire.backend, "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL | ProtocolFeature.RARP)
            ours, theirs = wire.end.getpeername(), wire.end.getsockname()
            wire.end.close()
            frontend.request(Request.SEND_RARP, MacAddress(MAC))  # what comes back by ICMP is the next one's error
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.bind(theirs)
                end.connect(ours)
                end.settimeout(PATIENCE_S)
                frontend.request(Request.SEND_RARP, MacAddress(MAC))
                assert end.recv(2048) == ANNOUNCEMENT.ljust(60, b"\0")
        assert daemon.stop() == 0
    assert not [line for line in daemon.log if line["event"] == "announce_failed"]


@in_own_network
def test_a_guest_that_cannot_be_announced_keeps_its_card(tmp_path: Path) -> None:
    with tap() as wire, Daemon("net", "--backend", wire.backend, "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            frontend.negotiate(VirtioFeature.VIRTIO_F_VERSION_1, PROTOCOL | ProtocolFeature.RARP)
            set_up(TAP, up=False)
            frontend.request(Request.SEND_RARP, MacAddress(MAC))
            line = daemon.logged("announce_failed")
            assert (line["level"], line["mac"]) == ("warning", "52:54:00:12:34:56")
            assert line["error"] == "Input/output error"
            set_up(TAP)
            assert wire.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN  # told once
            frontend.request(Request.SEND_RARP, MacAddress(MAC))
            assert wire.receive() == ANNOUNCEMENT.ljust(60, b"\0")
            taps.delete(TAP)
            frontend.request(Request.SEND_RARP, MacAddress(MAC))
            daemon.logged("announce_failed")
        assert daemon.stop() == 0


def test_a_card_that_talks_to_nobody_offers_no_announcement(tmp_path: Path) -> None:
    with Daemon("net", "--backend", "echo", "--socket-path", tmp_path / "s") as daemon:
        daemon.logged("listening")
        with Frontend(tmp_path / "s") as frontend:
            both = ProtocolFeature.MTU | ProtocolFeature.RARP
            assert frontend.protocol_features & both == ProtocolFeature.MTU
        assert daemon.stop() == 0
