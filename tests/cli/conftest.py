"""What several of these tests need of the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop_device(image: Path) -> Iterator[Path]:
    """Give a block device that is the test's image."""
    losetup = shutil.which("losetup", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("a loop device takes root and losetup")
    words = [losetup, "--find", "--show", "--partscan", str(image)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run([losetup, "--detach", device], check=True)
