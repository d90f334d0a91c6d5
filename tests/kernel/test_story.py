"""The whole story: an NVMe disk, a kernel that polls, kpoll, an unmodified QEMU with KVM, and a guest that verifies.

On the patched kernel `make demo` tells it, as its last act.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio.testing import trio_test

from tests.kernel.demo_kernel import SECONDS
from tests.kernel.story import vm_command, vm_options
from tests.kernel.vm import DEBUGGING, vm
from tests.vm.child import running
from tests.vm.test_demo import DEMO, folder_of, processes_with

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled

# Once QEMU's emulation of a CPU that has KVM stood still for good, clocks and all. Whatever kpoll or the guest do wrong
# the story says itself, by the VM's clock; so a VM that says nothing for so long has lost that, and is tried once more.
TRIES = 2
STOOD_STILL = "was not done after"
TIMED_OUT = 124


def told(poll: str, kernel: str, *options: str) -> None:
    """Tell the story in a VM, and see that every check held."""
    where: Any = {"kernel": kernel, "options": (*vm_options(poll), *options), "seconds": SECONDS}
    for _ in range(TRIES):
        outcome = vm(*vm_command(poll), **where)
        print(outcome.output, outcome.complaint, sep="\n")
        if outcome.status != TIMED_OUT:
            break
    assert outcome.status == 0


if DEBUGGING:  # which the demo doesn't boot

    def test_a_guest_on_a_debug_kernel_keeps_its_data_and_need_not_ring(patched: str) -> None:
        told("kernel", patched)

else:

    @trio_test
    async def test_every_check_of_the_demo_holds_those_on_the_patched_kernel_too_and_it_cleans_up(patched: str) -> None:
        """Exit code 0, and neither processes nor files are left."""
        assert patched == "patched"
        for _ in range(TRIES):
            async with running("the demo", DEMO) as demo:
                folder = await folder_of(demo)
                code = await demo.wait(seconds=2 * SECONDS)
            said = "\n".join(demo.lines)
            print(said)
            assert not folder.exists()
            assert processes_with(folder) == []
            if STOOD_STILL not in said:
                break
        assert code == 0
        assert said.count("every answer came") == 2
        assert said.count("Mbit/s arrived") == 2
        assert "the doorbell is off while the kernel looks" in said
        assert "make demo-kernel" not in said


def test_a_guest_on_debians_kernel_with_the_module_keeps_its_data(stock: str, stock_module: Compiled) -> None:
    told("module", stock, "--module", str(stock_module.file))
