"""The kernel's own NVMe target, set up through configfs, in the test VM."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

NVMET = Path("/sys/kernel/config/nvmet")
ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Target:
    """A subsystem with one namespace, and a TCP port at which it is offered.

    Args:
        nqn: its name.
        port: the TCP port, and the target's number for it.

    """

    nqn: str
    port: int

    def make(self, backing: str, nsid: int = 1) -> None:
        """Offer a disk, to any host."""
        self._subsystem.mkdir(parents=True)
        self.allow_any_host(True)
        self.add(nsid, backing)
        self.offer()

    def offer(self) -> None:
        """Make the port and listen; the subsystem is there, maybe at another port too."""
        self._port.mkdir(parents=True)
        for name, value in (("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", ADDRESS), ("trsvcid", str(self.port))):
            (self._port / f"addr_{name}").write_text(value)
        self.start()

    def add(self, nsid: int, backing: str) -> None:
        """Add a namespace."""
        namespace = self._subsystem / "namespaces" / str(nsid)
        namespace.mkdir()
        (namespace / "device_path").write_text(backing)
        self.enable(nsid, True)

    def enable(self, nsid: int, wanted: bool) -> None:
        """Let a namespace appear or vanish."""
        (self._subsystem / "namespaces" / str(nsid) / "enable").write_text(str(int(wanted)))

    def allow_any_host(self, wanted: bool) -> None:
        """Let anybody connect, or nobody."""
        (self._subsystem / "attr_allow_any_host").write_text(str(int(wanted)))

    def allow_controllers(self, most: int) -> None:
        """Let so many connect at a time."""
        (self._subsystem / "attr_cntlid_max").write_text(str(most))

    def start(self) -> None:
        """Listen."""
        (self._port / "subsystems" / self.nqn).symlink_to(self._subsystem)

    def loop(self) -> None:
        """Be there without a network too."""
        port = NVMET / "ports" / "9"
        port.mkdir()
        (port / "addr_trtype").write_text("loop")
        (port / "subsystems" / self.nqn).symlink_to(self._subsystem)

    def kill(self) -> None:
        """Break all connections and listen no more."""
        (self._port / "subsystems" / self.nqn).unlink()

    @property
    def option(self) -> str:
        """What --nvme-tcp wants to know."""
        return f"addr={ADDRESS}:{self.port},nqn={self.nqn}"

    @property
    def _subsystem(self) -> Path:
        return NVMET / "subsystems" / self.nqn

    @property
    def _port(self) -> Path:
        return NVMET / "ports" / str(self.port)


def loopback_up() -> None:
    """Have 127.0.0.1, which a fresh VM hasn't."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
