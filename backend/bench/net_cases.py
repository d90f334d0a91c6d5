"""What the net table compares: cards under load on one side, testpmd or a plain loop of system calls on the other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from kpoll.backend.bench.cable import FAR, NEAR, NEAR_END, cable
from kpoll.backend.bench.compare import WARMUP_S, Bar, type_metric
from kpoll.backend.bench.datagrams import Datagrams
from kpoll.backend.bench.net import NetLoad, run_net
from kpoll.backend.bench.peers import kpoll_net, running, testpmd
from kpoll.backend.bench.raw import raw_receive, raw_tap, raw_udp, raw_xdp
from kpoll.backend.errors import KpollError

if TYPE_CHECKING:
    from pathlib import Path

    from kpoll.backend.bench.net_report import NetReport

METRICS: Final[dict[type_metric, Callable[[NetReport], float]]] = {
    "Mpps": lambda report: report.pps / 1e6,
    "M/CPU s": lambda report: 1e3 / (report.cpu_ns_per_packet or float("nan")),
    "p50 µs": lambda report: float("nan") if report.rtt is None else report.rtt.p50 / 1e3,
}
TAP: Final = "bench0"
"""The name of a tap that is up, and that nobody reads."""

_VXLAN_HEADER: Final = bytes.fromhex("08000000 00000700")  # RFC 7348 §5: of VNI 7
_UDP_MAX: Final = 1400  # bytes of a frame that with its headers fits a path's 1,500
_FED: Final = 256  # datagrams under way to who receives: four bursts, or eight


@dataclass(frozen=True)
class Place:
    """Where a measurement happens.

    Attributes:
        cpus: The back-end's CPU, and the front-end's.
        folder: For the socket.
        logs: For what back-ends print.
        runtime: Seconds to measure.
        sink: Takes UDP datagrams, and never reads them.

    """

    cpus: tuple[int, int]
    folder: Path
    logs: Path
    runtime: float
    sink: socket.socket

    @property
    def sock(self) -> Path:
        """Where the back-end listens."""
        return self.folder / "socket"


type_side = Callable[[Place], float]


def _drive(command: list[str], place: Place, name: str, load: dict[str, Any], metric: type_metric) -> float:
    asked = NetLoad(runtime=place.runtime, warmup=WARMUP_S, cpu=place.cpus[1], **load)
    with running(command, place.sock, place.cpus[0], place.logs / f"{name}.log"):
        report = run_net(place.sock, asked)
    if report.complaint:
        raise KpollError(f"{name}: {report.complaint}")
    return METRICS[metric](report)


def ours(backend: str, load: dict[str, Any], metric: type_metric = "Mpps") -> type_side:
    """Measure a card of kpoll's; {sink} in `backend` is the sink's port."""

    def side(place: Place) -> float:
        text = backend.replace("{sink}", str(place.sink.getsockname()[1]))
        return _drive(kpoll_net(text, place.sock), place, "kpoll-net", load, metric)

    return side


def theirs(mode: str, load: dict[str, Any], *options: str, metric: type_metric = "Mpps") -> type_side:
    """Measure testpmd."""
    return lambda place: _drive(testpmd(mode, place.sock, place.cpus[0], *options), place, "testpmd", load, metric)


def over_the_cable(*options: str) -> type_side:
    """Measure round trips of a card over UDP, with what comes out at the path's other end sent back there."""
    path = f"udp:{NEAR[0]}:{NEAR[1]},{FAR[0]}:{FAR[1]}"

    def side(place: Place) -> float:
        with cable() as reflector:
            load = {"mode": "echo", "reflector": reflector}
            return _drive(kpoll_net(path, place.sock, *options), place, "kpoll-net", load, "p50 µs")

    return side


def fed(backend: str, to: tuple[str, int], size: int, header: bytes = b"") -> type_side:
    """Measure a card of kpoll's that receives, and sleeps when nothing comes, as the loop it is compared with does.

    Args:
        backend: What it receives from; {feeder} in it is the port of who sends.
        to: Where that one sends to.
        size: Bytes of a frame.
        header: What is in front of each frame in a datagram.

    """

    def side(place: Place) -> float:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            far.connect(to)
            feeder = (far, _burst(size, header))
            load = {"mode": "rx", "size": size, "depth": _FED, "feeder": feeder}
            text = backend.replace("{feeder}", str(far.getsockname()[1]))
            return _drive(kpoll_net(text, place.sock, "--poll", "off"), place, "kpoll-net", load, "M/CPU s")

    return side


def _burst(size: int, header: bytes) -> Datagrams:
    """Lay out what arrives at once, as from a network interface that has put datagrams together (GRO)."""
    frame = b"\xff" * 6 + bytes(6) + b"\x88\xb5"  # as bench_net.c's: broadcast, Local Experimental 1
    return Datagrams(header + frame.ljust(size, b"\0"), NetLoad.batch, cut=True)


def on_the_cable(size: int) -> type_side:
    """Measure a card of kpoll's that sends to a veth pair through AF_XDP."""

    def side(place: Place) -> float:
        with cable():
            load = {"mode": "tx", "size": size}
            return _drive(kpoll_net(f"xdp:{NEAR_END}", place.sock), place, "kpoll-net", load, "M/CPU s")

    return side


def _on_the_backend_s_cpu(place: Place, loop: Callable[[], float]) -> float:
    os.sched_setaffinity(0, {place.cpus[0]})
    try:
        return loop() / 1e6
    finally:
        os.sched_setaffinity(0, {place.cpus[1]})


def sending(size: int) -> type_side:
    """Measure a loop that sends datagrams to the sink."""
    return lambda place: _on_the_backend_s_cpu(
        place, lambda: raw_udp(("127.0.0.1", place.sink.getsockname()[1]), size, NetLoad.batch, place.runtime)
    )


def writing(size: int) -> type_side:
    """Measure a loop that writes to a tap."""
    return lambda place: _on_the_backend_s_cpu(place, lambda: raw_tap(TAP, size, place.runtime))


def sending_on_the_cable(size: int) -> type_side:
    """Measure a loop that sends to a veth pair through AF_XDP."""

    def side(place: Place) -> float:
        with cable():
            return _on_the_backend_s_cpu(place, lambda: raw_xdp(NEAR_END, size, NetLoad.batch, place.runtime))

    return side


def receiving(size: int, header: bytes = b"") -> type_side:
    """Measure a loop that receives datagrams."""
    return lambda place: _on_the_backend_s_cpu(
        place, lambda: raw_receive(_burst(size, header), _FED, place.cpus[1], place.runtime)
    )


@dataclass(frozen=True)
class Case:
    """Two sides of one load, and what their ratio has to be."""

    name: str
    kpoll: type_side
    other: type_side
    peer: Literal["testpmd", "raw", "off"]  # off: kpoll without polling
    bar: Bar | None
    metric: type_metric = "Mpps"


_AS_FAST: Final = Bar("Mpps", ">=", 1.0)
_NEARLY: Final = Bar("M/CPU s", ">=", 0.9)


def _cases_of(size: int) -> list[Case]:
    tx: dict[str, Any] = {"mode": "tx", "size": size}
    rx: dict[str, Any] = {"mode": "rx", "size": size}
    alone: dict[str, Any] = {"mode": "echo", "size": size}
    many = {**alone, "depth": 128}
    small = min(size, _UDP_MAX)
    udp = {**tx, "size": small}
    path, segment = "udp:127.0.0.1:9,127.0.0.1:{sink}", "vxlan:vni=7,local=127.0.0.2,remote=127.0.0.1,port={sink}"
    fed_path, fed_segment = "udp:127.0.0.1:9,127.0.0.1:{feeder}", "vxlan:vni=7,local=127.0.0.2,remote=127.0.0.1"
    cpu: type_metric = "M/CPU s"
    quick = theirs("io", alone, metric="p50 µs")
    return [
        Case(f"null-tx-{size}", ours("null", tx), theirs("rxonly", tx), "testpmd", _AS_FAST),
        Case(
            f"null-rx-{size}", ours(f"null:{size}", rx), theirs("txonly", rx, f"--txpkts={size}"), "testpmd", _AS_FAST
        ),
        Case(f"echo-{size}", ours("echo", many), theirs("io", many), "testpmd", _AS_FAST),
        Case(f"echo-rtt-{size}", ours("echo", alone, "p50 µs"), quick, "testpmd", None, "p50 µs"),
        Case(f"udp-tx-{size}", ours(path, udp, cpu), sending(small), "raw", _NEARLY, cpu),
        Case(f"vxlan-tx-{size}", ours(segment, udp, cpu), sending(small + len(_VXLAN_HEADER)), "raw", _NEARLY, cpu),
        Case(f"udp-rx-{size}", fed(fed_path, ("127.0.0.1", 9), small), receiving(small), "raw", _NEARLY, cpu),
        Case(
            f"vxlan-rx-{size}",
            fed(fed_segment, ("127.0.0.2", 4789), small, _VXLAN_HEADER),
            receiving(small, _VXLAN_HEADER),
            "raw",
            _NEARLY,
            cpu,
        ),
        Case(f"xdp-tx-{size}", on_the_cable(size), sending_on_the_cable(size), "raw", _NEARLY, cpu),
        Case(f"tap-tx-{size}", ours(f"tap:{TAP}", tx, cpu), writing(size), "raw", _NEARLY, cpu),
    ]


_QUICKER: Final = Bar("p50 µs", "<=", 0.65)
_POLLED = over_the_cable("--busy-poll-us", "100")

CASES: Final = (
    *_cases_of(64),
    *_cases_of(1500),
    Case("udp-rtt-64", _POLLED, over_the_cable("--poll", "off"), "off", _QUICKER, "p50 µs"),
)
