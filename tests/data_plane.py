"""The data plane's C sources as a library, for programs that test them without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.vm.image import cache_dir

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}"]


def _object(source: Path, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    # Several tests want the same objects, in this run and in the next, whatever folder they run in.
    environment = os.environ | {
        "CCACHE_DIR": str(cache_dir() / "ccache"),
        "CCACHE_BASEDIR": str(ROOT),
        "CCACHE_NOHASHDIR": "1",
    }
    target = folder / f"{source.parents[1].name}-{source.stem}.o"
    ccache = ["ccache"] if shutil.which("ccache") else []
    subprocess.run([*ccache, compiler, *FLAGS, *flags, "-c", source, "-o", target], check=True, env=environment)
    return target


def library(folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile the data plane with further flags; return the archive, which lies in the folder."""
    sources = [path for name in ("kernel", "vhost", "nvme", "backend") for path in (ROOT / name / "c").glob("*.c")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _object(source, folder, *flags, compiler=compiler), sources))
    archive = folder / "libdataplane.a"
    subprocess.run(["ar", "rcs", archive, *objects], check=True)
    return archive


def program(source: Path, data_plane: Path, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a program with the flags that its library was compiled with; return it."""
    binary = folder / source.stem
    target = _object(source, folder, *flags, compiler=compiler)
    command: list[str | Path] = [compiler, *FLAGS, *flags, target, data_plane, "-luring", "-lpthread", "-o", binary]
    subprocess.run(command, check=True)
    return binary
