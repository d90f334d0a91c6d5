"""When the test VM holds a kernel to have complained: a run that misses a splat would call a broken kernel good."""

from __future__ import annotations

import pytest

from kpoll.kernel.vm.console import first_splat

BOOT = """\
[    0.012000] tsc: Unable to calibrate against PIT
[    0.802475] mtrr: your CPUs had inconsistent fixed MTRR settings
"""


@pytest.mark.parametrize(
    "line",
    [
        "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    9.1] BUG: KASAN: use-after-free in eventfd_poll+0x1f/0x90",
        "[    9.1] BUG: sleeping function called from invalid context at mm/gup.c:1170",
        "[    9.1] WARNING: CPU: 1 PID: 88 at fs/eventpoll.c:700 ep_poll+0x1/0x2",
        "[    9.1] WARNING: possible circular locking dependency detected",
        "[    9.1] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        "[    9.1] INFO: task kpoll:88 blocked for more than 120 seconds.",
        "[    9.1] rcu: INFO: rcu_sched self-detected stall on CPU",
        "[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 134s!",
        "[    9.1] list_add corruption. next->prev should be prev",
        "[    9.1] refcount_t: underflow; use-after-free.",
        "[    9.1] Kernel panic - not syncing: Fatal exception",
        "[    9.1] BUG: KCSAN: data-race in eventfd_write / eventfd_poll",
        "[    9.1] INFO: trying to register non-static key.\n[    9.1] Call Trace:",
    ],
)
def test_what_the_kernel_says_of_its_own_mistakes_is_found_and_quoted_from_there(line: str) -> None:
    said = first_splat(f"{BOOT}{line}\n[    9.2] and more\n")
    assert said is not None
    assert said.startswith(line.splitlines()[-1])
    assert said.endswith("and more")


def test_the_cut_that_precedes_a_warning_is_quoted_with_it() -> None:
    cut = "[    9.1] ------------[ cut here ]------------"
    said = first_splat(f"{BOOT}{cut}\n[    9.1] WARNING: CPU: 1 PID: 88 at fs/eventpoll.c:700\n")
    assert said is not None
    assert said.startswith(cut)


def test_an_ordinary_boot_is_no_complaint() -> None:
    assert first_splat(BOOT) is None
