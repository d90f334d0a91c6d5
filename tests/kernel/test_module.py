"""The loadable module does on Debian's own kernel what EVENTFD_SET_POLL promises, as far as a module can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kpoll.kernel.vm.machine import built
from tests.kernel.compiled import SOURCES, dkms_tree, version
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


def test_dkms_builds_the_module_from_what_install_gathers(stock: str, tmp_path: Path) -> None:
    dkms = shutil.which("dkms", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if dkms is None:
        pytest.skip("dkms is not installed")
    folder = built(stock)
    (release,) = (each.name for each in (folder / "lib" / "modules").iterdir())
    dkms_tree(tmp_path)
    (tmp_path / "dkms").mkdir()
    folders = (f"--dkmstree={tmp_path}/dkms", f"--sourcetree={tmp_path}/usr/src")
    target = ("-k", release, "-a", os.uname().machine, f"--kernelsourcedir={folder}/build")
    command = [dkms, "build", f"eventfd_poll/{version()}", *folders, *target]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout
    modules = [each for each in (tmp_path / "dkms").rglob("eventfd_poll.ko*") if release in each.parts]
    assert len(modules) == 1
