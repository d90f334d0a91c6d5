"""The whole story: an NVMe disk, a kernel that polls, kpoll, an unmodified QEMU with KVM, and a guest that verifies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.kernel.story import READS, vm_command, vm_options
from tests.kernel.vm import vm

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled


# More than any command of the story's own may take (tests/vm/guest.py), after those before it.
SECONDS = 450
TIMED_OUT = 124


def told(poll: str, kernel: str, *options: str) -> dict[str, Any]:
    """Tell the story in a VM, see that every check held, and return what was counted.

    Once QEMU's emulation of a CPU that has KVM stood still for good, clocks and all. Whatever kpoll or the guest do
    wrong the story says itself, by the VM's clock; so a VM that says nothing for so long has lost that, and is tried
    once more.
    """
    where: Any = {"kernel": kernel, "options": (*vm_options(poll), *options), "seconds": SECONDS}
    outcome = vm(*vm_command(poll), **where)
    if outcome.status == TIMED_OUT:
        print(f"the VM stood still, and is tried once more:\n{outcome.output}\n{outcome.complaint}")
        outcome = vm(*vm_command(poll), **where)
    assert outcome.status == 0, f"{outcome.status}\n{outcome.output}\n{outcome.complaint}"
    said = outcome.output.rstrip("\n")
    print(said)
    counted: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert counted["counts"][poll]["requests"] >= READS
    assert counted["woken_by_kicks"] == 1
    return counted


def test_a_guest_on_a_patched_kernel_keeps_its_data_and_need_not_ring(patched: str) -> None:
    counts = told("kernel", patched)["counts"]
    assert counts["kernel"]["kicks"] < counts["off"]["kicks"]
    assert counts["kernel"]["sleeps"] < counts["off"]["sleeps"]


def test_a_guest_on_debians_kernel_with_the_module_keeps_its_data(stock: str, stock_module: Compiled) -> None:
    counts = told("module", stock, "--module", str(stock_module.file))["counts"]
    assert counts["module"]["sleeps"] < counts["off"]["sleeps"]
