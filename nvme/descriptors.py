"""What a process that was forked for one thing keeps of the descriptors that it was born with."""

from __future__ import annotations

import os


def close_all_but(*keep: int, first: int = 0) -> None:
    """Close this process's descriptors.

    Args:
        keep: Which stay open.
        first: From which one on; those below stay open too.

    """
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
