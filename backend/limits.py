"""How much of the host this process may take: its resource limits."""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Take as many descriptors as this process is allowed to (RLIMIT_NOFILE: the soft limit becomes the hard one).

    A queue needs several: its kick, call and error, and with --poll kernel or module one more for the kernel to watch;
    so 256 queues don't fit into the usual 1024, which are for the sake of select(2), and nothing here uses that.
    Where the host refuses (a hard limit above the sysctl fs.nr_open), the limit stays as it is.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
