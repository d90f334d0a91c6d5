"""Fuzzes everything between the socket and the device: messages, their descriptors, and what a session makes of them.

An input is a sequence of messages. Each is one byte that says how many descriptors come with it and of what kind, then
the header and the payload as they would come off the wire. The promises that no sequence may break: only the session
may end, every answer is well-formed, a vring is never started twice nor without memory (the recording device asserts
it), and in the end every descriptor and mapping is given back.

    python tests/fuzz/fuzz_messages.py [libFuzzer options] [corpus …]
    python tests/fuzz/fuzz_messages.py --write-seeds tests/fuzz/corpus/messages
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["kpoll.vhost"]):
    import structlog
    import trio

    from kpoll.vhost.connection import Fds, Received
    from kpoll.vhost.descriptors import wait_discarded
    from kpoll.vhost.features import ProtocolFeature, VirtioFeature
    from kpoll.vhost.memory import survive_truncation
    from kpoll.vhost.messages import RULES, Header, Request, pack_request
    from kpoll.vhost.payloads import (
        PAYLOAD_MAX,
        U64,
        Config,
        Empty,
        MacAddress,
        MemoryRegion,
        MemoryRegions,
        MessageError,
        SingleMemoryRegion,
        VringAddr,
        VringFd,
        VringState,
    )
    from kpoll.vhost.session import PROTOCOL_FEATURES, Session, SessionEndedError
    from tests.wire.harness import AVAIL, DESC, SIZE, USED, RecordingDevice, resources

MESSAGES_MAX = 64
CARD = ProtocolFeature.MTU | ProtocolFeature.RARP


def drop(_logger: object, _method: str, _event: object) -> str:
    """Log nothing: an input fails hundreds of requests."""
    raise structlog.DropEvent


LOG = structlog.wrap_logger(structlog.PrintLogger(), [drop], wrapper_class=structlog.make_filtering_bound_logger(0))


def memfd() -> int:
    """Give four pages of guest memory."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * 4096)
    return fd


def stream() -> int:
    """Give one end of a channel whose other end is gone."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def pipe() -> int:
    """Give the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


KINDS = (memfd, lambda: os.eventfd(0), pipe, stream, lambda: os.open(os.devnull, os.O_RDWR))
MEMFD, EVENTFD, STREAM = 0, 1, 3


def messages(data: bytes) -> list[Received]:
    """Cut an input into messages, as the connection would; it ends where a header is not one."""
    found: list[Received] = []
    head = Header.LAYOUT.size
    while len(data) > head and len(found) < MESSAGES_MAX:
        try:
            header = Header.unpack(data[1 : 1 + head])
        except MessageError:
            break
        end = 1 + head + header.size
        if len(data) < end:
            break
        fds = Fds()
        for _ in range(data[0] & 0xF):
            fds.collect([(socket.SOL_SOCKET, socket.SCM_RIGHTS, one(data[0] >> 4))], truncated=False)
        found.append(Received(header, data[1 + head : end], fds))
        data = data[end:]
    return found


def one(kind: int) -> bytes:
    """Make a descriptor of a kind, in the form of ancillary data."""
    return KINDS[kind % len(KINDS)]().to_bytes(4, sys.byteorder)


async def play(data: bytes) -> None:
    """Feed a session, which must end in order whatever it was fed."""
    device = RecordingDevice()
    device.extra_protocol_features = CARD
    session = Session(device, LOG)
    sequence = messages(data)
    try:
        for message in sequence:
            check_answer(message.header, await session.handle(message))
    except SessionEndedError:
        pass
    finally:
        for message in sequence:
            message.fds.close()
        await session.close()


def check_answer(header: Header, answer: bytes) -> None:
    """Hold an answer against what the specification says of its request."""
    replies = RULES[header.request].replies if header.request in RULES else None
    if not answer:
        assert replies is None, "a reply is missing"
        return
    told = Header.unpack(answer[:12])
    assert (told.request, told.flags) == (header.request, 0x1 | 0x4)
    assert told.size == len(answer) - 12 <= PAYLOAD_MAX
    if replies is None:
        assert header.need_reply
        U64.unpack(answer[12:])
    elif told.size:  # GET_CONFIG signals an error by an empty payload
        replies.unpack(answer[12:])


def one_input(data: bytes) -> None:
    """Play one input; libFuzzer calls this."""
    held = resources()
    trio.run(play, data)
    assert wait_discarded(10), "a descriptor never closed"
    assert resources() == held, "descriptors or mappings leaked"


def seeds() -> dict[str, bytes]:
    """Sessions as front-ends hold them, for the fuzzer to start from."""
    uva = 0x7000_0000_0000
    table = MemoryRegions((MemoryRegion(0, 4096, uva, 0), MemoryRegion(1 << 20, 4096, uva + (1 << 20), 4096)))
    region = SingleMemoryRegion(MemoryRegion(1 << 30, 8192, uva + (1 << 30), 100))

    def message(request: Request, payload: object, fds: int = 0, kind: int = 0, *, ack: bool = True) -> bytes:
        return bytes([kind << 4 | fds]) + pack_request(request, payload, need_reply=ack)  # type: ignore[arg-type]

    negotiation = message(Request.GET_FEATURES, Empty()) + message(Request.GET_PROTOCOL_FEATURES, Empty())
    negotiation += message(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES))
    negotiation += message(Request.SET_OWNER, Empty()) + message(Request.GET_QUEUE_NUM, Empty())
    features = VirtioFeature.VIRTIO_F_VERSION_1 | VirtioFeature.VHOST_USER_F_PROTOCOL_FEATURES
    negotiation += message(Request.SET_FEATURES, U64(features))
    memory = message(Request.SET_MEM_TABLE, table, 2, MEMFD)
    slots = message(Request.GET_MAX_MEM_SLOTS, Empty()) + message(Request.ADD_MEM_REG, region, 1, MEMFD)
    vring = b"".join(
        message(Request.SET_VRING_NUM, VringState(i, SIZE))
        + message(Request.SET_VRING_BASE, VringState(i, 0))
        + message(Request.SET_VRING_ADDR, VringAddr(i, 0, uva + DESC, uva + USED, uva + AVAIL, 0))
        + message(Request.SET_VRING_CALL, VringFd(i, has_fd=True), 1, EVENTFD)
        + message(Request.SET_VRING_ERR, VringFd(i, has_fd=False))
        + message(Request.SET_VRING_KICK, VringFd(i, has_fd=True), 1, EVENTFD)
        + message(Request.SET_VRING_ENABLE, VringState(i, 1))
        for i in (0, 1)
    )
    config = message(Request.GET_CONFIG, Config(0, 60, 0, bytes(60)))
    config += message(Request.SET_CONFIG, Config(32, 1, 0, b"\1"))
    config += message(Request.SET_BACKEND_REQ_FD, Empty(), 1, STREAM)
    card = (
        message(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES | CARD))
        + message(Request.NET_SET_MTU, U64(1500))
        + message(Request.SEND_RARP, MacAddress(b"\x52\x54\0\0\0\1"))
    )
    end = message(Request.GET_VRING_BASE, VringState(0, 0)) + message(Request.REM_MEM_REG, region)
    reset = message(Request.RESET_OWNER, Empty()) + message(Request.RESET_DEVICE, Empty())
    status = message(Request.SET_STATUS, U64(15)) + message(Request.GET_STATUS, Empty())
    status += message(Request.SET_STATUS, U64(0))
    return {
        "negotiation": negotiation,
        "config": negotiation + config,
        "memory": negotiation + memory + memory + slots,
        "running": negotiation + memory + slots + vring + config,
        "replaced": negotiation + memory + vring + slots + memory + end + vring,
        "reset": negotiation + memory + vring + status + vring + reset + vring,
        "old": memory + vring,
        "card": negotiation + card,
    }


def main() -> None:
    """Fuzz, or write the seeds."""
    if sys.argv[1:2] == ["--write-seeds"]:
        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds().items():
            (folder / f"seed-{name}").write_bytes(data)
        return
    survive_truncation()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
