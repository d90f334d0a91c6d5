"""`kpoll net --busy-poll-us`: the kernel polls the network card below, and the daemon says if it does."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from tests.cli.harness import PATIENCE_S, Daemon, scraped
from tests.cli.test_net import FRAME, Card
from tests.netns import in_own_network, set_up
from tests.veth import FAR, NEAR, NEAR_IF, cable, inside, leave_to_pollers

if TYPE_CHECKING:
    from pathlib import Path

PORT = 4000


@in_own_network
def test_frames_are_found_by_busy_polling_where_the_wire_has_napi(tmp_path: Path) -> None:
    sock, metrics = tmp_path / "s", tmp_path / "m"
    path = ("--backend", f"udp:{NEAR}:{PORT},{FAR}:{PORT}", "--busy-poll-us", "100", "--poll", "user")
    with cable() as far:
        leave_to_pollers(NEAR_IF)
        with inside(far):
            peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with peer, Daemon("net", *path, "--socket-path", sock, "--metrics-socket", metrics) as daemon:
            told = daemon.logged("busy_poll")
            assert (told["level"], told["us"], told["missing"]) == ("info", 100, [])
            daemon.logged("metrics_listening")
            peer.bind((FAR, PORT))
            peer.connect((NEAR, PORT))
            assert scraped(metrics, "kpoll_net_napi_id") == 0
            deadline = time.monotonic() + PATIENCE_S
            with Card(sock) as card:
                while scraped(metrics, "kpoll_net_busy_poll_packets_total") == 0:
                    assert time.monotonic() < deadline, "no frame was found by busy polling"
                    peer.send(FRAME)
                    card.send(FRAME)  # what wakes the worker
                    assert card.receive() == FRAME
            assert scraped(metrics, "kpoll_net_napi_id") > 0
            assert daemon.stop() == 0


def test_a_tap_or_an_echo_cannot_be_polled_and_who_asked_for_it_is_warned(tmp_path: Path) -> None:
    for us, level in (("0", "info"), ("50", "warning")):
        with Daemon("net", "--backend", "echo", "--busy-poll-us", us, "--socket-path", tmp_path / "s") as daemon:
            told = daemon.logged("busy_poll")
            assert (told["level"], told["us"]) == (level, 0)
            assert "no socket" in told["missing"][0]


@in_own_network
def test_without_being_asked_only_a_socket_says_how_it_is_polled(tmp_path: Path) -> None:
    set_up("lo")
    for backend, told in (("echo", 0), (f"udp:127.0.0.1:{PORT},127.0.0.2:{PORT}", 1)):
        with Daemon("net", "--backend", backend, "--socket-path", tmp_path / "s") as daemon:
            daemon.logged("listening")
            assert daemon.stop() == 0
        assert len([line for line in daemon.log if line["event"] == "busy_poll"]) == told
