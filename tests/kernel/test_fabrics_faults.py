"""Disks on NVMe that go and come back: no block is lost or wrong, the log tells the story, nothing is left behind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kernel.fabrics_faults import WAYS
from tests.kernel.quiet import spin_for
from tests.kernel.vm import vm_ok

OK = 0


@pytest.fixture(scope="module")
def facts(patched: str) -> Any:
    """Let it all happen once."""
    options = ("--nvme", "64M", "--nvme", "64M", "--append", "nvme.poll_queues=1", *spin_for("kernel", 50))
    said = vm_ok("python", "-m", "tests.kernel.fabrics_faults", kernel=patched, options=options, seconds=900)
    print(said)
    return json.loads(said[said.index("{") :])


def test_a_target_that_is_killed_and_started_again_costs_the_guest_no_block(facts: Any) -> None:
    seen = facts["retry"]
    assert seen["load"]["checked"] > 0
    assert (seen["load"]["errors"], seen["load"]["mismatches"]) == (0, 0)
    assert (seen["over"]["reported"], seen["over"]["retried"] > 0) == (0, True)


def test_the_log_tells_once_that_it_began_and_once_that_it_was_over(facts: Any) -> None:
    seen = facts["retry"]
    assert (seen["times_begun"], seen["times_over"]) == (1, 1)
    assert (seen["errors"]["on_error"], seen["errors"]["stopped"]) == ("retry", False)
    assert seen["over"]["seconds"] > 0


def test_what_the_daemon_connected_it_disconnects(facts: Any) -> None:
    seen = facts["retry"]
    assert (len(seen["during"]), seen["ours"], seen["after"], seen["code"]) == (1, True, [], 0)


def test_sigterm_ends_a_daemon_that_waits_for_a_dead_target(facts: Any) -> None:
    seen = facts["ended"]
    assert (seen["code"], seen["forced"], seen["after"]) == (0, False, [])


def test_a_disk_that_stops_keeps_all_its_requests_until_sighup(facts: Any) -> None:
    seen = facts["stop"]
    assert (seen["before"], seen["errors"]["stopped"], seen["meanwhile"]) == (OK, True, 0)
    assert seen["resumed"]["waiting"] == 2
    assert (seen["answers"], seen["status"], seen["kept_its_data"]) == (2, OK, True)
    assert (seen["over"]["reported"], seen["code"]) == (0, 0)


def test_a_controller_that_is_deleted_is_an_error_to_the_guest_until_it_is_back(facts: Any) -> None:
    went_and_came(facts["deleted"])


def test_a_connection_that_was_there_is_used_and_left(facts: Any) -> None:
    assert (facts["deleted"]["ours"], len(facts["deleted"]["left"])) == (False, 1)


def test_a_connection_that_was_there_is_told_with_its_timeouts_and_how_to_be_rid_of_it(facts: Any) -> None:
    found = facts["deleted"]["found"]
    assert (found["level"], found["fast_io_fail_tmo"], found["ctrl_loss_tmo"]) == ("warning", "off", "600")
    assert f"`kpoll nvme disconnect --device {found['controller']}`" in found["error"]


@pytest.mark.parametrize(("engine", "iopoll"), WAYS)
def test_a_device_that_is_pulled_is_an_error_to_the_guest_until_it_is_back(
    facts: Any, engine: str, iopoll: str
) -> None:
    seen = facts[f"pulled {engine} {iopoll}"]
    assert (seen["engine"], seen["iopoll"]) == (engine, iopoll == "on")
    went_and_came(seen)


@pytest.mark.parametrize("disk", ["file retry", "tcp report"])
def test_one_of_two_ways_that_is_lost_costs_no_request(facts: Any, disk: str) -> None:
    assert facts["multipath"][disk]["after_one"] == 0


@pytest.mark.parametrize("disk", ["file retry", "tcp report"])
def test_one_way_that_is_back_after_both_were_lost_is_enough(facts: Any, disk: str) -> None:
    seen = facts["multipath"][disk]
    assert seen["second"] != "live"
    assert (seen["load"]["checked"] > 0, seen["load"]["mismatches"]) == (True, 0)
    assert (seen["afterwards"]["errors"], seen["afterwards"]["mismatches"], seen["code"]) == (0, 0, 0)


def test_with_both_ways_lost_requests_wait_or_fail_as_on_error_says(facts: Any) -> None:
    waited, told = facts["multipath"]["file retry"], facts["multipath"]["tcp report"]
    assert (waited["load"]["errors"], waited["failed"], waited["over"]["retried"] > 0) == (0, 0, True)
    assert told["load"]["errors"] == told["failed"] == told["over"]["reported"] > 0


def test_a_way_that_is_found_lost_is_no_obstacle_while_there_is_another(facts: Any) -> None:
    _, live = facts["multipath"]["names"]
    seen = facts["multipath"]["lost"]
    assert (seen["status"], seen["controller"], seen["ours"]) == (OK, live, False)


def went_and_came(seen: Any) -> None:
    errors = seen["load"]["errors"]
    assert errors > 0
    assert (seen["failed"], seen["failed_io"]) == (errors, errors)
    assert (seen["load"]["checked"] > 0, seen["load"]["mismatches"]) == (True, 0)
    assert seen["returned"].startswith("nvme")
    assert (seen["afterwards"]["errors"], seen["afterwards"]["mismatches"]) == (0, 0)
    assert seen["afterwards"]["checked"] > 0
    assert seen["code"] == 0
