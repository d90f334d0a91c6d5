"""Standard input, output and error: whoever starts us may have closed them (`kpoll … <&-`).

Then the next thing that is opened gets such a number, be it the disk or a socket, and takes what is meant for the log;
and in the processes that are forked to ask a device 0 to 2 lead to nothing. So they are there, before all else.
"""

from __future__ import annotations

import os

from .errors import KpollError, os_reason


def open_standard_streams() -> None:
    """Have descriptors 0 to 2 lead to nothing where they are closed. Raises KpollError where that can't be."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _open_null(fd)


def _open_null(fd: int) -> None:
    try:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
    except OSError as error:
        raise KpollError(f"descriptor {fd} is closed, and {os.devnull} not to be had: {os_reason(error)}") from error
