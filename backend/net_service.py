"""A network card as the daemon runs it: opened, counted, and its cable followed."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from kpoll.kernel.probe import probe_kernel

from .errors import KpollError, os_reason
from .metrics import Identity
from .net_busy_poll import CardPolling, poll_card
from .net_device import NetDevice, open_device
from .net_link import LinkState, LinkWatch
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

_ASK_AGAIN_S: Final = 1.0  # for an interface that is back, but somebody else's


class _Cable:
    """Follows the link of an interface; attaches to a tap that was deleted and is back."""

    def __init__(self, device: NetDevice, log: FilteringBoundLogger) -> None:
        """Follow the interface behind `device`, if there is one that can be seen from here. Raises OSError."""
        interface = device.ports.tap or device.ports.xdp
        self._device = device
        self._log = log
        self._watch = (
            None if interface is None or interface.index is None else LinkWatch(interface.name, interface.index)
        )

    def close(self) -> None:
        """Close the socket."""
        if self._watch is not None:
            self._watch.close()

    async def run(self) -> None:
        """Tell the guest what the link is like, until cancelled."""
        tap, xdp = self._device.ports.tap, self._device.ports.xdp
        interface = tap or xdp
        if xdp is not None:
            self._log.info("xdp", interface=xdp.name, mode=xdp.mode)
        if interface is None or self._watch is None:
            return
        lost = False
        failed: str | None = None  # why an interface that is back can't be had
        state = LinkState.DOWN
        while True:
            # Nobody tells when another process lets go of it.
            with trio.move_on_after(math.inf if failed is None else _ASK_AGAIN_S):
                state = await self._watch.changed()
            if state is LinkState.GONE:
                lost, failed = True, None
                self._log.error(
                    "link",
                    state="gone",
                    interface=interface.name,
                    error=f"{interface.name} was deleted or moved away; the cable is out until that name is back",
                )
            else:
                try:
                    if lost:  # not before: of one that is being deleted we are told that it is down
                        await self._attach_again()
                except KpollError as error:
                    if failed != str(error):
                        failed = str(error)
                        self._log.error("not_attached", error=failed)
                    continue
                lost, failed = False, None
                self._log.info("link", state=state.name.lower(), interface=interface.name)
            await self._device.set_link(up=state is LinkState.UP)

    async def _attach_again(self) -> None:
        """Have the interface that is back. Raises KpollError when it can't be had."""
        ports = self._device.ports
        if ports.tap is not None:
            ports.tap.attach_again()
            self._device.deal()
        if ports.xdp is not None:
            with ports.xdp.opened_again() as handles:
                await self._device.plug(handles)
            self._log.info("xdp", interface=ports.xdp.name, mode=ports.xdp.mode)


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
            cable = _Cable(device, log)
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
