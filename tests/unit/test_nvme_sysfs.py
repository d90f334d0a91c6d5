"""NVMe devices in a sysfs that is made here, as Linux 6.1's was: what is found there, and what is left unknown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kpoll.nvme import sysfs
from kpoll.nvme.device import NO_LIBRARY, NvmeError, look
from kpoll.nvme.topology import Controller, Host, Namespace, Path, Subsystem

if TYPE_CHECKING:
    from pathlib import Path as File

FABRIC_HOST = {"hostnqn": "nqn.fabric-host", "hostid": "b0"}
BLOCK = {"nsid": "7", "size": "131072", "queue/logical_block_size": "4096"}


def write(folder: File, **attributes: str) -> File:
    for name, value in attributes.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    return folder


def controller(folder: File, **more: str) -> File:
    return write(
        folder,
        transport="pcie",
        address="0000:00:05.0",
        state="live",
        serial="kpoll0              ",
        model="QEMU NVMe Ctrl                          ",
        firmware_rev="7.2.22  ",
        queue_count="3",
        **more,
    )


def link(at: File, to: File) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to)


@pytest.fixture
def sys(tmp_path: File) -> File:
    """Make an NVMe disk, and a namespace of the network with a path through each of two controllers."""
    sys = tmp_path / "sys"
    subsystems, classes = sys / "class" / "nvme-subsystem", sys / "class" / "nvme"
    write(subsystems / "nvme-subsys0", subsysnqn="nqn.2019-08.org.qemu:kpoll0")
    local = controller(sys / "devices" / "pci" / "nvme" / "nvme0")
    write(local / "nvme0n1", **{**BLOCK, "nsid": "1", "queue/logical_block_size": "512"})
    write(local / "nvme0n1" / "nvme0n1p1", partition="1")
    link(subsystems / "nvme-subsys0" / "nvme0", local)
    write(subsystems / "nvme-subsys2", subsysnqn="nqn.t")
    identifiers = {"nguid": "01234567-89AB-cdef-0000-000000000001", "eui": "00 11 22 33 44 55 66 77", "uuid": "u-u"}
    write(subsystems / "nvme-subsys2" / "nvme2n1", metadata_bytes="8", **BLOCK, **identifiers)
    for number in (10, 3):
        far = controller(sys / "devices" / "virtual" / f"nvme{number}", **FABRIC_HOST)
        write(far / f"nvme2c{number}n1", ana_state="optimized", **BLOCK)
        link(subsystems / "nvme-subsys2" / f"nvme{number}", far)
        link(classes / f"nvme{number}", far)
    link(classes / "nvme0", local)
    link(sys / "block" / "nvme0n1", local / "nvme0n1")
    return sys


PRIVATE = Namespace(
    name="nvme0n1",
    nsid=1,
    size_bytes=64 << 20,
    block_bytes=512,
    metadata_bytes=None,
    nguid=None,
    eui64=None,
    uuid=None,
    paths=(Path(name="nvme0n1", controller="nvme0", ana_state=None),),
)
SHARED = Namespace(
    name="nvme2n1",
    nsid=7,
    size_bytes=64 << 20,
    block_bytes=4096,
    metadata_bytes=8,
    nguid="0123456789abcdef0000000000000001",
    eui64="0011223344556677",
    uuid="u-u",
    paths=(
        Path(name="nvme2c3n1", controller="nvme3", ana_state="optimized"),
        Path(name="nvme2c10n1", controller="nvme10", ana_state="optimized"),
    ),
)


def found(name: str) -> Controller:
    return Controller(
        name=name,
        transport="pcie",
        address="0000:00:05.0",
        state="live",
        serial="kpoll0",
        model="QEMU NVMe Ctrl",
        firmware="7.2.22",
        queues=3,
    )


def test_everything_hangs_together_as_the_kernel_has_it(sys: File, tmp_path: File) -> None:
    etc = write(tmp_path / "etc", hostnqn="nqn.this-host", hostid="a0")
    local = Subsystem(
        name="nvme-subsys0",
        nqn="nqn.2019-08.org.qemu:kpoll0",
        controllers=(found("nvme0"),),
        namespaces=(PRIVATE,),
    )
    far = Subsystem(
        name="nvme-subsys2", nqn="nqn.t", controllers=(found("nvme3"), found("nvme10")), namespaces=(SHARED,)
    )
    seen = sysfs.scan("why", sys, etc)
    assert seen.hosts == (
        Host(nqn="nqn.fabric-host", id="b0", subsystems=(far,)),
        Host(nqn="nqn.this-host", id="a0", subsystems=(local,)),
    )
    assert (seen.source, seen.why_not_libnvme) == ("sysfs", "why")


def test_a_host_without_a_name_and_one_without_nvme_are_no_error(sys: File, tmp_path: File) -> None:
    assert sysfs.scan("", sys, tmp_path / "none").hosts[0].nqn is None
    assert sysfs.scan("", tmp_path / "none", tmp_path / "none").hosts == ()


@pytest.mark.parametrize("nonsense", ["", "x", "-1", "9" * 30, "1" * 5000])
def test_a_namespace_whose_size_is_no_number_is_not_there(sys: File, tmp_path: File, nonsense: str) -> None:
    write(sys / "class" / "nvme-subsystem" / "nvme-subsys2" / "nvme2n1", size=nonsense)
    assert [each for _, each in sysfs.scan("", sys, tmp_path).namespaces()] == [PRIVATE]


def test_a_name_that_a_terminal_would_obey_is_made_harmless(sys: File, tmp_path: File) -> None:
    write(sys / "class" / "nvme" / "nvme0", model="\x1b[2Jmodel")
    assert {each.model for _, each in sysfs.scan("", sys, tmp_path).controllers()} == {"?[2Jmodel", "QEMU NVMe Ctrl"}


@pytest.mark.parametrize(
    ("folder", "is_what"),
    [
        ("class/nvme/nvme10", ("controller", "nvme10")),
        ("devices/virtual/nvme-generic/ng0n1", ("namespace", "nvme0n1")),
        ("devices/virtual/misc/nvme-fabrics", None),
    ],
)
def test_a_device_is_what_sysfs_calls_it(sys: File, folder: str, is_what: object) -> None:
    link(sys / "dev" / "char" / "1:3", sys / folder)
    assert sysfs.identify("/dev/null", sys) == is_what


@pytest.mark.parametrize(
    ("folder", "more", "serial"),
    [
        ("class/nvme/nvme0/nvme0n1", {}, "kpoll0"),
        ("class/nvme/nvme0/nvme0n1", {"nsid": "12"}, "kpoll0_12"),
        ("class/nvme/nvme0/nvme0n1", {"nsid": "4294967295"}, "kpoll0_4294967295"),
        ("class/nvme/nvme0/nvme0n1", {"../serial": "S" * 20, "nsid": "3"}, "S" * 18 + "_3"),
        ("class/nvme/nvme0/nvme0n1", {"../serial": "\x1b[2J"}, "?[2J"),
        ("class/nvme/nvme0/nvme0n1", {"../serial": ""}, None),
        ("class/nvme/nvme0/nvme0n1", {"eui": "00 11 22 33 44 55 66 77"}, "0011223344556677"),
        ("class/nvme/nvme0/nvme0n1/nvme0n1p1", {"nsid": "1", "../serial": "no"}, None),
        ("devices/virtual/block/loop0", {"nsid": "1", "../serial": "no"}, None),
    ],
)
def test_a_namespace_has_a_serial_number_that_no_other_has(
    sys: File, folder: str, more: dict[str, str], serial: str | None
) -> None:
    link(sys / "dev" / "block" / "259:3", write(sys / folder, **more))
    assert sysfs.serial(os.makedev(259, 3), sys) == serial


def test_what_is_no_device_or_not_there_is_refused_in_one_line(tmp_path: File) -> None:
    for node, why in ((tmp_path, "is no NVMe"), ("/dev/null", "is no NVMe"), (tmp_path / "x", "No such file")):
        with pytest.raises(NvmeError, match=f"^{node}: {why}.*, such as /dev/nvme0n1$"):
            look(str(node), None)


def test_without_the_library_what_only_the_device_knows_is_unknown_and_says_why(
    sys: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = sysfs.scan(NO_LIBRARY, sys)
    monkeypatch.setattr(sysfs, "identify", lambda _node: ("namespace", "nvme2n1"))
    monkeypatch.setattr(sysfs, "scan", lambda _why: topology)
    device = look("/dev/nvme2n1", None)
    assert device.namespace == SHARED
    assert [each.name for each in device.controllers] == ["nvme3", "nvme10"]
    assert (device.answers.identify_controller, device.answers.identify_namespace, device.answers.smart) == (None,) * 3
    assert set(device.answers.unknown) == {"identify_controller", "identify_namespace", "smart"}
    assert all("apt install libnvme1" in why for why in device.answers.unknown.values())


def test_a_namespace_that_went_away_meanwhile_says_so(sys: File, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = sysfs.scan(NO_LIBRARY, sys)
    monkeypatch.setattr(sysfs, "identify", lambda _node: ("namespace", "nvme5n1"))
    monkeypatch.setattr(sysfs, "scan", lambda _why: topology)
    with pytest.raises(NvmeError, match=r"^/dev/nvme5n1: went away while it was looked at$"):
        look("/dev/nvme5n1", None)
