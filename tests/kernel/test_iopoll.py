"""A disk on an NVMe namespace with poll queues: its completions are polled for, and no interrupt is needed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.c.test_c import SANITIZE
from tests.data_plane import library, program
from tests.kernel.polled import REQUESTS
from tests.kernel.quiet import OPTIONS
from tests.kernel.vm import TOP, vm_ok


@pytest.fixture(scope="module")
def seen(patched: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Boot once, and look at everything."""
    folder = tmp_path_factory.mktemp("sanitized")
    test = program(TOP / "tests/c/test_io_uring.c", library(folder, *SANITIZE), folder, *SANITIZE)
    _, quiet, *others = OPTIONS
    options = ("--append", f"{quiet} nvme.poll_queues=1", *others, "--nvme", "64M")
    command = ("python", "-m", "tests.kernel.polled", str(test))
    said = vm_ok(*command, kernel=patched, options=(*options, "--share", str(folder)), seconds=400)
    print(said)
    return json.loads(said.splitlines()[-1])


def test_no_polled_read_or_write_raises_an_interrupt(seen: Any) -> None:
    assert seen["verified"]["polled"] >= REQUESTS
    assert seen["verified"]["interrupts"] == 0


def test_what_was_written_is_what_is_read(seen: Any) -> None:
    assert (seen["verified"]["errors"], seen["verified"]["mismatches"]) == (0, 0)


def test_flush_and_discard_work_beside_polled_reads(seen: Any) -> None:
    assert seen["beside"]["statuses"] == [0, 0, 0, 0, 0]
    assert seen["exit"] == 0


def test_with_nothing_in_flight_it_sleeps(seen: Any) -> None:
    assert (seen["beside"]["idle_cpu_ns"], seen["beside"]["idle_state"]) == (0, "S")


def test_io_uring_polls_where_there_are_queues_to_poll(seen: Any) -> None:
    said = seen["started"]
    assert (said["engine"], said["iopoll"], said["iopoll_why"]) == ("io_uring", True, "its driver has poll queues")


def test_a_device_without_poll_queues_is_one_line_that_says_what_to_do(seen: Any) -> None:
    assert "/dev/loop0: --iopoll on: its driver has no poll queues: boot with `nvme.poll_queues=" in seen["refused"]


def test_the_engine_alone_on_such_a_device(seen: Any) -> None:
    status, said = seen["io_test"]
    assert status == 0, said
    assert "io_uring_iopoll on /dev/nvme0n1 (direct 1, polls 1)" in said
