"""A CPU of the VM for the worker alone, and time to spin there: whatever else runs on it ends spins, as it should."""

from __future__ import annotations

import os
from pathlib import Path

WORKER = "kpoll-w0"
WORKER_CPU, OTHER_CPU = 1, 0
# Far more than one would allow on a machine: here every CPU is emulated, and stands still for milliseconds at times.
SPIN_US = 1_000_000
# The options of kernel/vm/run. vm.stat_interval: what periodic business the kernel has otherwise, on each CPU.
OPTIONS = ("--append", f"isolcpus={WORKER_CPU} nowatchdog", "--sysctl", "vm.stat_interval=3600")


def spin_for(strategy: str, microseconds: int) -> tuple[str, str]:
    """Return the option of kernel/vm/run by which the kernel spins for so long under a strategy: kernel or module."""
    sysctl = {"kernel": "fs.eventfd_busy_poll", "module": "net.core.busy_poll"}[strategy]
    return ("--sysctl", f"{sysctl}={microseconds}")


def leave_the_worker_alone() -> None:
    """Move to the other CPU what isolcpus leaves on the worker's; this process and its children may run on both."""
    os.sched_setaffinity(0, {OTHER_CPU, WORKER_CPU})
    Path("/sys/devices/virtual/workqueue/cpumask").write_text(f"{1 << OTHER_CPU:x}")
    for comm in Path("/proc").glob("[0-9]*/comm"):
        # The patched kernel's RCU thread, and that of Debian's own, which can be preempted.
        if comm.read_text() in ("rcu_sched\n", "rcu_preempt\n"):
            os.sched_setaffinity(int(comm.parent.name), {OTHER_CPU})
