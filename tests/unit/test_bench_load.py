"""What can be asked of the benchmark, and what is refused before anything is touched."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kpoll.backend.bench.blk import BlkLoad
from kpoll.backend.bench.cli import parse_block_size
from kpoll.backend.errors import UsageError


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("4k", 4096), ("4K", 4096), ("2M", 2 << 20)])
def test_block_sizes_take_units(text: str, size: int) -> None:
    assert parse_block_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "4kk", "-4k", "4 k", "1.5k", "4G", "٤k"])
def test_other_block_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--bs"):
        parse_block_size(text)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rw": "trim"}, "--rw trim"),
        ({"block_size": 0}, "--bs 0"),
        ({"block_size": 1000}, "--bs 1000"),
        ({"block_size": 1 << 32}, "--bs"),
        ({"iodepth": 0}, "--iodepth 0"),
        ({"iodepth": 32769}, "--iodepth 32769"),
        ({"queues": 0}, "--queues 0"),
        ({"queues": 257}, "--queues 257"),
        ({"block_size": 1 << 20, "iodepth": 32768}, "16 GiB"),
        ({"runtime": None}, "without an end"),
        ({"runtime": 0.0}, "--runtime 0.0"),
        ({"runtime": float("inf")}, "--runtime inf"),
        ({"runtime": float("nan")}, "--runtime nan"),
        ({"warmup": -1.0}, "--warmup -1.0"),
        ({"requests": 0}, "--requests 0"),
        ({"size": 512}, "--size 512"),
        ({"think_us": -1}, "--think-us -1"),
        ({"think_us": 1_000_001}, "--think-us 1000001"),
        ({"cpu": 1 << 20}, "--cpu"),
    ],
)
def test_a_load_that_cannot_be_is_refused_by_the_name_of_its_option(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        BlkLoad(**wrong)


def test_a_load_is_bounded_by_time_or_number() -> None:
    assert BlkLoad(runtime=None, requests=5).runtime is None
    assert BlkLoad(runtime=1.0).requests is None


def test_only_cpus_that_this_process_may_use_can_be_named() -> None:
    for cpu in os.sched_getaffinity(0):
        assert BlkLoad(cpu=cpu).cpu == cpu


@pytest.mark.parametrize(
    ("load", "writes"),
    [
        ({"rw": "randread"}, False),
        ({"rw": "read"}, False),
        ({"rw": "randread", "verify": True}, True),
        ({"rw": "randrw"}, True),
        ({"rw": "write"}, True),
        ({"rw": "randwrite"}, True),
    ],
)
def test_a_load_knows_whether_it_destroys_data(load: dict[str, Any], writes: bool) -> None:
    assert BlkLoad(**load).writes is writes


@pytest.mark.parametrize(
    ("load", "disk", "used"),
    [
        ({}, 1 << 40, 1 << 40),
        ({"size": 1 << 20}, 1 << 40, 1 << 20),
        ({"verify": True}, 1 << 40, 1 << 30),
        ({"verify": True}, 1 << 20, 1 << 20),
        ({"verify": True, "size": 1 << 40}, 1 << 40, 1 << 40),
    ],
)
def test_verification_takes_no_more_than_a_gigabyte_unless_told(load: dict[str, Any], disk: int, used: int) -> None:
    assert BlkLoad(**load).span(disk) == used
