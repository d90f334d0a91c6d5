"""What a kernel's console log says about the kernel's health."""

from __future__ import annotations

import re

# Every report of the kernel about itself begins with one of these, or ends in a call trace.
SPLAT = re.compile(
    r"Kernel panic|\bBUG:|\bWARNING:|\bOops\b|general protection fault|\bCall Trace:|\bKASAN:|\bKCSAN:|\bUBSAN:"
    r"|\bODEBUG:|\brefcount_t:|detected stalls? on CPU|self-detected stall|blocked for more than \d+ seconds"
    r"|sleeping function called|list_(?:add|del) corruption|Bad page state|unregister_netdevice: waiting"
)


def first_splat(log: str) -> str | None:
    """Return the console log from the kernel's first complaint on, or None where it has none."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if SPLAT.search(line):
            start = number
            while start > 0 and "[ cut here ]" in lines[start - 1]:
                start -= 1
            return "\n".join(lines[start:])
    return None
