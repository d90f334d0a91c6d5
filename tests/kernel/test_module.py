"""The loadable module does on Debian's own kernel what EVENTFD_SET_POLL promises, as far as a module can."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.kernel.vm.machine import built
from tests.kernel.compiled import SOURCES, version
from tests.kernel.vm import TEST_KERNEL, vm_ok

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled

# KASAN and lockdep are for the module too. What its eventfds could do by themselves there, they aren't asked to.
KERNEL = "debug" if TEST_KERNEL == "debug" else "stock"
CHECKS = ("check_condition", "check_waiting", "check_lifetime")


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest) -> str:
    """Name the kernel that the module is for: Debian's own, or the debug kernel where KPOLL_TEST_KERNEL asks for it."""
    name: str = request.getfixturevalue("patched" if KERNEL == "debug" else "stock")
    return name


@pytest.fixture(scope="module")
def module(request: pytest.FixtureRequest) -> Path:
    """Return the module for that kernel, compiled without a warning, W=1 included."""
    found: Compiled = request.getfixturevalue("patched_module" if KERNEL == "debug" else "stock_module")
    assert re.sub(r"Skipping BTF generation .*\n", "", found.said) == ""  # there is no vmlinux beside the headers
    return found.file


@pytest.mark.parametrize("checks", CHECKS)
def test_the_module_keeps_its_promises(kernel: str, module: Path, checks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPOLL_MODULE", str(module))
    file = Path(__file__).with_name("module") / f"{checks}.py"
    # One CPU is for those who wait alone: anything else that runs there ends a spin, as it should.
    options = ("--module", str(module), "--append", "isolcpus=1")
    pytest_there = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    print(vm_ok(*pytest_there, str(file), kernel=kernel, options=options, seconds=480))


def test_project_module_and_dkms_agree_on_the_version(module: Path) -> None:
    modinfo = subprocess.run(["modinfo", "-F", "version", module], stdout=subprocess.PIPE, text=True, check=True)
    assert modinfo.stdout.strip() == version()
    assert f'PACKAGE_VERSION="{version()}"' in (SOURCES / "dkms.conf").read_text()


# What README tells an administrator to do, on Debian with that kernel and its headers: here's own root, in a layer that
# forgets. Not in the VM, where it takes minutes; that the module loads is seen there above.
LAYERS = """
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/root"
    above() {
        mkdir -p "$1/changes$2" "$1/work$2"
        mount -t overlay -o "lowerdir=${2:-/},upperdir=$1/changes$2,workdir=$1/work$2" overlay "$1/root$2"
    }
    above "$1" ""
    above "$1" "$2"
    mkdir -p "$1/root$3"
    mount --bind "$3" "$1/root$3"
    mount -t proc proc "$1/root/proc"
    mount --rbind /dev "$1/root/dev"
    release=$(ls "$2/lib/modules")
    mkdir -p "$1/root/lib/modules"
    ln -s "$2/lib/modules/$release" "$1/root/lib/modules"
    chroot "$1/root" env --chdir "$3" KERNEL="$release" sh -exc "$4"
"""
DKMS = """
    there() { modprobe --set-version "$KERNEL" --show-depends eventfd_poll; }
    ! there
    make install
    there
    make install
    there
    make uninstall
    ! there
    test -z "$(ls -d /usr/src/eventfd_poll* /var/lib/dkms/eventfd_poll)"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and what DKMS itself needs")
def test_dkms_installs_the_module_also_in_place_of_itself_and_takes_it_away(stock: str, tmp_path: Path) -> None:
    command = [
        "unshare",
        "--mount",
        "sh",
        "-ec",
        LAYERS,
        "sh",
        str(tmp_path),
        str(built(stock)),
        str(SOURCES.parent),
    ]
    run = subprocess.run([*command, f"cd module{DKMS}"], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "insmod" in run.stdout
