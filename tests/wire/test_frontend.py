"""Our front-end against somebody else's back-end: qemu-storage-daemon's vhost-user-blk export."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from kpoll.vhost.driver import Buffer, Driver
from kpoll.vhost.features import ProtocolFeature, VirtioFeature
from kpoll.vhost.frontend import Frontend, FrontendError
from kpoll.vhost.messages import BackendRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTORS = 4096
VERSION_1 = VirtioFeature.VIRTIO_F_VERSION_1
IN = struct.pack("<IIQ", 0, 0, 7)  # VIRTIO_BLK_T_IN, from sector 7


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed")
    folder = tmp_path_factory.mktemp("peer")
    path, image, pid = folder / "blk.sock", folder / "image", folder / "pid"
    image.write_bytes(bytes(7 * 512) + b"sector 7".ljust(512, b".") + bytes((SECTORS - 8) * 512))
    command = [program, "--blockdev", f"driver=file,node-name=f,filename={image}"]
    command += ["--export", f"type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={path},num-queues=2"]
    # With --daemonize it returns once it listens.
    subprocess.run([*command, "--pidfile", str(pid), "--daemonize"], check=True, timeout=20)
    process = int(pid.read_text())
    watch = os.pidfd_open(process)
    yield path
    os.kill(process, 15)
    assert select.select([watch], [], [], 20)[0], "it did not end"
    os.close(watch)


@pytest.mark.parametrize("slots", [True, False], ids=["ADD_MEM_REG", "SET_MEM_TABLE"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event_idx", "flags"])
def test_reads_a_sector_from_another_back_end(peer: Path, slots: bool, event_idx: bool) -> None:
    with Frontend(peer) as frontend:
        protocol = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG
        frontend.negotiate(
            VERSION_1 | (VirtioFeature.VIRTIO_F_EVENT_IDX if event_idx else 0),
            protocol | (ProtocolFeature.CONFIGURE_MEM_SLOTS if slots else 0),
        )
        assert frontend.queue_num() == 2
        assert struct.unpack("<Q", frontend.get_config(0, 60)[:8]) == (SECTORS,)
        driver = Driver(frontend, 1)
        memory = frontend.add_memory(4096)
        memory.mmap[:16] = IN
        memory.mmap[1024] = 0xFF
        for token in range(20):
            driver.add(
                [Buffer(memory.gpa, 16)], [Buffer(memory.gpa + 512, 512), Buffer(memory.gpa + 1024, 1)], token=token
            )
            driver.publish()
            assert [used.token for used in driver.wait()] == [token]
        assert memory.mmap[512:520] == b"sector 7"
        assert memory.mmap[1024] == 0, "VIRTIO_BLK_S_OK"
        assert frontend.get_vring_base(1) == 20


def test_says_so_when_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Frontend(tmp_path / "nobody")


def test_says_so_when_the_back_end_does_not_answer() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(FrontendError, match="does not answer"):
        Frontend(ours, timeout=0.01)
    assert ours.fileno() == -1, "and leaves nothing open"


def test_says_so_when_the_back_end_hangs_up() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(FrontendError, match=r"the back-end hung up; does it serve another front-end already[?]$"):
        Frontend(ours)


def test_acknowledges_a_request_of_the_back_end_that_asks_for_it(peer: Path) -> None:
    """Played by hand at the other end of the channel: NEED_REPLY is answered with a zero."""
    with Frontend(peer) as frontend:
        frontend.negotiate(VERSION_1, frontend.protocol_features & ~int(ProtocolFeature.INBAND_NOTIFICATIONS))
        frontend.open_backend_channel()
        ours, theirs = socket.socketpair()
        with theirs:
            frontend._channel.close()  # type: ignore[union-attr]  # noqa: SLF001 - stand in for the back-end
            frontend._channel = ours  # noqa: SLF001
            theirs.sendall(struct.pack("=III", BackendRequest.CONFIG_CHANGE_MSG, 0x1 | 0x8, 0))
            assert frontend.next_backend_request() == BackendRequest.CONFIG_CHANGE_MSG
            assert theirs.recv(64) == struct.pack("=IIIQ", BackendRequest.CONFIG_CHANGE_MSG, 0x1 | 0x4, 8, 0)
