"""A network card as the daemon runs it: opened, counted, and its cable followed."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import trio

from kpoll.kernel.probe import probe_kernel

from .errors import KpollError, os_reason
from .metrics import Identity
from .net_busy_poll import CardPolling, poll_card
from .net_cable import Cable
from .net_device import open_device
from .net_metrics import NetCollector
from .net_options import mac_text
from .net_ports import open_ports
from .net_xdp import KEPT
from .sandbox import NOTHING_KEPT
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from .net_options import NetConfig
    from .net_ports import Ports


def _tell(polling: CardPolling | None, log: FilteringBoundLogger) -> None:
    """Say how the network card below is polled."""
    if polling is None:
        return
    missing = list(polling.missing)
    if polling.asked and missing:
        log.warning("busy_poll", us=polling.us, prefer=polling.prefer, budget=polling.budget, missing=missing)
    else:
        log.info("busy_poll", us=polling.us, prefer=polling.prefer, budget=polling.budget, missing=missing)


def _tell_made(ports: Ports, log: FilteringBoundLogger) -> None:
    """Warn of a tap that was made because there was none: the name may be a mistyped one."""
    if ports.tap is not None and ports.tap.made:
        name = ports.tap.name
        what = f"there was no {name}, so it was made until kpoll ends; if another was meant, see `ip tuntap show`"
        log.warning("tap_made", interface=name, error=what)


def _tell_mtu(config: NetConfig, ports: Ports, log: FilteringBoundLogger) -> None:
    """Warn of an --mtu that is more than what is behind the card takes now; its administrator may still raise that."""
    takes = ports.path_mtu
    if config.mtu is None or takes is None or config.mtu <= takes:
        return
    if ports.tap is not None:
        what = f"{ports.tap.name} has an MTU of {takes}, and larger frames may be lost behind it: `ip link set dev "
        what += f"{ports.tap.name} mtu {config.mtu}`"
    else:
        what = f"the path takes {takes}, and larger frames go in fragments: raise the MTU of what is below"
    log.warning("mtu_too_large", mtu=config.mtu, path_mtu=takes, error=f"{what}, or use --mtu {takes}")


@contextmanager
def open_net(config: NetConfig, log: FilteringBoundLogger) -> Iterator[Service]:
    """Open the back-end and make its card; close all on leaving, when no worker runs any more. Raises KpollError."""
    with ExitStack() as stack:
        ports = stack.enter_context(open_ports(config))
        polling = poll_card(config, ports.sock, probe_kernel())
        device = stack.enter_context(open_device(config, ports, log))
        try:
            cable = Cable(device, log)
        except OSError as error:
            raise KpollError(f"--backend {config.backend}: its link can't be followed: {os_reason(error)}") from error
        stack.callback(cable.close)

        def ready() -> None:
            _tell_made(ports, log)
            _tell(polling, log)
            _tell_mtu(config, ports, log)

        engine = type(config.backend).__name__.removesuffix("Backend").lower()
        yield Service(
            device=device,
            facts={
                "backend": str(config.backend),
                "mac": mac_text(config.mac),
                "mtu": device.mtu,
                "queues": device.num_queues,
                "workers": len(device.workers),
            },
            collector=NetCollector(Identity(config.device, version("kpoll"), engine, config.poll.strategy), device),
            ready=ready,
            watch=cable.run,
            refresh=trio.lowlevel.checkpoint,
            kept=NOTHING_KEPT if ports.xdp is None else KEPT,
        )
