"""A network card as the daemon runs it: opened, counted, and its cable followed."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
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


def _tell(polling: CardPolling, log: FilteringBoundLogger) -> None:
    """Say how the network card below is polled."""
    missing = list(polling.missing)
    if polling.asked and missing:
        log.warning("busy_poll", us=polling.us, prefer=polling.prefer, budget=polling.budget, missing=missing)
    else:
        log.info("busy_poll", us=polling.us, prefer=polling.prefer, budget=polling.budget, missing=missing)


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
            ready=partial(_tell, polling, log),
            watch=cable.run,
            refresh=trio.lowlevel.checkpoint,
            kept=NOTHING_KEPT if ports.xdp is None else KEPT,
        )
