"""The example device: entropy over the wire, through rings written by hand and through those of our driver."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.examples.rng import CHUNK_MAX
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import Frontend, Memory, Vring
from tests.wire.harness import set_up
from tests.wire.ring import INDIRECT, NEXT, WRITE, SplitRing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION_1 = VirtioFeature.VIRTIO_F_VERSION_1
BUFFER = 8192
"""Where buffers lie in shared memory: beyond the ring."""


@contextmanager
def rng(folder: Path) -> Iterator[Path]:
    """Run the example as its users do."""
    path = folder / "rng.sock"
    command = [sys.executable, "-u", "-m", "kpoll.vhost.examples.rng", "--socket-path", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        try:
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            log, _ = process.communicate(timeout=20)
            print(log)
        assert process.returncode == 0
    assert not path.exists()


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with rng(tmp_path_factory.mktemp("rng")) as path:
        yield path


@contextmanager
def connected(path: Path, features: int = VERSION_1) -> Iterator[tuple[SplitRing, Memory, Vring]]:
    with Frontend(path) as frontend:
        frontend.negotiate(features)
        memory = frontend.add_memory(1 << 20)
        yield SplitRing(memory), memory, set_up(frontend, memory)


def test_fills_a_buffer_with_random_bytes(socket_path: Path) -> None:
    with connected(socket_path) as (ring, memory, vring):
        ring.describe(0, memory.gpa + BUFFER, 64, WRITE)
        ring.offer(0)
        vring.kick()
        assert vring.wait_call()
        assert ring.used() == [(0, 64)]
        first = memory.mmap[BUFFER : BUFFER + 64]
        assert len(set(first)) > 16, "64 random bytes hardly ever have fewer than 17 different ones"
        assert memory.mmap[BUFFER + 64] == 0, "and not a byte more"
        ring.offer(0)
        vring.kick()
        assert vring.wait_call()
        assert memory.mmap[BUFFER : BUFFER + 64] != first


def test_fills_a_chain_and_leaves_what_the_device_may_only_read(socket_path: Path) -> None:
    with connected(socket_path) as (ring, memory, vring):
        ring.describe(0, memory.gpa + BUFFER, 16, NEXT, 1)
        ring.describe(1, memory.gpa + BUFFER + 16, 16, NEXT | WRITE, 2)
        ring.describe(2, memory.gpa + BUFFER + 48, 16, WRITE)
        ring.offer(0)
        vring.kick()
        assert vring.wait_call()
        assert ring.used() == [(0, 32)]
        assert memory.mmap[BUFFER : BUFFER + 16] == bytes(16)
        assert memory.mmap[BUFFER + 16 : BUFFER + 32] != bytes(16)
        assert memory.mmap[BUFFER + 48 : BUFFER + 64] != bytes(16)


def test_gives_less_when_asked_for_a_lot(socket_path: Path) -> None:
    with connected(socket_path) as (ring, memory, vring):
        ring.describe(0, memory.gpa + BUFFER, 512 * 1024, WRITE)
        ring.offer(0)
        vring.kick()
        assert vring.wait_call()
        assert ring.used() == [(0, CHUNK_MAX)]


def test_serves_what_was_available_before_it_was_started(socket_path: Path) -> None:
    with Frontend(socket_path) as frontend:
        frontend.negotiate(VERSION_1)
        memory = frontend.add_memory(1 << 20)
        ring = SplitRing(memory)
        ring.describe(0, memory.gpa + BUFFER, 8, WRITE)
        ring.offer(0)
        vring = set_up(frontend, memory)
        assert vring.wait_call(), "nobody kicked"
        assert frontend.get_vring_base(0) == 1


@pytest.mark.parametrize(
    ("name", "descriptor"),
    [
        ("outside of memory", (1 << 45, 64, WRITE, 0)),
        ("no bytes", (BUFFER, 0, WRITE, 0)),
        ("a loop", (BUFFER, 64, WRITE | NEXT, 0)),
        ("next beyond the table", (BUFFER, 64, WRITE | NEXT, 4711)),
        ("indirect without asking", (BUFFER, 16, INDIRECT, 0)),
    ],
)
def test_a_broken_chain_breaks_the_queue_and_the_next_front_end_is_served(
    socket_path: Path, name: str, descriptor: tuple[int, int, int, int]
) -> None:
    with connected(socket_path) as (ring, memory, vring):
        gpa, length, flags, following = descriptor
        ring.describe(0, memory.gpa + gpa, length, flags, following)
        ring.offer(0)
        vring.kick()
        assert vring.wait_err(), name
        assert ring.used() == []
    with connected(socket_path) as (ring, memory, vring):
        ring.describe(0, memory.gpa + BUFFER, 64, WRITE)
        ring.offer(0)
        vring.kick()
        assert vring.wait_call()


@pytest.mark.parametrize("packed", [0, VirtioFeature.VIRTIO_F_RING_PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("event_idx", [0, VirtioFeature.VIRTIO_F_EVENT_IDX], ids=["flags", "event_idx"])
@pytest.mark.parametrize("indirect", [0, VirtioFeature.VIRTIO_F_INDIRECT_DESC], ids=["direct", "indirect"])
def test_no_kick_is_missed_in_any_ring_format(socket_path: Path, packed: int, event_idx: int, indirect: int) -> None:
    """Each request is published only after the one before came back: whoever misses a kick waits for ever."""
    with Frontend(socket_path) as frontend:
        frontend.negotiate(VERSION_1 | packed | event_idx | indirect)
        driver = Driver(frontend, 0, size=4, chain_max=4)
        memory = frontend.add_memory(4096)
        for token in range(500):
            driver.add([], [Buffer(memory.gpa, 16), Buffer(memory.gpa + 32, 16)], token=token)
            driver.publish()
            [used] = driver.wait()
            assert (used.token, used.len) == (token, 32)


def test_goes_on_where_it_was_stopped(socket_path: Path) -> None:
    with Frontend(socket_path) as frontend:
        frontend.negotiate(VERSION_1)
        memory = frontend.add_memory(1 << 20)
        ring = SplitRing(memory)
        ring.describe(0, memory.gpa + BUFFER, 8, WRITE)
        vring = set_up(frontend, memory)
        for expected in range(1, 20):
            ring.offer(0)
            vring.kick()
            assert vring.wait_call()
            assert ring.used() == [(0, 8)]
            base = frontend.get_vring_base(0)
            assert base == expected
            vring = set_up(frontend, memory, base=base)


def test_ends_when_told_to_with_a_guest_connected(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with rng(tmp_path) as path:
            frontend = stack.enter_context(Frontend(path))
            frontend.negotiate(VERSION_1)
            set_up(frontend, frontend.add_memory(1 << 20))
        assert not path.exists(), "it has ended, and we are still connected"


def test_a_socket_path_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    command = [sys.executable, "-m", "kpoll.vhost.examples.rng", "--socket-path", str(taken)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert run.returncode == 1
    assert run.stderr == f"Error: {taken}: Address already in use\n"
    assert taken.exists()
