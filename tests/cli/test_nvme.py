"""`kpoll nvme` where there need be no NVMe device: what it can't show is told in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from kpoll.backend.nvme_fabrics_cli import nvme
from tests.cli.harness import refused, run

NQN = "nqn.2024-01.example:disk"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["show"], "Missing argument 'DEVICE'"),
        (["show", ""], "give the name of an NVMe device"),
        (["show", "nvme0", "nvme1"], "unexpected extra argument"),
        (["list", "nvme0"], "unexpected extra argument"),
        (["connect", "--traddr", "192.0.2.1"], "Missing option '-n' / '--nqn'"),
        (["connect", "--nqn", NQN], "no target: give --traddr IP"),
        (["connect", "--nqn", NQN, "--traddr", "host.example"], "--traddr host.example: give an IP address"),
        (["connect", "--nqn", "a,b", "--traddr", "192.0.2.1"], "--nqn a,b: is no NQN"),
        (["connect", "--nqn", NQN, "--transport", "fc"], "Invalid value for '-t' / '--transport'"),
        (["connect", "--nqn", NQN, "--transport", "loop", "--trsvcid", "1"], "--trsvcid is not for --transport loop"),
        (
            ["connect", "--nqn", NQN, "-t", "rdma", "-a", "192.0.2.1", "-f", "eth0"],
            "--host-iface is for --transport tcp",
        ),
        (["discover", "--traddr", "192.0.2.1", "--hostnqn", ""], "--hostnqn : is no NQN"),
        (["discover", "--traddr", "192.0.2.1", "--hostid", "me"], "--hostid me: give a UUID"),
        (
            ["connect", "--nqn", NQN, "-t", "loop", "--nr-poll-queues", "1"],
            "--nr-poll-queues is not for --transport loop",
        ),
        (["disconnect"], "give --nqn NQN, or --device NAME"),
        (["disconnect", "--nqn", NQN, "--device", "nvme1"], "give --nqn NQN, or --device NAME"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(args: list[str], says: str) -> None:
    assert says in refused("nvme", *args, code=2)


def test_help_says_of_each_option_what_it_is_and_not_only_its_default() -> None:
    for command in nvme.commands.values():
        for option in (each for each in command.params if isinstance(each, click.Option)):
            assert re.sub(r"\[.*\]", "", option.help or "").strip(), f"{command.name} {option.opts}"


def test_what_is_no_nvme_device_is_refused_and_named(tmp_path: Path) -> None:
    for node in (tmp_path, Path("/dev/null"), Path(__file__)):
        line = refused("nvme", "show", node, code=1)
        assert line.startswith(f"kpoll nvme show: {node}: is no NVMe controller or namespace: ")


def test_a_device_that_is_not_there_is_named_in_full() -> None:
    line = refused("nvme", "show", "nvme99n1", code=1)
    assert line.startswith("kpoll nvme show: /dev/nvme99n1: No such file or directory: ")
    assert "`kpoll nvme list`" in line


def test_list_works_on_any_host() -> None:
    assert run("nvme", "list").returncode == 0
    listed = run("nvme", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert isinstance(json.loads(listed.stdout)["hosts"], list)


@pytest.mark.skipif(Path("/dev/nvme-fabrics").exists(), reason="this host has NVMe over Fabrics")
@pytest.mark.parametrize(
    "args",
    [
        ["nvme", "connect", "--traddr", "192.0.2.1", "--nqn", NQN],
        ["nvme", "discover", "--traddr", "192.0.2.1"],
        ["nvme", "disconnect", "--nqn", NQN],
        ["blk", "--socket-path", "s", "--nvme-tcp", f"addr=192.0.2.1,nqn={NQN}"],
    ],
    ids=lambda args: args[1],
)
def test_without_the_kernels_driver_the_way_to_it_is_told(args: list[str]) -> None:
    line = refused(*args, code=1)
    assert "/dev/nvme-fabrics isn't there: load the kernel's driver with `modprobe nvme-tcp`" in line
