"""What a card's frames go to, with somebody at the other end; for tests in a network of their own (netns.py)."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import taps
from tests.cli.harness import PATIENCE_S
from tests.netns import set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    type_wire = Callable[[], AbstractContextManager["Wire"]]

TAP, VNI, VXLAN_PORT = "vm1", 42, 4789
OURS, THEIRS = "127.0.0.1", "127.0.0.2"
_ROOM = 2048
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23


@dataclass(frozen=True)
class Wire:
    """A path for frames.

    Attributes:
        backend: The card's end, as --backend has it.
        end: The other end.
        before: What is before each frame there.

    """

    backend: str
    end: socket.socket
    before: bytes = b""

    def send(self, frame: bytes) -> None:
        """Send a frame to the card."""
        self.end.send(self.before + frame)

    def receive(self) -> bytes:
        """Wait for a frame that the card sent."""
        got = self.end.recv(_ROOM)
        assert got.startswith(self.before)
        return got[len(self.before) :]


@contextmanager
def tap() -> Iterator[Wire]:
    """Make a tap whose host says nothing by itself, and listen there to all."""
    taps.make(TAP)
    Path(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6").write_text("1")
    set_up(TAP)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        end.bind((TAP, _ETH_P_ALL))
        end.settimeout(PATIENCE_S)
        yield Wire(f"tap:{TAP}", end)


@contextmanager
def udp() -> Iterator[Wire]:
    """Be the other end of a UDP path."""
    with _datagrams(4001, 4000) as end:
        yield Wire(f"udp:{OURS}:4000,{THEIRS}:4001", end)


@contextmanager
def vxlan() -> Iterator[Wire]:
    """Be the other end of a VXLAN segment (RFC 7348 §5: the flag that there is a VNI, and the VNI)."""
    with _datagrams(VXLAN_PORT, VXLAN_PORT) as end:
        yield Wire(f"vxlan:vni={VNI},local={OURS},remote={THEIRS}", end, struct.pack(">II", 1 << 27, VNI << 8))


@contextmanager
def _datagrams(theirs: int, ours: int) -> Iterator[socket.socket]:
    set_up("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind((THEIRS, theirs))
        end.connect((OURS, ours))
        end.settimeout(PATIENCE_S)
        yield end
