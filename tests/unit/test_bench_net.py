"""What can be asked of `kpoll bench net`, what is refused before it begins, and what is made of the counters."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from kpoll.backend.bench.net import NetLoad
from kpoll.backend.bench.net_report import NetReport, RoundTrip
from kpoll.backend.errors import UsageError
from kpoll.backend.net_config import NetFeature
from kpoll.vhost.features import VirtioFeature

ECHO = NetReport(
    mode="echo",
    size=1500,
    seconds=2.0,
    sent=1010,
    received=1000,
    received_bytes=1_500_000,
    lost=10,
    foreign=3,
    mismatches=0,
    first_mismatch=None,
    rtt=RoundTrip(mean=4000.0, p50=3000.0, p99=9000.0, p999=9500.0, max=9900.0),
    backend_cpu_ns=500_000,
    idle_cpu=0.0015,
    kicks=250,
    calls=0,
)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"mode": "both"}, "--mode both"),
        ({"size": 59}, "--size 59"),
        ({"size": 65551}, "--size 65551"),
        ({"batch": 0}, "--batch 0"),
        ({"batch": 257}, "--batch 257"),
        ({"pairs": 0}, "--pairs 0"),
        ({"pairs": 129}, "--pairs 129"),
        ({"queue_size": 0}, "--queue-size 0"),
        ({"queue_size": 100}, "--queue-size 100"),
        ({"queue_size": 65536}, "--queue-size 65536"),
        ({"depth": 0}, "--depth 0"),
        ({"depth": 257}, "--depth 257"),
        ({"size": 65550, "queue_size": 32768, "pairs": 128}, "16 GiB"),
        ({"runtime": None}, "without an end"),
        ({"runtime": 0.0}, "--runtime 0.0"),
        ({"runtime": float("nan")}, "--runtime nan"),
        ({"warmup": -1.0}, "--warmup -1.0"),
        ({"idle": float("inf")}, "--idle inf"),
        ({"frames": 0}, "--frames 0"),
        ({"cpu": max(os.sched_getaffinity(0)) + 1}, "--cpu"),
    ],
)
def test_what_cannot_be_asked_for_is_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        NetLoad(**wrong)


def test_a_packed_queue_may_have_any_size() -> None:
    assert NetLoad(packed=True, queue_size=100).queue_size == 100


def test_only_what_is_asked_for_is_negotiated() -> None:
    plain = NetLoad(event_idx=False, mrg_rxbuf=False)
    assert plain.features == VirtioFeature.VIRTIO_F_VERSION_1
    assert NetLoad(pairs=2).features & NetFeature.VIRTIO_NET_F_MQ
    assert not NetLoad(pairs=1).features & NetFeature.VIRTIO_NET_F_MQ


def test_a_buffer_has_room_for_the_frame_unless_buffers_merge() -> None:
    assert NetLoad(size=9000, mrg_rxbuf=False).rx_buffer >= 9012
    assert NetLoad(size=9000).rx_buffer < 9012


def test_rates_are_of_what_came_back() -> None:
    assert ECHO.pps == 500
    assert ECHO.bits_per_second == 6e6
    assert ECHO.cpu_ns_per_packet == 500


def test_a_sender_s_rates_are_of_what_was_taken() -> None:
    report = replace(ECHO, mode="tx", received=0, received_bytes=0, lost=None, rtt=None)
    assert report.pps == 505
    assert report.bits_per_second == 505 * 1500 * 8
    assert report.as_dict()["lost"] is None
    assert "rtt_us" not in report.as_dict()


def test_json_has_the_promised_names() -> None:
    found = json.loads(ECHO.as_json(mode="echo"))
    assert found["mode"] == "echo"
    assert (found["pps"], found["gbps"], found["lost"], found["foreign"]) == (500, 0.006, 10, 3)
    assert found["rtt_us"] == {"mean": 4.0, "p50": 3.0, "p99": 9.0, "p99.9": 9.5, "max": 9.9}
    assert found["backend_cpu_us_per_packet"] == 0.5
    assert found["backend_cpu_idle"] == 0.0015
    assert found["kicks_per_packet"] == 0.25


def test_what_nobody_knows_is_not_made_up() -> None:
    report = replace(ECHO, backend_cpu_ns=None, idle_cpu=None)
    assert report.as_dict()["backend_cpu_us_per_packet"] is None
    out = io.StringIO()
    Console(file=out, width=80).print(report.as_table("echo"))
    assert "not known" in out.getvalue()
    assert "when idle" not in out.getvalue()


def test_lost_frames_are_no_failure_and_wrong_ones_are() -> None:
    assert ECHO.complaint is None
    complaint = replace(ECHO, mismatches=2, first_mismatch=77).complaint
    assert complaint is not None
    assert "2 of 1000" in complaint
    assert "number 77" in complaint
