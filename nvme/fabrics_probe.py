"""Whether this host's kernel can reach NVMe devices over the network (NVMe/TCP), and what is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

FABRICS: Final = Path("/dev/nvme-fabrics")

type_tcp = Literal["loaded", "loadable", "absent", "unknown"]


@dataclass(frozen=True, kw_only=True)
class FabricsFacts:
    """What there is.

    Attributes:
        device: Whether the kernel has /dev/nvme-fabrics, by which one connects.
        openable: Whether this process may open it.
        tcp: Whether the driver nvme-tcp is in the kernel, can be loaded into it, or isn't there; unknown: it isn't
            loaded, and the kernel's modules can't be seen, as in a container.

    """

    device: bool
    openable: bool
    tcp: type_tcp


def probe_fabrics(root: Path = Path("/")) -> FabricsFacts:
    """Look; nothing is connected or loaded.

    Args:
        root: Where /dev, /sys and /lib/modules are.

    """
    device = root / FABRICS.relative_to("/")
    return FabricsFacts(device=device.exists(), openable=os.access(device, os.R_OK | os.W_OK), tcp=_tcp(root))


def _tcp(root: Path) -> type_tcp:
    if (root / "sys/module/nvme_tcp").exists():
        return "loaded"
    modules = root / "lib/modules" / os.uname().release
    if not modules.exists():
        return "unknown"
    if any("/nvme-tcp.ko" in line for line in _lines(modules / "modules.builtin")):
        return "loaded"
    if any("/nvme-tcp.ko" in line.partition(":")[0] for line in _lines(modules / "modules.dep")):
        return "loadable"
    return "absent"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
