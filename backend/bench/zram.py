"""A RAM block device for comparisons: zram, filled with random data so that every read costs the same.

The stand-in for a very fast disk: about 2 µs per 4 KiB read with O_DIRECT. It takes root, and it takes as much RAM as
its size, because random data does not compress.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kpoll.backend.errors import KpollError, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL: Final = Path("/sys/class/zram-control")
_CHUNK: Final = 64 << 20
_RAM_MARGIN: Final = 1 << 30


@contextmanager
def zram(size: int) -> Iterator[Path]:
    """Make a zram device, full of random data, and remove it afterwards.

    Args:
        size: Bytes, a multiple of 64 MiB.

    Yields:
        Its device node.

    Raises:
        KpollError: Not root, no zram in this kernel, or not enough free RAM.

    """
    _check_host(size)
    try:
        number, added = _take()
        sysfs, node = Path(f"/sys/block/zram{number}"), Path(f"/dev/zram{number}")
        try:
            (sysfs / "disksize").write_text(str(size))
            _fill(node, size)
            yield node
        finally:
            (sysfs / "reset").write_text("1")
            if added:
                (_CONTROL / "hot_remove").write_text(str(number))
    except OSError as e:
        raise KpollError(f"zram can't be set up: {e.filename or 'sysfs'}: {os_reason(e)}") from e


def _check_host(size: int) -> None:
    if os.geteuid() != 0:
        raise KpollError("the comparison needs root, for a zram device: run it with sudo, or --only the null cases")
    if not _CONTROL.is_dir():
        raise KpollError("this kernel has no zram (yet): modprobe zram, or --only the null cases")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _mem_available() or free
    if available < size + _RAM_MARGIN:
        raise KpollError(f"zram of {size >> 20} MiB needs that much free RAM, and there are {available >> 20} MiB")


def _mem_available() -> int | None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def _take() -> tuple[int, bool]:
    """Find an idle device or make one. Gives its number, and whether it was made."""
    for sysfs in sorted(Path("/sys/block").glob("zram*")):
        if int((sysfs / "disksize").read_text()) == 0:
            return int(sysfs.name.removeprefix("zram")), False
    return int((_CONTROL / "hot_add").read_text()), True


def _fill(node: Path, size: int) -> None:
    chunk = os.urandom(_CHUNK)  # zram compresses page by page: it never notices that chunks repeat
    with node.open("wb", buffering=0) as device:
        for _ in range(size // _CHUNK):
            device.write(chunk)
        os.fsync(device.fileno())
