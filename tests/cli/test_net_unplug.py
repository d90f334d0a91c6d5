"""An interface deleted under load costs its frames, not the card: its cable is out until one of that name is back."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from kpoll.vhost.driver import Buffer
from tests import taps
from tests.cli.harness import Daemon, scraped, until
from tests.cli.test_net import FRAME, HEADER, ROOM, Card
from tests.netns import in_own_network, set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TAP = "vm1"
MEASURE_S = 1.0
LINK_UP = 1  # VIRTIO_NET_S_LINK_UP, of the status after the address
AT_HOST = socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)


def link_of(card: Card) -> int:
    """Return what the guest reads as its card's status."""
    return int.from_bytes(card.frontend.get_config(6, 2), "little")


@contextmanager
def load(*turns: Callable[[], object]) -> Iterator[None]:
    """Run each of these again and again, in a thread of its own."""
    ended = Event()

    def run(turn: Callable[[], object]) -> None:
        while not ended.is_set():
            turn()

    threads = [Thread(target=run, args=[turn]) for turn in turns]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def take(card: Card) -> list[bytes]:
    """Take the frames that are there, and make their buffers available again."""
    frames = []
    for used in card.rx.poll():
        at = used.token * ROOM
        frames.append(card.memory.mmap[at + HEADER : at + used.len])
        card.rx.add([], [Buffer(card.memory.gpa + at, ROOM)], used.token)
    card.rx.publish()
    return frames


def host_end(name: str) -> socket.socket:
    """Open the host's end of the cable: what the card sent is received here."""
    end = socket.socket(*AT_HOST)
    end.bind((name, 0x88B5))
    end.setblocking(False)
    return end


def to_guest(end: socket.socket) -> None:
    """Send a frame, if there is anything to send it on."""
    try:
        end.send(FRAME)
    except OSError:
        time.sleep(0.001)  # full, or gone: nothing is waited for


@in_own_network
def test_a_tap_that_is_deleted_under_load_takes_the_cable_out_until_it_is_back(tmp_path: Path) -> None:
    taps.make(TAP)
    set_up(TAP)
    sock, metrics = tmp_path / "s", tmp_path / "m"
    command = ("net", "--backend", f"tap:{TAP}", "--socket-path", sock, "--metrics-socket", metrics)
    with Daemon(*command) as daemon, host_end(TAP) as first:
        daemon.logged("listening")
        assert daemon.logged("link")["state"] == "up"
        with Card(sock) as card:
            card.frontend.open_backend_channel()
            with load(lambda: card.send(FRAME), lambda: take(card), lambda: to_guest(first)):
                until(lambda: all(packets(metrics, direction) > 100 for direction in ("rx", "tx")))
                taps.delete(TAP)
                until(lambda: daemon.logged("link")["state"] == "gone")
                card.frontend.next_backend_request()  # the configuration has changed
                assert link_of(card) == 0

            before = scraped(metrics, "kpoll_worker_cpu_seconds_total")
            time.sleep(MEASURE_S)  # the measurement itself, not a wait for something to happen
            assert scraped(metrics, "kpoll_worker_cpu_seconds_total") - before < MEASURE_S / 20

            subprocess.run(["ip", "tuntap", "add", "other", "mode", "tap"], check=True)
            theirs = taps.attach("other", taps.IFF_TAP | taps.IFF_NO_PI)
            subprocess.run(["ip", "link", "set", "other", "name", TAP, "up"], check=True)
            assert f"{TAP} is busy" in daemon.logged("not_attached")["error"]
            os.close(theirs)
            card.frontend.next_backend_request()
            until(lambda: link_of(card) == LINK_UP)
            with host_end(TAP) as again:

                def crosses() -> bool:
                    card.send(FRAME)
                    return received(again) == FRAME

                until(crosses)
                sent = b"\x02" + os.urandom(5) + FRAME[6:]
                again.send(sent)
                until(lambda: sent in take(card))
        assert [line["event"] for line in daemon.log if line["level"] == "error"] == ["link", "not_attached"]
        assert daemon.stop() == 0


def packets(metrics: Path, direction: str) -> float:
    """Return how many frames have arrived."""
    return scraped(metrics, "kpoll_net_packets_total", direction=direction)


def received(end: socket.socket) -> bytes | None:
    """Return a frame, if there is one."""
    try:
        return end.recv(ROOM)
    except BlockingIOError:
        return None
