"""`kpoll nvme` where there need be no NVMe device: what it can't show is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.harness import refused, run


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["show"], "Missing argument 'DEVICE'"),
        (["show", ""], "give the name of an NVMe device"),
        (["show", "nvme0", "nvme1"], "unexpected extra argument"),
        (["list", "nvme0"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(args: list[str], says: str) -> None:
    assert says in refused("nvme", *args, code=2)


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
