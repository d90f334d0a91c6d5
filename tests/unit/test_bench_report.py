"""What the benchmark says about numbers: percentiles, rates per I/O, and when a run counts as failed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from kpoll.backend.bench.report import Latency, Report, percentile
from kpoll.vhost._core import lib

REPORT = Report(
    seconds=2.0,
    reads=3000,
    writes=1000,
    errors=0,
    block_size=4096,
    latency=Latency(mean=1500.0, p50=1250.0, p99=9000.0, p999=12345.0, max=99999.0),
    backend_cpu_ns=8_000_000,
    kicks=400,
    calls=40,
)


def histogram(values: list[int]) -> list[int]:
    buckets = [0] * lib.BENCH_BUCKETS
    for value in values:
        buckets[lib.bench_bucket_of(value)] += 1
    return buckets


@pytest.mark.parametrize("scale", [1, 7, 1000, 123_457])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_percentile_is_within_one_percent_of_the_sorted_list(scale: int, fraction: float) -> None:
    values = [scale * n for n in range(1, 5001)]
    exact = values[math.ceil(fraction * len(values)) - 1]
    assert percentile(histogram(values), fraction) == pytest.approx(exact, rel=0.01)


def test_a_single_slow_request_moves_only_the_far_percentiles() -> None:
    buckets = histogram([100] * 999 + [1_000_000])
    assert percentile(buckets, 0.5) == 100
    assert percentile(buckets, 0.999) == 100
    assert percentile(buckets, 1.0) == pytest.approx(1_000_000, rel=0.01)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile(histogram([]), 0.5))


def test_rates_are_per_request_and_second() -> None:
    values = REPORT.as_dict()
    assert values["iops"] == 2000
    assert values["bytes_per_second"] == 2000 * 4096
    assert values["backend_cpu_us_per_io"] == 2.0
    assert values["kicks_per_io"] == 0.1
    assert values["calls_per_io"] == 0.01
    assert values["latency_us"] == {"mean": 1.5, "p50": 1.25, "p99": 9.0, "p99.9": 12.345, "max": 99.999}


def test_json_says_what_was_asked_for_and_what_was_found() -> None:
    values = json.loads(REPORT.as_json(rw="randrw", iodepth=8))
    assert (values["rw"], values["iodepth"], values["requests"]) == ("randrw", 8, 4000)
    assert "verify" not in values


def test_a_backend_whose_cpu_time_is_hidden_still_gets_a_report() -> None:
    report = replace(REPORT, backend_cpu_ns=None)
    assert report.as_dict()["backend_cpu_us_per_io"] is None
    assert report.as_table("title").row_count > 0


def test_a_clean_run_has_no_complaint() -> None:
    assert REPORT.complaint is None
    assert replace(REPORT, checked=100, mismatches=0).complaint is None


def test_failed_requests_are_a_complaint() -> None:
    assert replace(REPORT, errors=3).complaint == "3 requests failed"


def test_wrong_data_is_the_complaint_even_beside_errors() -> None:
    complaint = replace(REPORT, errors=3, checked=100, mismatches=2, first_mismatch=4096).complaint
    assert complaint == "2 of 100 reads returned wrong data, the first at byte 4096"
