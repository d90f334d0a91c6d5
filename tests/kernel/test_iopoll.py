"""A disk on an NVMe namespace with poll queues: its completions are polled for, and no interrupt is needed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.c.test_c import SANITIZE
from tests.data_plane import library, program
from tests.kernel import polled_aio, polled_uring
from tests.kernel.polled_ratios import WAYS
from tests.kernel.quiet import OPTIONS, SPIN_US, spin_for
from tests.kernel.vm import SLOWER, TOP, vm_ok

PROGRAMS = ("test_io_uring", "test_io_pieces")
# Of the time that a read takes. docs/benchmarks.md has what was measured on a quiet host; here it only has to be seen.
OF_ASLEEP, OF_WATCHED = 0.9, 1.0


@pytest.fixture(scope="module")
def seen(patched: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Boot once, and look at everything."""
    folder = tmp_path_factory.mktemp("sanitized")
    sanitized = library(folder, *SANITIZE)
    programs = [str(program(TOP / f"tests/c/{name}.c", sanitized, folder, *SANITIZE)) for name in PROGRAMS]
    _, quiet, *others = OPTIONS
    options = ("--append", f"{quiet} nvme.poll_queues=1", *others, *spin_for("kernel", SPIN_US))
    disks = (*("--nvme", "64M") * len(WAYS), "--nvme", f"64M,512,{polled_aio.SLOW_IOPS}")
    command = ("python", "-m", "tests.kernel.polled", *programs)
    said = vm_ok(*command, kernel=patched, options=(*options, *disks, "--share", str(folder)), seconds=600)
    print(said)
    return json.loads(said.splitlines()[-1])


@pytest.fixture
def uring(seen: Any) -> Any:
    return seen["uring"]


@pytest.fixture
def aio(seen: Any) -> Any:
    return seen["aio"]


def test_no_polled_read_or_write_raises_an_interrupt(uring: Any) -> None:
    assert uring["verified"]["carried"] >= polled_uring.REQUESTS
    assert uring["verified"]["interrupts"] == 0


def test_what_was_written_is_what_is_read(uring: Any) -> None:
    assert (uring["verified"]["errors"], uring["verified"]["mismatches"]) == (0, 0)


def test_flush_and_discard_work_beside_polled_reads(uring: Any) -> None:
    assert uring["beside"]["statuses"] == [0, 0, 0, 0, 0]
    assert uring["exit"] == 0


def test_with_nothing_in_flight_it_sleeps(uring: Any) -> None:
    assert (uring["beside"]["idle_cpu_ns"], uring["beside"]["idle_state"]) == (0, "S")


def test_io_uring_polls_where_there_are_queues_to_poll(uring: Any) -> None:
    said = uring["started"]
    assert (said["engine"], said["iopoll"], said["iopoll_why"]) == ("io_uring", True, "its driver has poll queues")


def test_a_device_without_poll_queues_is_one_line_that_says_what_to_do(uring: Any) -> None:
    assert "/dev/loop0: --iopoll on: its driver has no poll queues: boot with `nvme.poll_queues=" in uring["refused"]


@pytest.mark.parametrize(
    ("disk", "name", "engine"),
    [
        ("/dev/nvme0n1", "test_io_uring", "io_uring"),
        ("/dev/nvme0n1", "test_io_pieces", "io_uring"),
        ("/dev/nvme0n1", "test_io_pieces", "aio"),
        ("/dev/dm-0", "test_io_pieces", "io_uring"),
        ("/dev/dm-0", "test_io_pieces", "aio"),
    ],
)
def test_an_engine_alone_on_such_a_device_and_on_a_device_mappers_above_it(
    seen: Any, disk: str, name: str, engine: str
) -> None:
    status, said = seen["alone"][disk][name]
    assert status == 0, said
    assert f"{engine}_iopoll on {disk} (" in said
    assert "polls 1)" in said


def test_where_the_kernel_waits_no_polled_aio_raises_an_interrupt(aio: Any) -> None:
    run = aio["deep"]
    assert run["carried"] >= polled_aio.REQUESTS
    # A debug kernel has more to do on the worker's CPU: there spins end in sleeps at times, and interrupts follow.
    assert run["interrupts"] <= (0 if SLOWER == 1 else run["carried"] // 100)


def test_where_spins_are_too_short_for_the_device_aio_is_soon_left_to_interrupts(aio: Any) -> None:
    # But for the first eight, one in 64 then, and whatever was complete at once: the host may have stood still.
    assert polled_aio.SOME // 2 <= aio["slow"]["short"] < polled_aio.SOME


def test_once_spins_are_long_enough_aio_is_polled_for_again(aio: Any) -> None:
    # After less than 64 that weren't. None of the others need have been, and a host that stands still ends spins.
    assert aio["slow"]["long"] < polled_aio.SOME - 20


@pytest.mark.parametrize(("run", "requests"), [("deep", polled_aio.REQUESTS), ("asleep", polled_aio.FEW)])
def test_what_was_written_with_polled_aio_is_what_is_read(aio: Any, run: str, requests: int) -> None:
    assert aio[run]["carried"] >= requests
    assert (aio[run]["errors"], aio[run]["mismatches"], aio[run]["exit"]) == (0, 0, 0)


def test_it_is_said_that_aio_is_polled_for(aio: Any) -> None:
    said = aio["deep"]["started"]
    assert (said["engine"], said["iopoll"], said["iopoll_why"]) == ("aio", True, "asked for")


def test_auto_takes_io_uring_where_there_are_queues_to_poll(aio: Any) -> None:
    said = aio["auto"]
    assert (said["poll"], said["engine"], said["iopoll"]) == ("kernel", "io_uring", True)
    assert said["engine_why"] == "it polls the device's queues"


def test_where_the_kernel_does_not_wait_nobody_would_poll_for_aio(aio: Any) -> None:
    why = "--engine aio polls under --poll kernel, and this is user"
    assert f"--iopoll on: {why}: use --poll kernel" in aio["refused"]


@pytest.mark.skipif(SLOWER > 1, reason="a debug kernel's checks take longer than what is compared")
@pytest.mark.parametrize("engine", ["io_uring", "aio"])
def test_one_read_at_a_time_takes_less_than_with_interrupts(seen: Any, engine: str) -> None:
    # The best rounds: whoever else is on the host only makes them longer, and polled ones most.
    quickly = {way: rounds[0] for way, rounds in seen["ratios"].items()}
    polled = quickly[f"{engine}, polled"]
    assert polled <= OF_ASLEEP * quickly[f"{engine}, asleep"], quickly
    assert polled <= OF_WATCHED * quickly[f"{engine}, watched"], quickly
