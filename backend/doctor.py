"""What `kpoll doctor` finds: what this host offers kpoll, and how to have what it doesn't.

Each file doctor_*.py turns what was probed into findings, a pure function of it, so that every host can be played in a
test. The probing itself is done where the thing is at home (kernel/, nvme/), and always for real: a ring is set up, a
library loaded, a device opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

# good: it is there, and as it should be. improvable: it works, and could serve better. missing: it isn't there, which
# is a fault only where something needs it. unknown: it can't be asked from here.
type_state = Literal["good", "improvable", "missing", "unknown"]
type_area = Literal["polling", "engines", "nvme", "cards", "sandbox", "rights"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: What it is for.
        name: What it is; the same on all hosts, but for names of devices.
        state: How it is.
        found: What there is, in words.
        change: What to do about it, in words with the very command; None: nothing, or nothing that can be done.

    """

    area: type_area
    name: str
    state: type_state
    found: str
    change: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it.

    Attributes:
        kernel: The running kernel's release.
        user: Number of the user who asked; what is found is what that user may do.
        can_serve_disks: Whether any engine works that does I/O.
        findings: By area.

    """

    kernel: str
    user: int
    can_serve_disks: bool
    findings: tuple[Finding, ...]


def set_sysctl(name: str, value: int) -> str:
    """Say how a sysctl is set, now and for good."""
    return f"`sysctl {name}={value}`, and the line `{name}={value}` in /etc/sysctl.d/kpoll.conf to keep it"


def report(findings: Iterable[Finding], *, can_serve_disks: bool) -> Report:
    """Put findings together with where and for whom they hold."""
    return Report(
        kernel=os.uname().release, user=os.geteuid(), can_serve_disks=can_serve_disks, findings=tuple(findings)
    )
