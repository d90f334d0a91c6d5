"""`kpoll doctor` on this host, and on this host with some of it taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.harness import KPOLL, refused, run

if TYPE_CHECKING:
    from pathlib import Path

# Denies system calls as a container's policy does, then becomes the rest of the command line.
DENYING = """
import ctypes, errno, os, sys
from kpoll.backend.seccomp import load_libseccomp
from kpoll.backend.sandbox import set_no_new_privs
library = load_libseccomp()
context = library.seccomp_init(0x7FFF0000)
for name in sys.argv[1].split(","):
    number = library.seccomp_syscall_resolve_name(name.encode())
    assert library.seccomp_rule_add_array(context, 0x00050000 | errno.EPERM, number, 0, None) == 0
set_no_new_privs()
assert library.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def findings(report: Any) -> dict[str, Any]:
    return {each["name"]: each for each in report["findings"]}


def denying(*syscalls: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(DENYING), ",".join(syscalls))


def examined(*prefix: str, **options: Any) -> Any:
    done = subprocess.run([*prefix, KPOLL, "doctor", "--json"], capture_output=True, text=True, check=False, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_thing_is_one_of_the_four_states_and_what_is_not_good_has_a_remedy() -> None:
    report = examined()
    assert set(report) == {"kernel", "user", "can_serve_disks", "findings"}
    assert (report["kernel"], report["user"], report["can_serve_disks"]) == (os.uname().release, os.geteuid(), True)
    for each in report["findings"]:
        assert set(each) == {"area", "name", "state", "found", "change"}
        assert each["state"] in ("good", "improvable", "missing", "unknown")
        assert (each["change"] is None) or each["state"] != "good"
    names = [each["name"] for each in report["findings"]]
    assert len(set(names)) == len(names)
    assert {each["area"] for each in report["findings"]} == {"polling", "engines", "nvme", "cards", "sandbox", "rights"}
    assert findings(report)["Linux AIO"]["state"] == "good"


def test_people_read_each_thing_its_state_and_the_remedy_below_it() -> None:
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for each in examined()["findings"]:
        word = {"improvable": "could be better"}.get(each["state"], each["state"])
        [line] = [line for line in done.stdout.splitlines() if line.strip().startswith(f"{each['name']}  ")]
        assert word in line
        if each["change"] is not None:
            assert f"to change it: {each['change']}" in done.stdout


def test_where_a_container_refuses_io_uring_disks_are_served_and_the_refusal_is_named() -> None:
    report = examined(*denying("io_uring_setup"))
    uring = findings(report)["io_uring"]
    assert (uring["state"], uring["found"]) == (
        "missing",
        "a seccomp filter refuses it, as containers' default profiles do",
    )
    assert findings(report)["Linux AIO"]["state"] == "good"
    assert report["can_serve_disks"] is True


def test_only_where_no_disk_could_be_served_the_exit_code_is_1() -> None:
    command: list[str | Path] = [*denying("io_uring_setup", "io_setup"), KPOLL, "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["can_serve_disks"] is False
    assert done.stderr.startswith("kpoll doctor: neither Linux AIO nor io_uring works here")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="to give capabilities up takes some")
def test_without_rights_it_works_and_says_what_they_would_be_for() -> None:
    report = examined("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    found = findings(report)
    assert {found[f"CAP_{name}"]["state"] for name in ("SYS_ADMIN", "NET_ADMIN", "NET_RAW", "BPF")} == {"improvable"}
    assert found["SO_BUSY_POLL"]["state"] == "improvable"
    assert found["AF_XDP"]["state"] == "missing"
    assert (found["seccomp"]["state"], found["Landlock"]["state"]) == ("good", "good")
    assert findings(examined())["AF_XDP"]["state"] == "good"


@pytest.mark.parametrize("args", [["now"], ["--fix"]])
def test_a_wrong_command_line_is_a_usage_error(args: list[str]) -> None:
    assert refused("doctor", *args, code=2).startswith("kpoll doctor: ")
