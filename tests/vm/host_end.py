"""What a guest's frames are for, at the host's end: a TCP port that gives back what it was sent, and a TFTP server.

Both carry whatever the guest has made up to the host and back again, so that a checksum over it, in the guest, vouches
for both directions. TFTP (RFC 1350, with the block size of RFC 2348) does that for UDP, in datagrams of any size.
"""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.vm.network import Network

TCP_PORT = 7000
TFTP_PORT = 69

_RRQ, _WRQ, _DATA, _ACK, _OACK = 1, 2, 3, 4, 6
_RETRY_SECONDS = 1
_DATAGRAM_MAX = 65535


@asynccontextmanager
async def host_end(network: Network) -> AsyncIterator[None]:
    """Serve both on every address of a network, for the length of the block."""
    listening = network.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listening.bind(("::", TCP_PORT))
    listening.listen()
    asked = network.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    asked.bind(("::", TFTP_PORT))
    with trio.socket.from_stdlib_socket(asked) as requests:
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            nursery.start_soon(partial(trio.serve_listeners, _give_back, [listener]))
            nursery.start_soon(_serve_tftp, network, requests)
            yield
            nursery.cancel_scope.cancel()


async def _give_back(stream: trio.SocketStream) -> None:
    content = bytearray()
    async for chunk in stream:
        content += chunk
    await stream.send_all(content)
    await stream.aclose()


async def _serve_tftp(network: Network, requests: Any) -> None:
    """Serve one transfer after the other."""
    files: dict[bytes, bytes] = {}
    while True:
        request, client = await requests.recvfrom(_DATAGRAM_MAX)
        (op,) = struct.unpack_from(">H", request)
        if op not in (_RRQ, _WRQ):
            continue  # the last transfer's last words, sent again
        name, _mode, *options = request[2:].rstrip(b"\0").split(b"\0")
        block = int(options[options.index(b"blksize") + 1])
        # A transfer has a port of its own (RFC 1350 §4).
        with trio.socket.from_stdlib_socket(network.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as transfer:
            await transfer.connect(client)
            agreed = struct.pack(">H", _OACK) + b"blksize\0%d\0" % block
            if op == _WRQ:
                files[name] = await _receive(transfer, agreed, block)
            else:
                with suppress(ConnectionRefusedError):  # as in _receive()
                    await _send(transfer, agreed, files[name], block)


async def _exchange(transfer: Any, packet: bytes, op: int, number: int) -> bytes:
    """Send a packet until it is answered as wanted; return the answer's data."""
    while True:
        await transfer.send(packet)
        with trio.move_on_after(_RETRY_SECONDS):
            while True:
                answer: bytes = await transfer.recv(_DATAGRAM_MAX)
                if struct.unpack_from(">HH", answer) == (op, number):
                    return answer[4:]


async def _receive(transfer: Any, agreed: bytes, block: int) -> bytes:
    content, number, packet = bytearray(), 0, agreed
    while True:
        number = (number + 1) & 0xFFFF
        data = await _exchange(transfer, packet, _DATA, number)
        content += data
        packet = struct.pack(">HH", _ACK, number)
        if len(data) < block:  # the last one
            with suppress(ConnectionRefusedError):  # an answer sent twice, to one who had left with the first
                await transfer.send(packet)
            return bytes(content)


async def _send(transfer: Any, agreed: bytes, content: bytes, block: int) -> None:
    await _exchange(transfer, agreed, _ACK, 0)
    for n in range(len(content) // block + 1):  # the last block is a short one, if need be an empty one
        number = (n + 1) & 0xFFFF
        data = content[n * block : (n + 1) * block]
        await _exchange(transfer, struct.pack(">HH", _DATA, number) + data, _ACK, number)
