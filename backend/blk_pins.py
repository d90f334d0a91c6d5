"""Guest memory registered with io_uring (--pin-guest-memory): the kernel needn't look pages up for each request.

Pinned pages stay until they are unpinned, also those that the guest gives back (a balloon, virtio-mem): they stay
allocated, and when the guest takes them again, it is given others, while I/O still goes to the old ones. Hence it is
off by default.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Any, Final

import trio

from kpoll.kernel.rights import Rights, probe_rights
from kpoll.vhost._core import ffi, lib

from .errors import KpollError
from .sandbox import CAP_IPC_LOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from kpoll.vhost.memory import MemoryTable

_GUEST_MIN: Final = 64 << 20  # bytes: no guest that boots Linux has less
_MIB: Final = 1 << 20


def check_memlock(workers: int, limit: int, rights: Rights) -> None:
    """Refuse a limit that no guest fits in. Each worker's ring pins, and counts, all of its memory.

    Args:
        workers: How many there will be.
        limit: RLIMIT_MEMLOCK in bytes, or RLIM_INFINITY.
        rights: What this process may; io_uring lets CAP_IPC_LOCK of the initial user namespace alone exceed the limit.

    Raises KpollError.

    """
    if limit == resource.RLIM_INFINITY or limit >= _GUEST_MIN * workers or rights.has(CAP_IPC_LOCK):
        return
    raise KpollError(
        f"--pin-guest-memory: only {limit // _MIB} MiB may be locked, and each worker locks all of the guest's memory: "
        "raise RLIMIT_MEMLOCK (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit), or give CAP_IPC_LOCK"
    )


def _why(error: int) -> str:
    match error:
        case errno.ENOMEM:
            return "not as much memory may be locked: raise RLIMIT_MEMLOCK (`ulimit -l unlimited`)"
        case errno.EOPNOTSUPP | errno.EFAULT:  # Linux 6.1, and later ones
            return "this kind of memory can't be pinned: give the guest memory-backend-memfd"
        case errno.ENOSPC:
            return "it lies in too many pieces, or is more than 1 TiB"
        case _:
            return os.strerror(error)


class GuestPins:
    """What of the guest's memory is pinned, in all lanes of a disk alike."""

    def __init__(self, lanes: Sequence[Any], log: FilteringBoundLogger) -> None:
        """Prepare the rings of these `struct blk_lane *`; nothing is pinned yet.

        Raises KpollError when this host can't pin.
        """
        self._lanes = tuple(lanes)
        self._log = log
        check_memlock(len(self._lanes), resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], probe_rights())
        if error := self._pin(ffi.NULL):
            why = "it takes Linux 5.19" if error == errno.EINVAL else os.strerror(error)
            raise KpollError(f"--pin-guest-memory: io_uring can't register memory here: {why}; leave it away")

    async def follow(self, memory: MemoryTable | None) -> None:
        """Have this memory pinned and no other, as far as that goes: what can't be is served all the same.

        No queue of the disk may run meanwhile. What was pinned and isn't in `memory` may be unmapped when this returns.
        """
        handle = ffi.NULL if memory is None else memory.handle
        error = await trio.to_thread.run_sync(self._pin, handle)
        if memory is None:
            return
        if error:
            self._log.warning("memory_not_pinned", bytes=memory.size, error=_why(error))
        else:
            self._log.info("memory_pinned", bytes=memory.size)

    def _pin(self, handle: Any) -> int:
        """Blocks while pages are pinned. Returns an errno, 0 when all is well; all lanes have their turn."""
        return max(-int(lib.blk_lane_pin(lane, handle)) for lane in self._lanes)
