"""The errors that a user sees: one line each, and the exit code that goes with it."""

from __future__ import annotations


class KpollError(Exception):
    """Something on this host is not as it has to be; the message is one line that says what to do. Exit code 1."""

    exit_code = 1


class UsageError(KpollError):
    """The command line itself is wrong, whatever the host is like. Exit code 2."""

    exit_code = 2


def os_reason(error: OSError) -> str:
    """Return what the kernel said, in words and without Python's decoration: `No such file or directory`."""
    return error.strerror or str(error)
