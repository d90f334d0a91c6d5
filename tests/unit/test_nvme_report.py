"""`kpoll nvme` for people and for scripts, of devices that are made here from what QEMU's said (nvme_pages/)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest

from kpoll.backend import nvme_cli
from kpoll.backend.nvme_report import size
from kpoll.nvme.device import NO_LIBRARY, Answers, Device, NvmeError
from kpoll.nvme.pages import IdentifyController, IdentifyNamespace, SmartLog
from kpoll.nvme.topology import Controller, Host, Namespace, Path, Subsystem, Topology
from tests.unit.test_nvme_pages import page

if TYPE_CHECKING:
    from collections.abc import Callable


def controller(name: str) -> Controller:
    return Controller(
        name=name,
        transport="tcp",
        address=f"traddr=192.0.2.{name[-1]}",
        state="live",
        serial="kpoll[bold]0",
        model=":smile: Model",
        firmware="7.2.22",
        queues=3,
    )


CONTROLLERS = (controller("nvme0"), controller("nvme1"))
NAMESPACE = Namespace(
    name="nvme0n1",
    nsid=7,
    size_bytes=64 << 20,
    block_bytes=512,
    metadata_bytes=8,
    nguid="0123456789abcdef0011223344556677",
    eui64=None,
    uuid=None,
    paths=tuple(Path(name=f"nvme0c{n}n1", controller=f"nvme{n}", ana_state="optimized") for n in (0, 1)),
)
SUBSYSTEM = Subsystem(name="nvme-subsys0", nqn="nqn.test", controllers=CONTROLLERS, namespaces=(NAMESPACE,))
EMPTY = Subsystem(name="nvme-subsys5", nqn="nqn.empty", controllers=(controller("nvme5"),), namespaces=())
HOST = Host(nqn="nqn.host", id=None, subsystems=(SUBSYSTEM, EMPTY))
ANSWERS = Answers(
    identify_controller=IdentifyController.parse(page("id-ctrl")),
    identify_namespace=IdentifyNamespace.parse(page("id-ns-512")),
    smart=SmartLog.parse(page("smart-log", 512)),
)
UNKNOWN = Answers(unknown=dict.fromkeys(("identify_controller", "identify_namespace", "smart"), NO_LIBRARY))


def device(answers: Answers) -> Device:
    return Device(
        node="/dev/nvme0n1", subsystem=SUBSYSTEM, controllers=CONTROLLERS, namespace=NAMESPACE, answers=answers
    )


type_said = tuple[str, str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., type_said]:
    """Run `kpoll nvme` where scan() or look() finds what is given; returns what it printed on stdout and stderr."""

    def run(found: Any, *words: str) -> type_said:
        monkeypatch.setattr(nvme_cli, "scan", lambda _library: found)
        monkeypatch.setattr(nvme_cli, "look", lambda _node, _library: found)
        nvme_cli.nvme.main(list(words), standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def topology(why: str | None = None, hosts: tuple[Host, ...] = (HOST,)) -> Topology:
    return Topology(source="sysfs" if why else "libnvme", why_not_libnvme=why, hosts=hosts)


def test_list_has_a_row_for_each_namespace_with_the_ways_to_it_and_one_for_a_controller_without(
    said: Callable[..., type_said],
) -> None:
    table, remark = said(topology(), "list")
    rows = [" ".join(line.split()) for line in table.splitlines()]
    way = "nvme0: tcp traddr=192.0.2.0, live, optimized"
    assert f"/dev/nvme0n1 64 MiB 512 :smile: Model kpoll[bold]0 {way}" in rows
    assert "nvme1: tcp traddr=192.0.2.1, live, optimized" in rows
    assert "- - - :smile: Model kpoll[bold]0 nvme5: tcp traddr=192.0.2.5, live" in rows
    assert [table.count(f"nvme{n}: ") for n in (0, 1, 5)] == [1, 1, 1]
    assert remark == ""


def test_list_says_who_looked_where_it_was_not_the_library(said: Callable[..., type_said]) -> None:
    assert said(topology(NO_LIBRARY), "list")[1] == f"kpoll nvme list: as sysfs has it; {NO_LIBRARY}\n"


def test_a_host_without_nvme_is_told_so(said: Callable[..., type_said]) -> None:
    assert said(topology(hosts=()), "list") == ("This host has no NVMe devices.\n", "")


def test_json_has_the_documented_names(said: Callable[..., type_said]) -> None:
    listed = json.loads(said(topology(), "list", "--json")[0])
    assert listed.keys() == {"source", "why_not_libnvme", "hosts"}
    assert listed["hosts"][0].keys() == {"nqn", "id", "subsystems"}
    assert listed["hosts"][0]["subsystems"][0]["namespaces"][0]["size_bytes"] == 64 << 20
    shown = json.loads(said(device(ANSWERS), "show", "nvme0n1", "--json")[0])
    assert list(shown) == [
        *("node", "subsystem", "controllers", "namespace"),
        *("identify_controller", "identify_namespace", "smart", "unknown"),
    ]
    assert shown["subsystem"] == {"name": "nvme-subsys0", "nqn": "nqn.test"}
    assert shown["identify_namespace"]["lbafs"][4] == {"ms": 0, "ds": 12, "rp": 0}
    assert shown["smart"]["temperature"] == 323


def test_show_tells_what_the_device_says_in_units_that_people_use(said: Callable[..., type_said]) -> None:
    tables, remark = said(device(ANSWERS), "show", "nvme0n1")
    rows = [" ".join(line.split()) for line in tables.splitlines()]
    for row in (
        "block 512 bytes and 8 of metadata",
        "nguid 0123456789abcdef0011223344556677",
        "LBA formats 512 (in use), 512+8, 512+16, 512+64, 4096, 4096+8, 4096+16, 4096+64",
        "best discards 8 blocks (NPDG), aligned to 8 (NPDA)",
        "write protected no",
        "model :smile: Model",
        "serial kpoll[bold]0",
        "largest transfer 512 KiB with pages of 4 KiB (MDTS 7)",
        "commands (ONCS) Compare, Dataset Management, Write Zeroes, Save/Select, Timestamp, Copy",
        "write cache (VWC) volatile: flushes matter",
        "temperature 50 °C",
        "read 500 KiB",
        "warnings none",
    ):
        assert row in rows
    assert remark == ""


def test_show_says_of_what_is_unknown_that_it_is_and_why(said: Callable[..., type_said]) -> None:
    tables, _ = said(device(UNKNOWN), "show", "nvme0n1")
    assert "64 MiB" in tables
    assert tables.count(f"unknown: {NO_LIBRARY}") == 3
    shown = json.loads(said(device(UNKNOWN), "show", "nvme0n1", "--json")[0])
    assert (shown["identify_namespace"], shown["unknown"]["identify_namespace"]) == (None, NO_LIBRARY)


def test_a_device_that_can_not_be_shown_is_a_failure_of_the_host_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(node: str, _library: object) -> Device:
        raise NvmeError(f"{node}: went away while it was looked at")

    monkeypatch.setattr(nvme_cli, "look", refuse)
    with pytest.raises(click.UsageError, match=r"^/dev/nvme0n1: went away .*\(`kpoll nvme list` names") as failure:
        nvme_cli.nvme.main(["show", "nvme0n1"], standalone_mode=False)
    assert failure.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (10**15, "909.5 TiB"), (1 << 128, None)],
)
def test_a_size_is_written_in_the_largest_unit_that_fits(number: int, written: str | None) -> None:
    assert size(number) == (written or f"{2**78:.4g} PiB")
