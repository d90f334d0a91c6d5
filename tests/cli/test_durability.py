"""When the driver turns the write cache off, what was answered under it becomes durable before the change is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kpoll.backend.blk_config import BlkFeature
from kpoll.vhost.features import VirtioFeature
from kpoll.vhost.frontend import FrontendError
from kpoll.vhost.messages import Request
from kpoll.vhost.payloads import U64
from tests.cli.harness import IN, KPOLL, OUT, SECTOR, Daemon, Guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
WCE = BASE | BlkFeature.VIRTIO_BLK_F_FLUSH | BlkFeature.VIRTIO_BLK_F_CONFIG_WCE
WRITEBACK = 32


def syncs_of(trace: Path) -> int:
    return sum("fdatasync(" in line for line in trace.read_text().splitlines())


def writeback_off(guest: Guest) -> None:
    guest.frontend.set_config(WRITEBACK, b"\0")


def features_without_flush(guest: Guest) -> None:
    guest.frontend.request(Request.SET_FEATURES, U64(BASE))


@pytest.mark.parametrize("turn_off", [writeback_off, features_without_flush])
def test_turning_the_cache_off_makes_what_was_answered_durable_first(
    tmp_path: Path, turn_off: Callable[[Guest], None]
) -> None:
    image, sock, trace = tmp_path / "disk.img", tmp_path / "s", tmp_path / "trace"
    image.write_bytes(os.urandom(1 << 20))
    strace = ("strace", "-D", "-f", "-e", "trace=fdatasync", "-o", trace, KPOLL)
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, program=strace) as daemon:
        daemon.logged("listening")
        with Guest(sock, features=WCE) as guest:
            assert guest.request(OUT, 3, out=b"k" * SECTOR)[0] == 0
            before = syncs_of(trace)
            turn_off(guest)
            assert (before, syncs_of(trace)) == (0, 1)
            assert guest.request(IN, 3, length=SECTOR) == (0, b"k" * SECTOR)
            turn_off(guest)
            assert syncs_of(trace) == 1, "nothing is cached any more"
        assert daemon.stop() == 0


def test_what_the_page_cache_lost_is_not_called_durable_at_the_second_try(tmp_path: Path) -> None:
    image, sock, trace = tmp_path / "disk.img", tmp_path / "s", tmp_path / "trace"
    image.write_bytes(os.urandom(1 << 20))
    no_direct = "inject=openat:error=EINVAL:when=1"  # the image's first open(2), with O_DIRECT
    lost_once = "inject=fdatasync:error=EIO:when=1"  # as Linux has it: the next one succeeds
    strace = ("strace", "-D", "-f", "-P", image, "-e", no_direct, "-e", lost_once, "-o", trace, KPOLL)
    with Daemon("blk", "--socket-path", sock, "--blk-file", image, program=strace) as daemon:
        daemon.logged("listening")
        with Guest(sock, features=WCE) as guest:
            assert guest.request(OUT, 3, out=b"k" * SECTOR)[0] == 0
            for _ in range(2):
                with pytest.raises(FrontendError, match="failed"):
                    writeback_off(guest)
            assert syncs_of(trace) == 1
        assert daemon.stop() == 0
