"""What we know of NVMe devices is what nvme-cli reads from them and what the kernel shows; one VM finds it all out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kernel.nvme_facts import NODES, NQN
from tests.kernel.vm import vm_ok
from tests.nvme_cli import as_nvme_cli

# What changes from one look to the next.
COUNTERS = {"data_units_read", "host_read_commands", "controller_busy_time", "num_err_log_entries"}


@pytest.fixture(scope="module")
def facts(patched: str) -> Any:
    """Ask QEMU's NVMe devices, and the kernel's own target."""
    options = ("--nvme", "64M", "--nvme", "64M,4096")
    said = vm_ok("python", "-m", "tests.kernel.nvme_facts", kernel=patched, options=options)
    return json.loads(said[said.index("{") :])


def namespaces(topology: Any) -> dict[str, Any]:
    return {
        each["name"]: each for host in topology["hosts"] for sub in host["subsystems"] for each in sub["namespaces"]
    }


@pytest.mark.parametrize("page", ["identify_namespace", "identify_controller", "smart"])
@pytest.mark.parametrize("node", NODES)
def test_every_field_is_what_nvme_cli_reads(facts: Any, node: str, page: str) -> None:
    answers = facts["answers"][node]
    assert answers["ours"]["unknown"] == {}
    ours, theirs = as_nvme_cli(answers["ours"][page]), answers["theirs"][page]
    fields = ours.keys() - COUNTERS
    assert {name: ours[name] for name in fields} == {name: theirs[name] for name in fields}


def test_a_counter_counts_what_was_read(facts: Any) -> None:
    assert facts["data_units_read"] in range(131, 134)  # 64 MiB in units of 512,000 bytes


def test_the_library_and_sysfs_show_the_same_devices(facts: Any) -> None:
    by_libnvme, by_sysfs = facts["by_libnvme"], facts["by_sysfs"]
    assert (by_libnvme["source"], by_sysfs["source"]) == ("libnvme", "sysfs")
    for each in (*namespaces(by_libnvme).values(), *namespaces(by_sysfs).values()):
        assert each.pop("metadata_bytes") in (0, None)  # which sysfs doesn't tell on Linux 6.1
    assert by_libnvme["hosts"] == by_sysfs["hosts"]


def test_a_namespace_has_the_paths_that_lead_to_it(facts: Any) -> None:
    found = namespaces(facts["by_libnvme"])
    assert found.keys() == {"nvme0n1", "nvme1n1", "nvme2n1"}
    assert found["nvme2n1"]["nguid"] == "0123456789abcdef0011223344556677"
    assert found["nvme2n1"]["paths"] == [
        {"name": "nvme2c2n1", "controller": "nvme2", "ana_state": "optimized"},
        {"name": "nvme2c3n1", "controller": "nvme3", "ana_state": "optimized"},
    ]
    assert (found["nvme1n1"]["block_bytes"], found["nvme1n1"]["size_bytes"]) == (4096, 64 << 20)
    assert found["nvme1n1"]["paths"] == [{"name": "nvme1n1", "controller": "nvme1", "ana_state": None}]


def test_a_character_device_is_its_namespace(facts: Any) -> None:
    assert facts["of_generic"]["namespace"]["name"] == "nvme1n1"
    assert facts["of_generic"]["answers"]["identify_namespace"]["nsze"] == (64 << 20) // 4096


def test_without_the_library_sysfs_tells_what_it_knows(facts: Any) -> None:
    assert facts["without_library"]["subsystem"]["nqn"] == NQN
    assert [each["state"] for each in facts["without_library"]["controllers"]] == ["live", "live"]
    assert facts["without_library"]["answers"]["smart"] is None


def test_a_disk_on_a_namespace_is_what_the_namespace_is(facts: Any) -> None:
    local, shared = facts["disks"]["/dev/nvme1n1"], facts["disks"]["/dev/nvme2n1"]
    assert (local["block_device"], local["logical_block"], local["offset_align"]) == (True, 4096, 4096)
    assert (shared["logical_block"], shared["offset_align"]) == (512, 512)
    assert local["discard_max"] >= 4096  # ONCS has Dataset Management and Write Zeroes
    assert local["write_zeroes_max"] >= 4096
    assert local["serial"] == "kpoll1"
    # NPDG 7 for blocks of 512 bytes, and 0.
    small = facts["disks"]["/dev/nvme0n1"]
    assert (small["discard_granularity"], local["discard_granularity"], small["by_kernel"]) == (4096, 4096, 512)
    # Its NSID is 7, and the target's serial number is random.
    target = facts["answers"]["/dev/nvme2n1"]["ours"]["identify_controller"]["sn"]
    assert shared["serial"] == f"{target[:18]}_7"


def test_other_devices_are_refused(facts: Any) -> None:
    fabrics, loop = facts["no_nvme"]
    assert fabrics.startswith("/dev/nvme-fabrics: is no NVMe controller or namespace")
    assert loop.startswith("/dev/loop0: is no NVMe controller or namespace")


def test_who_may_not_ask_is_told_what_that_takes(facts: Any) -> None:
    no_open, no_command = facts["denials"]
    wants = "/dev/nvme1: permission denied: to ask an NVMe device takes CAP_SYS_ADMIN and the right to open it"
    assert no_open == f"{wants}, which root has: run as root"
    assert no_command == f"{wants}, which group disk has: run as root"


def test_who_may_not_ask_sees_all_devices_all_the_same(facts: Any) -> None:
    assert facts["by_nobody"]["source"] == "sysfs"
    assert "run as root" in facts["by_nobody"]["why_not_libnvme"]
    assert namespaces(facts["by_nobody"]).keys() == {"nvme0n1", "nvme1n1", "nvme2n1"}


def test_a_device_that_went_away_says_so(facts: Any) -> None:
    while_open, before = facts["departures"]
    assert while_open == "/dev/nvme1n1: went away while it was looked at"
    assert before.startswith("/dev/nvme1n1: No such file or directory")
