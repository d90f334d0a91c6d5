"""The test VM is what its users take it for: this machine's files under another kernel, and an honest witness.

That an unmodified QEMU boots a guest with KVM there is seen in test_story.py.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.vm import TOP, Outcome, vm, vm_ok

NVME = """
for disk in nvme0n1 nvme1n1; do
    blockdev --getsize64 --getss /dev/$disk
    cat /sys/block/$disk/queue/io_poll
done
dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=1 oflag=direct status=none && echo written
"""
PYTHON = "import kpoll.backend.cli, kpoll.vhost._core; print('imported')"
UNSHARED = Path("/etc/written-in-the-vm")
RAW = "no newline \\000\\377"


@dataclass(frozen=True)
class Seen:
    """How one run with many options went: what each part of its command said, and what that wrote to a shared file."""

    outcome: Outcome
    parts: list[str]
    written: str


@pytest.fixture(scope="module")
def seen(patched: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Boot once for all that a good run shows."""
    share = tmp_path_factory.mktemp("shared")
    parts = (
        "pwd; echo to stderr >&2",
        "uname -r",
        f'{shlex.quote(sys.executable)} -c "{PYTHON}"',
        NVME,
        f"echo in > {UNSHARED} && cat {UNSHARED} && echo out > {share}/written",
        "cat /proc/sys/net/core/busy_poll",
        "sleep 1000 & echo started",
        f"printf '{RAW}'; exit 37",
    )
    options = ("--nvme", "256M", "--nvme", "64M,4096", "--append", "nvme.poll_queues=2", "--share", str(share))
    script = "\necho ---\n".join(parts)
    outcome = vm("sh", "-c", script, kernel=patched, options=(*options, "--sysctl", "net.core.busy_poll=50"))
    print(outcome)
    return Seen(outcome, outcome.output.split("---\n"), (share / "written").read_text())


def test_a_command_runs_where_it_was_called_and_its_output_and_exit_status_come_back(seen: Seen) -> None:
    assert seen.parts[0] == f"{TOP}\nto stderr\n"
    assert seen.parts[-1] == "no newline \0\ufffd"
    assert seen.outcome.status == 37
    assert seen.outcome.complaint == ""


def test_the_patched_kernel_is_debians_version(seen: Seen) -> None:
    assert seen.parts[1].startswith("6.1.")


def test_the_projects_own_python_imports_the_daemon(seen: Seen) -> None:
    assert seen.parts[2] == "imported\n"


def test_nvme_disks_have_the_size_and_the_block_that_were_asked_for_and_poll_queues(seen: Seen) -> None:
    assert seen.parts[3].split() == [str(256 << 20), "512", "1", str(64 << 20), "4096", "1", "written"]


def test_what_is_written_stays_inside_unless_it_is_shared(seen: Seen) -> None:
    assert seen.parts[4] == "in\n"
    assert not UNSHARED.exists()
    assert seen.written == "out\n"


def test_a_sysctl_is_set_before_the_command(seen: Seen) -> None:
    assert seen.parts[5] == "50\n"


def test_what_the_command_leaves_running_ends_with_it(seen: Seen) -> None:
    assert seen.parts[6] == "started\n"
    assert seen.outcome.status != 124


def test_the_stock_kernel_is_debians_own_and_has_kvm_and_nvme_too(stock: str) -> None:
    # stat: %t is the device's major number, KVM's minor is 232
    checks = "uname -r && stat -c '%T' /dev/kvm && blockdev --getsize64 /dev/nvme0n1"
    release, *others = vm_ok("sh", "-c", checks, kernel=stock, options=("--nvme", "64M")).split()
    assert release.endswith("-amd64")
    assert others == ["e8", str(64 << 20)]


def test_an_unknown_sysctl_is_no_silent_matter(patched: str) -> None:
    outcome = vm("true", kernel=patched, options=("--sysctl", "net.core.no_such=1"))
    assert outcome.status == 125
    assert "--sysctl net.core.no_such=1" in outcome.output


@pytest.mark.parametrize(("crash", "said"), [("WARNING", "WARNING: "), ("PANIC", "Kernel panic")])
def test_a_kernel_that_complains_or_dies_fails_the_run_and_is_quoted(patched: str, crash: str, said: str) -> None:
    outcome = vm("sh", "-c", f"echo {crash} > /sys/kernel/debug/provoke-crash/DIRECT; true", kernel=patched)
    assert outcome.status == 125
    assert said in outcome.complaint


def test_a_complaint_can_be_allowed(patched: str) -> None:
    script = "echo WARNING > /sys/kernel/debug/provoke-crash/DIRECT; exit 3"
    assert vm("sh", "-c", script, kernel=patched, options=("--allow-splat",)).status == 3


def test_a_command_that_does_not_end_is_given_up(patched: str) -> None:
    outcome = vm("sleep", "3600", kernel=patched, seconds=20)
    assert outcome.status == 124
    assert "was not done after" in outcome.complaint
