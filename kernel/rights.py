"""What this process may do on its host: its capabilities, and whether somebody filters its system calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21
CAP_BPF: Final = 39

_STATUS: Final = Path("/proc/self/status")
_USER_NAMESPACE: Final = Path("/proc/self/ns/user")
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO, its inode on every Linux
_SECCOMP_FILTER: Final = 2  # SECCOMP_MODE_FILTER


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What the kernel lets this process do.

    Attributes:
        capabilities: Numbers of the effective ones.
        initial: Whether they are of the initial user namespace: only there do they count for devices and the host.
        filtered: Whether a seccomp filter is in force, such as a container's.

    """

    capabilities: frozenset[int] = frozenset()
    initial: bool = True
    filtered: bool = False

    def has(self, capability: int) -> bool:
        """Say whether a capability is there and counts on the host."""
        return self.initial and capability in self.capabilities


def probe_rights(status: Path = _STATUS, namespace: Path = _USER_NAMESPACE) -> Rights:
    """Ask the kernel; without /proc nothing is known to be allowed.

    Args:
        status: Where proc(5) tells of this process.
        namespace: Its user namespace.

    """
    try:
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        effective = int(lines["CapEff"], 16)
        inode = namespace.stat().st_ino
    except (OSError, KeyError, ValueError):
        return Rights(initial=False)
    return Rights(
        capabilities=frozenset(number for number in range(64) if effective & 1 << number),
        initial=inode == _INITIAL_USER_NAMESPACE,
        filtered=lines.get("Seccomp", "").strip() == str(_SECCOMP_FILTER),
    )
