"""The loadable module does on Debian's own kernel what EVENTFD_SET_POLL promises, as far as a module can."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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


# What README tells an administrator to do, on a kernel of Debian's own with its headers; the VM keeps nothing of it.
DKMS = """
    cd kernel/module
    make install
    modprobe eventfd_poll
    test -c /dev/eventfd_poll
    rmmod eventfd_poll
    make install
    modprobe eventfd_poll
    rmmod eventfd_poll
    make uninstall
    ! modprobe eventfd_poll
    test -z "$(ls -d /usr/src/eventfd_poll* /var/lib/dkms/eventfd_poll)"
"""


def test_dkms_installs_the_module_also_in_place_of_itself_and_takes_it_away(stock: str) -> None:
    print(vm_ok("sh", "-exc", DKMS, kernel=stock, seconds=300))
