"""The loadable module, compiled as DKMS would: from what `make dkms-tree` gathers, for one kernel of the VM."""

from __future__ import annotations

import subprocess
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kpoll.kernel.vm.machine import built
from tests.kernel.vm import TOP

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = TOP / "kernel" / "module"


@dataclass(frozen=True)
class Compiled:
    """A compiled module.

    Args:
        file: eventfd_poll.ko.
        said: what the compiler said, warnings of W=1 included.

    """

    file: Path
    said: str


def version() -> str:
    """Return the project's version, which is the module's."""
    project: str = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    return project


def compiled(kernel: str, folder: Path) -> Compiled:
    """Compile the module below a folder, for patched, debug or stock."""
    subprocess.run(["make", "-s", "-C", SOURCES, "dkms-tree", f"DESTDIR={folder}"], check=True)
    tree = folder / "usr" / "src" / f"eventfd_poll-{version()}"
    make = ["make", "-s", "-C", str(built(kernel) / "build"), f"M={tree}/module", "W=1", "modules"]
    run = subprocess.run(make, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return Compiled(tree / "module" / "eventfd_poll.ko", run.stderr)
