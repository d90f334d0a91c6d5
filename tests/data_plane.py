"""The data plane's C sources as a library, for programs that test them without Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]


def library(folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile the data plane with further flags; return the archive, which lies in the folder."""
    objects = []
    for source in (path for name in ("kernel", "vhost", "nvme", "backend") for path in (ROOT / name / "c").glob("*.c")):
        target = folder / f"{source.parents[1].name}-{source.stem}.o"
        subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", target], check=True)
        objects.append(target)
    archive = folder / "libdataplane.a"
    subprocess.run(["ar", "rcs", archive, *objects], check=True)
    return archive


def program(source: Path, data_plane: Path, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a program with the flags that its library was compiled with; return it."""
    binary = folder / source.stem
    command: list[str | Path] = [compiler, *FLAGS, *flags, source, data_plane, "-luring", "-lpthread", "-o", binary]
    subprocess.run(command, check=True)
    return binary
