"""NVMe over Fabrics by hand: connected, listed and left; and a clear line for each thing that goes wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kernel.fabrics_cli import DISK, HOST, TWO
from tests.kernel.vm import vm_ok

AT = "tcp 127.0.0.1:4420"


@pytest.fixture(scope="module")
def facts(patched: str) -> Any:
    """Try it all on the kernel's own target."""
    said = vm_ok("python", "-m", "tests.kernel.fabrics_cli", kernel=patched, options=("--nvme", "64M"))
    return json.loads(said[said.index("{") :])


def refused(said: Any, code: int = 1) -> str:
    """Return the one line that something was refused with; no connection may be left behind."""
    assert (said["code"], said["out"], said["left"]) == (code, "", []), said
    line: str = said["err"]
    assert line.count("\n") == 1
    return line.strip()


def test_a_target_says_what_it_has(facts: Any) -> None:
    [offer] = [each for each in facts["offers"]["offers"] if each["subtype"] == "nvme subsystem"]
    assert (offer["nqn"], offer["transport"], offer["traddr"], offer["trsvcid"]) == (
        DISK.nqn,
        "tcp",
        "127.0.0.1",
        "4420",
    )
    assert DISK.nqn in facts["discover"]["out"]
    assert facts["discover"]["left"] == []


def test_what_is_connected_is_there_until_it_is_disconnected(facts: Any) -> None:
    name = facts["connect"]["controller"]
    assert (facts["connect"]["hostnqn"], facts["connect"]["hostid"]) == (HOST, HOST[-36:])
    [host] = [each for each in facts["listed"]["hosts"] if each["nqn"] == HOST]
    assert [each["nqn"] for each in host["subsystems"]] == [DISK.nqn]
    assert [each["name"] for each in host["subsystems"][0]["controllers"]] == [name]
    assert facts["disconnect"] == {"disconnected": [name]}
    assert facts["left"] == []


def test_a_connection_can_be_asked_for_queues_that_are_polled(facts: Any) -> None:
    assert facts["io_poll"] == "1\n"


def test_nvme_tcp_can_ask_for_queues_that_are_polled(facts: Any) -> None:
    assert facts["polled"] == "1\n"


def test_what_is_inside_the_machine_is_found_and_connected_without_a_network(facts: Any) -> None:
    seen = facts["looped"]
    assert DISK.nqn in [each["nqn"] for each in seen["offers"]["offers"]]
    assert (seen["transports"], seen["read"], seen["disconnect"], seen["left"]) == (["loop"], 4096, True, [])


def test_a_second_connection_to_the_same_place_is_refused(facts: Any) -> None:
    assert facts["again"]["code"] == 1
    assert "is connected already" in facts["again"]["err"]
    assert facts["again"]["left"] == [facts["connect"]["controller"]]


def test_only_what_is_connected_over_fabrics_can_be_disconnected(facts: Any) -> None:
    assert f"this host has no controller of {DISK.nqn}" in refused(facts["none"])
    assert "nvme0: is on pcie: only fabrics can be disconnected" in refused(facts["pcie"])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("unknown", f"{AT}: has no subsystem nqn.2024-01.kpoll:nothing for the host nqn."),
        ("not_allowed", f"{AT}: has no subsystem {DISK.nqn} for the host nqn."),
        ("nobody_listens", "tcp 127.0.0.1:4: Connection refused: nobody listens there"),
        ("nobody_tells", "tcp 127.0.0.1:8009: Connection refused: nobody listens there: many targets, Linux's too,"),
        ("unreachable", "tcp 192.0.2.1:4420: Network is unreachable: check the address"),
        ("which", f"--nvme-tcp: {TWO.nqn} has the namespaces 1, 2: say which with nsid=N"),
        ("no_such_nsid", f"--nvme-tcp: {TWO.nqn} has no namespace 7: it has 1, 2"),
        ("no_disk", f"--nvme-tcp: {AT}: has no subsystem {DISK.nqn}x for the host nqn."),
        ("full", f"{DISK.nqn} at {AT}: the target refuses ("),
    ],
)
def test_what_cannot_be_connected_says_why(facts: Any, what: str, says: str) -> None:
    assert says in refused(facts[what])


def test_a_target_that_says_nothing_is_given_up(facts: Any) -> None:
    silence = facts["silence"]
    assert "answers, but doesn't carry on within 2 s: is it an NVMe target?" in silence["says"]
    assert silence["seconds"] < 60  # an emulated CPU's idea of two
    assert silence["left"] == []


def test_a_connection_that_is_made_when_nobody_waits_for_it_any_more_is_undone(facts: Any) -> None:
    late = facts["late"]
    assert "answers, but doesn't carry on within 2 s" in late["says"]
    assert late["seconds"] < 60
    assert (len(late["meanwhile"]), late["left"]) == (1, [])


@pytest.mark.parametrize("command", ["connect", "blk"])
def test_who_may_not_connect_is_told_what_that_takes(facts: Any, command: str) -> None:
    says = refused(facts["no_permission"][command])
    assert "/dev/nvme-fabrics: permission denied: " in says
    assert "CAP_DAC_OVERRIDE" in says
    assert "CAP_SYS_ADMIN" in says


def test_a_connection_that_another_kpoll_uses_stays_when_the_one_that_made_it_ends(facts: Any) -> None:
    shared = facts["shared"]
    assert (shared["ours"], shared["read"]) == ([True, False], 4096)
    assert len(shared["in_use"]) == 1
    assert shared["left"] == shared["in_use"]  # who found it leaves it
    assert shared["alone"] == []


def test_a_namespace_that_vanishes_before_it_is_opened_says_so(facts: Any) -> None:
    assert facts["vanished"]["says"] == (
        f"--nvme-tcp: {DISK.nqn}: went away while it was opened: is its target all right?"
    )
    assert facts["vanished"]["left"] == []
