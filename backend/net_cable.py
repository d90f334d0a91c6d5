"""A card's cable: in while what is behind the card can carry frames, out while it can't.

That is an interface (net_link.py), or the local address of a socket (net_address.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from .errors import KpollError
from .net_address import watch_address_of
from .net_link import LinkState, LinkWatch

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from .net_address import AddressWatch
    from .net_device import NetDevice
    from .net_ports import Ports

_ASK_AGAIN_S: Final = 1.0  # for an interface that is back, but somebody else's


def _watch(ports: Ports) -> LinkWatch | AddressWatch | None:
    """Watch what is behind a card, if there is anything that can be seen from here. Raises OSError."""
    interface = ports.tap or ports.xdp
    if interface is not None:
        return None if interface.index is None else LinkWatch(interface.name, interface.index)
    return None if ports.udp is None else watch_address_of(ports.udp)


def _gone(interface: str | None, address: str | None) -> str:
    """Say what happened, and what brings the cable back."""
    if interface is not None:
        return f"{interface} was deleted or moved away; the cable is out until that name is back"
    if "%" in str(address):
        return f"{address} was removed; the cable is out until it is back (an interface made anew takes a restart)"
    return f"{address} was removed, or its interface was; the cable is out until an interface has it"


class Cable:
    """Follows what is behind a card; attaches to an interface that was deleted and is back.

    Resource handling: `close` closes the socket, which is opened at once, while we still may.
    """

    def __init__(self, device: NetDevice, log: FilteringBoundLogger) -> None:
        """Follow what is behind `device`. Raises OSError."""
        self._device = device
        self._log = log
        self._watch = _watch(device.ports)

    def close(self) -> None:
        """Close the socket."""
        if self._watch is not None:
            self._watch.close()

    async def run(self) -> None:
        """Tell the guest what the link is like, until cancelled."""
        ports = self._device.ports
        if ports.xdp is not None:
            self._log.info("xdp", interface=ports.xdp.name, mode=ports.xdp.mode)
        if self._watch is None:
            return
        on = ports.tap or ports.xdp
        interface = None if on is None else on.name
        address = None if ports.udp is None else str(ports.udp.getsockname()[0])
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
                    "link", state="gone", interface=interface, address=address, error=_gone(interface, address)
                )
                if ports.tap is not None:
                    await self._device.unplug()
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
                self._log.info("link", state=state.name.lower(), interface=interface, address=address)
            await self._device.set_link(up=state is LinkState.UP)

    async def _attach_again(self) -> None:
        """Have the interface that is back; a socket needs nothing. Raises KpollError when it can't be had.

        The workers get the tap's descriptors last: as long as the kernel hasn't been told how long our header is, what
        they read and write there would be cut in the wrong place.
        """
        ports = self._device.ports
        if ports.tap is not None:
            ports.tap.attach_again()
            self._device.deal()
            await self._device.plug(ports.handles)
        if ports.xdp is not None:
            with ports.xdp.opened_again() as handles:
                await self._device.plug(handles)
            self._log.info("xdp", interface=ports.xdp.name, mode=ports.xdp.mode)
