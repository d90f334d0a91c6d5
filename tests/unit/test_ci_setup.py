"""What `.ci/setup` asks apt for, with a Debian that is played by scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / ".ci" / "setup"


def setup(folder: Path, clang: str, installed: str) -> list[str]:
    """Run `.ci/setup check` on a host with this clang and these packages (a grep pattern); give what it installs."""
    asked = folder / "asked"
    asked.touch()
    (folder / "kernel" / "linux-image" / "boot").mkdir(parents=True)
    (folder / "kernel" / "linux-image" / "boot" / "vmlinuz-6.1").touch()
    for name, script in {
        "clang": f"echo {clang}",
        "dpkg-query": f"for name; do :; done; echo $name | grep -q '{installed}' && echo ii",
        "sudo": 'exec "$@"',
        "apt-get": f'echo "$@" >> {asked}',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "KPOLL_CACHE": str(folder)}
    run = subprocess.run([SETUP, "check"], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    installs = [line for line in asked.read_text().splitlines() if " install " in line]
    return [word for line in installs for word in line.partition("--no-install-recommends ")[2].split()]


@pytest.mark.parametrize(("clang", "package"), [("14.0.6", "libclang-rt-14-dev"), ("19.1.7", "libclang-rt-19-dev")])
def test_the_sanitizers_libraries_are_of_the_version_that_clang_is(tmp_path: Path, clang: str, package: str) -> None:
    wanted = setup(tmp_path, clang, installed="^never$")
    assert "clang" in wanted
    assert wanted[-1] == package


def test_a_host_that_has_it_all_is_left_alone(tmp_path: Path) -> None:
    assert setup(tmp_path, "14.0.6", installed=".") == []
