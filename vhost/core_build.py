"""Builds kpoll.vhost._core: every C file of the four folders in one extension, bound with cffi in API mode.

The extension lives with the lowest layer whose Python needs it (vhost: memory tables and virtqueues). What Python may
see of each folder is declared in its `c/*.cdef` file, in the words of the headers beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

# cffi and setuptools want paths relative to setup.py, which is where the build runs.
FOLDERS = ("kernel", "vhost", "nvme", "backend")
ROOT = Path(__file__).resolve().parent.parent


def _relative(pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder / "c").glob(pattern))]


ffibuilder = FFI()
ffibuilder.cdef("\n".join((ROOT / name).read_text() for name in _relative("*.cdef")))
ffibuilder.set_source(
    "kpoll.vhost._core",
    "\n".join(f'#include "{name}"' for name in _relative("*.h")),
    sources=_relative("*.c"),
    include_dirs=["."],
    libraries=["uring"],
    extra_compile_args=[
        "-std=gnu11",
        "-O2",
        "-g",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        *(["-Werror"] if os.environ.get("KPOLL_WERROR") else []),
        "-Wno-missing-field-initializers",  # cffi's own tables
    ],
    define_macros=[("_GNU_SOURCE", None)],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
