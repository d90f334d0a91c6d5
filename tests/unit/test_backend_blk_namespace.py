"""What a namespace says it frees at once counts where it says more than the kernel, and can be."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from kpoll.backend import blk_disk, blk_namespace
from kpoll.nvme import libnvme, sysfs
from tests.unit.test_nvme_pages import page

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.mark.parametrize(
    ("told", "discard_max", "counts"),
    [
        (4096, 64 * MIB, 4096),
        (0, 64 * MIB, 512),  # not told
        (64 * MIB, 64 * MIB, 64 * MIB),
        (64 * MIB, 32 * MIB, 512),  # more than a request may cover
        (4 << 30, 1 << 40, 512),  # more than one of ours does
        (4096, 0, 512),  # nothing is freed anyway
    ],
)
def test_the_larger_granularity_counts_if_a_request_can_cover_it(
    monkeypatch: pytest.MonkeyPatch, told: int, discard_max: int, counts: int
) -> None:
    monkeypatch.setattr(blk_disk, "discard_granularity", lambda _fd: told)
    target = SimpleNamespace(fd=0, block_device=True, discard_granularity=512, discard_max=discard_max)
    assert blk_disk._discard_granularity(target) == counts  # noqa: SLF001 - of a disk that this host lacks


class Library:
    """A libnvme whose device says this, or fails so."""

    def __init__(self, answer: bytes | Exception) -> None:
        """Have this answer, whatever is asked."""
        self.answer = answer

    def identify_namespace(self, _fd: int) -> bytes:
        """Answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("library", "told"),
    [
        (Library(page("id-ns-512")), 4096),
        (Library(PermissionError(13, "Permission denied")), 0),
        (Library(libnvme.StatusError("Invalid Field")), 0),
        (None, 0),
    ],
    ids=["told", "denied", "refused", "no library"],
)
def test_a_namespace_that_can_not_be_asked_leaves_it_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, library: Library | None, told: int
) -> None:
    monkeypatch.setattr(blk_namespace, "namespace_serial", lambda _fd: b"kpoll0")
    monkeypatch.setattr(libnvme, "load", lambda: library)
    assert blk_namespace.discard_granularity(0) == told


def test_a_file_is_no_namespace_and_nobody_asks_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysfs, "serial", lambda _device: "of another")
    file = tmp_path / "image"
    file.touch()
    fd = os.open(file, os.O_RDONLY)
    try:
        assert blk_namespace.namespace_serial(fd) == b""
        assert blk_namespace.discard_granularity(fd) == 0
    finally:
        os.close(fd)
