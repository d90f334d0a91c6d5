"""The loadable module does on Debian's own kernel what EVENTFD_SET_POLL promises, as far as a module can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.kernel.vm import BUILD, TEST_KERNEL, TOP, vm_ok

SOURCES = TOP / "kernel" / "module"
# KASAN and lockdep are for the module too. What its eventfds could do by themselves there, they aren't asked to.
KERNEL = "debug" if TEST_KERNEL == "debug" else "stock"
CHECKS = ("check_condition", "check_waiting", "check_lifetime")


def kernel_folder(kernel: str) -> Path:
    """Return where a kernel of the VM lies, with what modules are built against in its `build`."""
    return Path(subprocess.run([BUILD, kernel], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def version() -> str:
    """Return the project's version, which is the module's."""
    project: str = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    return project


def dkms_tree(folder: Path) -> Path:
    """Gather below a folder what DKMS builds from, and return its place there."""
    subprocess.run(["make", "-s", "-C", SOURCES, "dkms-tree", f"DESTDIR={folder}"], check=True)
    return folder / "usr" / "src" / f"eventfd_poll-{version()}"


def compiled(kernel: str, folder: Path) -> tuple[Path, str]:
    """Compile the module for a kernel of the VM, below a folder; return the file and what the compiler said."""
    tree = dkms_tree(folder)
    make = ["make", "-s", "-C", str(kernel_folder(kernel) / "build"), f"M={tree}/module", "W=1", "modules"]
    run = subprocess.run(make, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return tree / "module" / "eventfd_poll.ko", run.stderr


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest) -> str:
    """Name the kernel that the module is for: Debian's own, or the debug kernel where KPOLL_TEST_KERNEL asks for it."""
    name: str = request.getfixturevalue("patched" if KERNEL == "debug" else "stock")
    return name


@pytest.fixture(scope="module")
def module(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the module, compiled without a warning, W=1 included."""
    file, said = compiled(kernel, tmp_path_factory.mktemp("module"))
    said = re.sub(r"Skipping BTF generation .*\n", "", said)  # there is no vmlinux beside the headers
    assert said == ""
    return file


@pytest.mark.parametrize("checks", CHECKS)
def test_the_module_keeps_its_promises(kernel: str, module: Path, checks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPOLL_MODULE", str(module))
    file = Path(__file__).with_name("module") / f"{checks}.py"
    # One CPU is for those who wait alone: anything else that runs there ends a spin, as it should.
    options = ("--module", str(module), "--append", "isolcpus=1")
    print(
        vm_ok(
            "python",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(file),
            kernel=kernel,
            options=options,
            seconds=480,
        )
    )


def test_project_module_and_dkms_agree_on_the_version(module: Path) -> None:
    modinfo = subprocess.run(["modinfo", "-F", "version", module], stdout=subprocess.PIPE, text=True, check=True)
    assert modinfo.stdout.strip() == version()
    assert f'PACKAGE_VERSION="{version()}"' in (SOURCES / "dkms.conf").read_text()


def test_dkms_builds_the_module_from_what_install_gathers(stock: str, tmp_path: Path) -> None:
    dkms = shutil.which("dkms", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if dkms is None:
        pytest.skip("dkms is not installed")
    folder = kernel_folder(stock)
    (release,) = (each.name for each in (folder / "lib" / "modules").iterdir())
    dkms_tree(tmp_path)
    (tmp_path / "dkms").mkdir()
    folders = (f"--dkmstree={tmp_path}/dkms", f"--sourcetree={tmp_path}/usr/src")
    target = ("-k", release, "-a", os.uname().machine, f"--kernelsourcedir={folder}/build")
    command = [dkms, "build", f"eventfd_poll/{version()}", *folders, *target]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout
    built = [each for each in (tmp_path / "dkms").rglob("eventfd_poll.ko*") if release in each.parts]
    assert len(built) == 1
