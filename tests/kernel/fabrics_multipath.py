"""Runs in the VM, for fabrics_faults.py: a subsystem at two ports, and a disk that both ways lead to."""

from __future__ import annotations

from typing import Any

from kpoll.nvme import fabrics
from kpoll.nvme.libnvme import load
from tests.cli.harness import IN, Guest, until
from tests.kernel.fabrics_load import Load, failed, loaded_while, over_tcp, say, seen, serving, trouble, verified
from tests.kernel.nvmet import ADDRESS, Target

HOLD_S = 3
BLOCK = 4096


def connect(target: Target) -> str:
    """Connect by hand, as `kpoll nvme connect --fast-io-fail-tmo` does; returns the controller."""
    library = fabrics.check_ready(load())
    address = fabrics.Address(transport="tcp", traddr=ADDRESS, trsvcid=target.port)
    timeouts = fabrics.Timeouts(reconnect_delay=1, ctrl_loss_tmo=-1, fast_io_fail_tmo=HOLD_S)
    return fabrics.connect(library, address, target.nqn, fabrics.default_host(), timeouts)


def disconnect_all() -> None:
    """Leave no connection."""
    for each in over_tcp():
        fabrics.disconnect(fabrics.check_ready(load()), each.name)


def state(name: str) -> str:
    """Say how a controller is."""
    return next(each.state for each in over_tcp() if each.name == name)


def both_lost(one: Target, two: Target, names: tuple[str, str], options: tuple[str, ...]) -> dict[str, Any]:
    """Lose one way under load, then the other one too; have the first one back, then both."""
    with serving(*options) as (daemon, sock):
        used = daemon.logged("nvme_connected")["controller"] if "--nvme-tcp" in options else None

        def outage(load: Load) -> dict[str, Any]:
            one.kill()
            seen(lambda: state(names[0]) != "live")
            say("one way is lost")
            load.goes_on()
            facts: dict[str, Any] = {"after_one": trouble(sock)}
            two.kill()
            say("both ways are lost")
            facts["errors"] = daemon.logged("disk_errors")
            one.start()
            facts["over"] = daemon.logged("disk_errors_over")
            load.goes_on()
            say("one way is back")
            facts["second"] = state(names[1])
            return facts

        saw, facts = loaded_while(sock, outage, runtime=40.0, think_us=10000)
        facts |= {"load": saw, "failed": failed(sock), "used": used}
        two.start()
        seen(lambda: [state(name) for name in names] == ["live", "live"])
        return {**facts, "afterwards": verified(sock, requests=500), "code": daemon.stop()}


def found_by_the_lost_way(one: Target, names: tuple[str, str]) -> dict[str, Any]:
    """Start on the address of a way that is lost, while there is another one."""
    one.kill()
    seen(lambda: state(names[0]) != "live")
    with serving("--nvme-tcp", one.option) as (daemon, sock), Guest(sock) as guest:
        status = guest.request(IN, 0, length=BLOCK)[0]
        used = daemon.logged("nvme_connected")
    one.start()
    seen(lambda: state(names[0]) == "live")
    return {"status": status, "controller": used["controller"], "ours": used["ours"]}


def multipath(one: Target, port: int) -> dict[str, Any]:
    """Offer a target's subsystem at another port as well, connect to both, and see what comes of losing them."""
    two = Target(one.nqn, port)
    two.offer()
    names = (connect(one), connect(two))
    disk = fabrics.wait_for_namespace(names[0], 1, 60.0)
    until(lambda: disk == fabrics.wait_for_namespace(names[1], 1, 60.0))
    facts = {
        "names": names,
        "lost": found_by_the_lost_way(one, names),
        "file retry": both_lost(one, two, names, ("--blk-file", f"/dev/{disk}", "--on-error", "retry")),
        "tcp report": both_lost(one, two, names, ("--nvme-tcp", one.option, "--on-error", "report")),
    }
    disconnect_all()
    return facts
