"""Every engine on every kind of disk: what is written is read back, and what is discarded is gone from the device."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.nvme_disks import DISKS, EXTENT, WAYS
from tests.kernel.vm import vm_ok

DOCS = Path(__file__).resolve().parents[2] / "docs/metrics.md"
every_way = pytest.mark.parametrize("way", [" ".join(way) for way in WAYS])


@pytest.fixture(scope="module")
def facts(patched: str) -> Any:
    """Serve them all, in one VM."""
    disks = ("64M", "64M,4096", "256M", "64M")
    options = [word for disk in disks for word in ("--nvme", disk)]
    options += ["--append", "nvme.poll_queues=1", "--sysctl", "fs.eventfd_busy_poll=50"]
    said = vm_ok("python", "-m", "tests.kernel.nvme_disks", kernel=patched, options=tuple(options))
    return json.loads(said[said.index("{") :])


@every_way
def test_what_is_written_is_read_back(facts: Any, way: str) -> None:
    run = facts["runs"][way]
    kind, engine, *options = way.split()
    wanted = (engine, kind != "file" and "off" not in options, "--pin-guest-memory" in options)
    assert (run["started"]["engine"], run["started"]["iopoll"], run["started"]["pin_guest_memory"]) == wanted
    for load, blocks in {"small": 256, "large": 16}.items():
        outcome = run[load]
        assert (outcome["complaint"], outcome["errors"]) == (None, 0)
        assert outcome["writes"] > 0
        assert outcome["checked"] >= blocks, "all that was laid out is read back at the end"


@every_way
def test_what_is_discarded_or_zeroed_reads_as_zeroes_past_all_caches(facts: Any, way: str) -> None:
    trim = facts["runs"][way]["trim"]
    assert trim["statuses"] == [0, 0]
    assert trim["zeroes"] == [True, True]


@pytest.mark.parametrize("way", [" ".join(way) for way in WAYS if way[0] != "file"])
def test_discard_and_write_zeroes_are_commands_to_the_namespace(facts: Any, way: str) -> None:
    """Over TCP: to the remote one, and from the target to what is behind it."""
    kind, trim = way.split(maxsplit=1)[0], facts["runs"][way]["trim"]
    assert trim["sectors"] == EXTENT // 512
    for name in {DISKS[kind][1], facts["remote"] if kind == "tcp" else DISKS[kind][1]}:
        sent = trim["sent"][name]
        assert sent["nvme_cmd_dsm"] >= 1
        assert sent["nvme_cmd_write_zeroes"] >= 1
        assert "nvme_cmd_write" not in sent


def test_the_doctor_finds_what_this_kernel_and_these_devices_have(facts: Any) -> None:
    found = {each["name"]: each for each in facts["doctor"]["findings"]}
    for name in (
        *("EVENTFD_SET_POLL", "module eventfd_poll", "fs.eventfd_busy_poll", "net.core.busy_poll"),
        *("Linux AIO", "Linux AIO: polling", "fs.aio-max-nr", "io_uring", "io_uring: IOPOLL"),
        *("nvme0n1: poll queues", "nvme1n1: poll queues", f"{facts['remote']}: poll queues"),
        *("libnvme", "NVMe over TCP"),
        *("taps", "AF_XDP", "Landlock", "seccomp", "CAP_SYS_ADMIN", "KVM"),
    ):
        assert found[name]["state"] == "good", found[name]
    assert "50 µs" in found["fs.eventfd_busy_poll"]["found"]


def test_the_metrics_of_a_namespace_are_what_nvme_cli_reads_and_those_of_the_docs(facts: Any) -> None:
    metrics, smart = facts["health"]["metrics"], facts["health"]["smart"]
    documented = re.findall(r"^\| `(kpoll_nvme_\w+)` \| \w+ \| ([\w, ]+) \|", DOCS.read_text(), re.MULTILINE)
    assert {name: each["labels"] for name, each in metrics.items()} == {
        name: sorted(labels.split(", ")) for name, labels in documented
    }
    for name, expected in {
        "temperature_celsius": smart["temperature"] - 273.15,
        "available_spare_ratio": smart["avail_spare"] / 100,
        "percentage_used_ratio": smart["percent_used"] / 100,
        "power_cycles_total": int(smart["power_cycles"]),
        "unsafe_shutdowns_total": int(smart["unsafe_shutdowns"]),
        "media_errors_total": int(smart["media_errors"]),
    }.items():
        assert metrics[f"kpoll_nvme_{name}"]["value"] == pytest.approx(expected, abs=0.01)
    assert metrics["kpoll_nvme_written_bytes_total"]["value"] > 6 << 20  # two engines' --verify


def test_who_asks_the_device_may_do_nothing_else(facts: Any) -> None:
    helper = facts["health"]["helper"]
    assert int(helper["CapEff"], 16) == 1 << 21  # CAP_SYS_ADMIN
    assert (helper["CapBnd"], helper["Seccomp"], helper["NoNewPrivs"]) == ("0" * 16, "2", "1")


def test_the_device_is_asked_again_and_a_device_that_has_gone_has_no_figures(facts: Any) -> None:
    (at_first, _), (later, why), (gone, why_gone) = facts["health"]["asked_again"]
    assert why is None
    assert later - at_first in range(64, 68)  # 32 MiB in units of 512,000 bytes
    assert gone is None
    assert why_gone == "No such device"


def test_a_guest_that_wants_to_know_is_told_how_worn_the_device_is(facts: Any) -> None:
    assert facts["health"]["features"] >> 15 & 1  # VIRTIO_BLK_F_LIFETIME
    used = facts["health"]["smart"]["percent_used"]
    assert facts["health"]["lifetime"][:7] == [0, 0, 0, 0, 0, used // 10 + 1, 0]  # QEMU's tells no spare capacity


def test_without_the_right_to_ask_there_are_no_figures_and_the_log_says_why(facts: Any) -> None:
    without = facts["health"]["without_rights"]
    assert without["metrics"] == []
    assert "only CAP_SYS_ADMIN" in without["why"]
