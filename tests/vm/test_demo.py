"""`make demo` is a promise to newcomers: whatever comes, it leaves nothing behind.

That it holds, to its end, is in tests/kernel/test_story.py: its last act takes the patched kernel.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from trio.testing import trio_test

from tests.vm.child import Child, running

DEMO = [sys.executable, "-m", "tests.vm.demo"]
INTERRUPTED = 130


async def folder_of(demo: Child) -> Path:
    """Return where the demo keeps its image, as it tells in its first step."""
    line = await demo.expect(lambda line: "/disk.img" in line, "the image's path", seconds=60)
    found = re.search(r"(/\S+)/disk\.img", line)
    assert found is not None
    return Path(found[1])


def processes_with(folder: Path) -> list[tuple[int, str]]:
    """Return the running processes whose command lines name a folder: their pids and command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if str(folder) in command:
            found.append((int(process.parent.name), command))
    return found


@pytest.mark.parametrize("moment", ["truncate", "QEMU boots", "booted in", "random data"])
@trio_test
async def test_an_interrupted_demo_leaves_nothing_behind(moment: str) -> None:
    """Ctrl-C while it starts, boots or works: guest, daemon and files are gone."""
    async with running("the demo", DEMO) as demo:
        folder = await folder_of(demo)
        if moment not in "".join(demo.lines):
            await demo.expect(lambda line: moment in line, f"the moment {moment!r}", seconds=120)
        demo.signal(signal.SIGINT)
        assert await demo.wait(seconds=30) == INTERRUPTED
        assert not folder.exists()
        assert processes_with(folder) == []


@trio_test
async def test_a_demo_whose_guest_dies_fails_and_cleans_up() -> None:
    """It says so, exits 1, and still leaves nothing behind."""
    async with running("the demo", DEMO) as demo:
        folder = await folder_of(demo)
        await demo.expect(lambda line: "booted in" in line, "a booted guest", seconds=120)
        for pid, command in processes_with(folder):
            if command.startswith("qemu-system"):
                os.kill(pid, signal.SIGKILL)
        assert await demo.wait(seconds=30) == 1
        assert any("ended while waiting" in line for line in demo.lines)
        assert not folder.exists()
        assert processes_with(folder) == []
