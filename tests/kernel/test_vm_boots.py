"""The test VM is what its users take it for: this machine's files under another kernel, and an honest witness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.vm import TOP, vm, vm_ok


def test_a_command_runs_where_it_was_called_and_its_output_and_exit_status_come_back(patched: str) -> None:
    outcome = vm("sh", "-c", "pwd; echo to stderr >&2; printf 'no newline \\000\\377'; exit 37", kernel=patched)
    assert outcome.output == f"{TOP}\nto stderr\nno newline \0\ufffd"
    assert outcome.status == 37
    assert outcome.complaint == ""


def test_the_patched_kernel_is_debians_version_and_the_stock_one_is_debians_own(patched: str, stock: str) -> None:
    assert vm_ok("uname", "-r", kernel=patched).startswith("6.1.")
    assert vm_ok("uname", "-r", kernel=stock).endswith("-amd64")


def test_the_projects_own_python_imports_the_daemon(patched: str) -> None:
    program = "import kpoll.backend.cli, kpoll.vhost._core; print('imported')"
    assert vm_ok("python", "-c", program, kernel=patched) == "imported"


def test_an_unmodified_qemu_boots_a_guest_with_kvm(patched: str) -> None:
    said = vm_ok("python", "-m", "tests.kernel.kvm_guest", kernel=patched).splitlines()
    assert said[0].startswith("guest: 6.")
    assert said[1:] == ["hypervisor: hypervisor", "off"]


def test_the_stock_kernel_has_kvm_and_nvme_too(stock: str) -> None:
    # stat: %t is the device's major number, KVM's minor is 232
    checks = "stat -c '%T' /dev/kvm && blockdev --getsize64 /dev/nvme0n1"
    assert vm_ok("sh", "-c", checks, kernel=stock, options=("--nvme", "64M")).split() == ["e8", str(64 << 20)]


def test_nvme_disks_have_the_size_and_the_block_that_were_asked_for_and_poll_queues(patched: str) -> None:
    options = ("--nvme", "256M", "--nvme", "64M,4096", "--append", "nvme.poll_queues=2")
    checks = """
        for disk in nvme0n1 nvme1n1; do
            blockdev --getsize64 --getss /dev/$disk
            cat /sys/block/$disk/queue/io_poll
        done
        dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=1 oflag=direct status=none && echo written
    """
    said = vm_ok("sh", "-c", checks, kernel=patched, options=options).split()
    assert said == [str(256 << 20), "512", "1", str(64 << 20), "4096", "1", "written"]


def test_what_is_written_stays_inside_unless_it_is_shared(patched: str, tmp_path: Path) -> None:
    unshared = Path("/etc/written-in-the-vm")
    shared = tmp_path / "written-in-the-vm"
    script = f"echo in > {unshared} && cat {unshared} && echo out > {shared}"
    assert vm_ok("sh", "-c", script, kernel=patched, options=("--share", str(tmp_path))) == "in"
    assert not unshared.exists()
    assert shared.read_text() == "out\n"


def test_a_sysctl_is_set_before_the_command_and_an_unknown_one_is_no_silent_matter(patched: str) -> None:
    options = ("--sysctl", "net.core.busy_poll=50")
    assert vm_ok("cat", "/proc/sys/net/core/busy_poll", kernel=patched, options=options) == "50"
    outcome = vm("true", kernel=patched, options=("--sysctl", "net.core.no_such=1"))
    assert outcome.status == 125
    assert "--sysctl net.core.no_such=1" in outcome.output


def test_what_the_command_leaves_running_ends_with_it(patched: str) -> None:
    assert vm_ok("sh", "-c", "sleep 1000 & echo started", kernel=patched, seconds=60) == "started"


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
