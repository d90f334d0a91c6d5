"""Initial RAM file systems for test guests, written in the kernel's "newc" cpio format.

Format: Documentation/driver-api/early-userspace/buffer-format.rst in the Linux sources. Uncompressed, because
under TCG the guest's decompression would cost more than the copy does.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import stat
import subprocess
from pathlib import Path, PurePosixPath

MAGIC = b"070701"


class Archive:
    """A growing cpio archive; parent directories appear by themselves."""

    def __init__(self) -> None:
        """Start with the one device node that init needs for its standard streams."""
        self._out = io.BytesIO()
        self._seen: set[str] = set()
        self.node("dev/console", 5, 1)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str) -> None:
        """Add a directory, unless it is there."""
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def node(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def program(self, source: Path, path: str) -> None:
        """Add a program of the host and every shared library that it needs."""
        self.file(path, source.read_bytes(), 0o755)
        for library in shared_libraries(source):
            self.file(str(library).lstrip("/"), library.read_bytes(), 0o755)

    def finish(self) -> bytes:
        """Return the finished archive."""
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if path in self._seen:
            return
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            self.directory(str(parent))
        self._seen.add(path)
        name = path.encode() + b"\0"
        inode = len(self._seen)
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self._out.write(MAGIC + b"".join(b"%08x" % number for number in fields) + name)
        self._pad()
        self._out.write(content)
        self._pad()

    def _pad(self) -> None:
        self._out.write(b"\0" * (-self._out.tell() % 4))


def shared_libraries(program: Path) -> list[Path]:
    """Return the libraries that the dynamic linker would load for a program, the linker itself included."""
    run = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", run.stdout)]


def module_files(tree: Path, names: list[str]) -> list[Path]:
    """Return the files of kernel modules and of all they depend on, in an order in which they can be inserted.

    Args:
        tree: a lib/modules/RELEASE folder with its modules.dep.
        names: module names; those that are built in (or not there) are left out.

    """
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        target, _, rest = line.partition(":")
        needs[target] = rest.split()
    by_name = {re.sub(r"\.ko.*$", "", Path(path).name).replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in names:
        if (path := by_name.get(name.replace("-", "_"))) is not None:
            # modules.dep lists what a module needs with the deepest dependency last
            order += [each for each in (*reversed(needs[path]), path) if each not in order]
    return [tree / path for path in order]


def module_bytes(path: Path) -> bytes:
    """Read a kernel module, unpacked: busybox's insmod takes no compressed ones."""
    content = path.read_bytes()
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix)
    return unpack(content) if unpack else content
