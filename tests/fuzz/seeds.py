"""Writes the seed corpus of the C harnesses: well-formed guests, from which the fuzzer breaks things.

Run once when a harness's input format changes: `python tests/fuzz/seeds.py`. What the fuzzer finds beyond these seeds
is added by `make fuzz`.
"""

from __future__ import annotations

import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
NEXT, WRITE, INDIRECT = 1, 2, 4
PACKED_AVAIL = 1 << 7
HEADER, DATA, STATUS, TABLE = 4096, 8192, 4096 + 512, 3072
AVAIL = 1024
# fuzz_net.c's
RECEIVEQ, TAPE = 16384, 20480
MRG_RXBUF, NULL_PORT, ECHO, WIRE, WIRE_ONE_BY_ONE = 1 << 5, 0, 1 << 6, 2 << 6, 3 << 6
NEEDS_CSUM, TCPV4, TCPV6, UDP_L4 = 1, 1, 4, 5


class Guest:
    """A guest's memory in the layout of fuzz_guest.h."""

    def __init__(self, flags: int, log_size: int = 4) -> None:
        """Start with zeroed memory; flags as in the harness."""
        self.flags, self.log_size, self.avail = flags, log_size, 0
        self.memory = bytearray(24000)

    def put(self, at: int, data: bytes) -> None:
        """Write guest memory."""
        self.memory[at : at + len(data)] = data

    def split_desc(self, table: int, i: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        """Write one split descriptor."""
        self.put(table + 16 * i, struct.pack("<QIHH", addr, length, flags, following))

    def packed_desc(self, table: int, i: int, addr: int, length: int, buffer_id: int, flags: int) -> None:
        """Write one packed descriptor."""
        self.put(table + 16 * i, struct.pack("<QIHH", addr, length, buffer_id, flags))

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        self.put(AVAIL + 4 + 2 * self.avail, struct.pack("<H", head))
        self.avail += 1

    def bytes(self) -> bytes:
        """Give the harness's input."""
        return bytes([self.flags, self.log_size]) + struct.pack("<H", self.avail) + bytes(self.memory).rstrip(b"\0")


def header(kind: int, sector: int) -> bytes:
    """Give a virtio-blk request header."""
    return struct.pack("<IIQ", kind, 0, sector)


def split_request(kind: int, data: bytes, *, writable: bool, flags: int = 0) -> bytes:
    """Give a split guest with one request of three descriptors."""
    guest = Guest(flags)
    guest.put(HEADER, header(kind, 1))
    guest.put(DATA, data)
    guest.split_desc(0, 0, HEADER, 16, NEXT, 1)
    guest.split_desc(0, 1, DATA, len(data), NEXT | (WRITE if writable else 0), 2)
    guest.split_desc(0, 2, STATUS, 1, WRITE)
    guest.offer(0)
    return guest.bytes()


def indirect_request(*, packed: bool) -> bytes:
    """Give a guest with one read through an indirect table."""
    guest = Guest(0b10 | packed | packed << 3)
    guest.put(HEADER, header(0, 2))
    if packed:
        guest.packed_desc(0, 0, TABLE, 48, 0, INDIRECT | PACKED_AVAIL)
        for i, (addr, length, flags) in enumerate(((HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE))):
            guest.packed_desc(TABLE, i, addr, length, 0, flags)
    else:
        guest.split_desc(0, 0, TABLE, 48, INDIRECT)
        guest.split_desc(TABLE, 0, HEADER, 16, NEXT, 1)
        guest.split_desc(TABLE, 1, DATA, 512, NEXT | WRITE, 2)
        guest.split_desc(TABLE, 2, STATUS, 1, WRITE)
        guest.offer(0)
    return guest.bytes()


def packed_pair() -> bytes:
    """Give a packed guest with a read and a flush, chained through the ring."""
    guest = Guest(0b1001)
    guest.put(HEADER, header(0, 0))
    guest.put(HEADER + 64, header(4, 0))
    guest.packed_desc(0, 0, HEADER, 16, 0, NEXT | PACKED_AVAIL)
    guest.packed_desc(0, 1, DATA, 1024, 0, NEXT | WRITE | PACKED_AVAIL)
    guest.packed_desc(0, 2, STATUS, 1, 3, WRITE | PACKED_AVAIL)
    guest.packed_desc(0, 3, HEADER + 64, 16, 0, NEXT | PACKED_AVAIL)
    guest.packed_desc(0, 4, STATUS + 1, 1, 5, WRITE | PACKED_AVAIL)
    return guest.bytes()


def crossing() -> bytes:
    """Give a split guest whose data crosses from one mapping into the next."""
    guest = Guest(0)
    guest.put(HEADER, header(1, 0))
    guest.split_desc(0, 0, HEADER, 16, NEXT, 1)
    guest.split_desc(0, 1, 32768 - 256, 512, NEXT, 2)
    guest.split_desc(0, 2, STATUS, 1, WRITE)
    guest.offer(0)
    return guest.bytes()


def net_header(flags: int = 0, gso_type: int = 0, gso_size: int = 0, csum: tuple[int, int] = (0, 0)) -> bytes:
    """Give a struct virtio_net_hdr_v1."""
    return struct.pack("<BBHHHHH", flags, gso_type, 54, gso_size, *csum, 0)


def ipv4_frame(protocol: int, transport: bytes, payload: int) -> bytes:
    """Give an Ethernet frame of IPv4."""
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(transport) + payload, 1, 0, 64, protocol, 0, b"\n\0\0\1", b"\n\0\0\2"
    )
    return bytes(12) + b"\x08\x00" + ip + transport + bytes(payload)


def ipv6_frame(protocol: int, transport: bytes, payload: int) -> bytes:
    """Give an Ethernet frame of IPv6."""
    ip = struct.pack(
        ">IHBB16s16s", 6 << 28, len(transport) + payload, protocol, 64, bytes(15) + b"\1", bytes(15) + b"\2"
    )
    return bytes(12) + b"\x86\xdd" + ip + transport + bytes(payload)


TCP = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x19, 512, 0, 0)
UDP = struct.pack(">HHHH", 1, 2, 8, 0)
TO_SEND = {
    "plain": (0, net_header(), bytes(60)),
    "csum": (1, net_header(NEEDS_CSUM, csum=(34, 16)), ipv4_frame(6, TCP, 99)),
    "csum_beyond": (1, net_header(NEEDS_CSUM, csum=(60000, 2)), ipv4_frame(6, TCP, 99)),
    "tso4": (2, net_header(NEEDS_CSUM, TCPV4, 500, (34, 16)), ipv4_frame(6, TCP, 2001)),
    "tso6": (2, net_header(NEEDS_CSUM, TCPV6, 500, (54, 16)), ipv6_frame(6, TCP, 2001)),
    "uso": (3, net_header(NEEDS_CSUM, UDP_L4, 700, (34, 6)), ipv4_frame(17, UDP, 2000)),
    "gso_size_0": (2, net_header(NEEDS_CSUM, TCPV4, 0, (34, 16)), ipv4_frame(6, TCP, 2001)),
}


def card(flags: int, sent: tuple[int, bytes, bytes], room: int, buffers: int = 8) -> bytes:
    """Give a guest that sends one frame, cut in two, and has so many buffers to receive into."""
    offloads, header, frame = sent
    log_size = next(byte for byte in range(64) if (byte | offloads << 6) % 7 == 4)
    guest = Guest(flags, log_size | offloads << 6)
    whole = header + frame
    guest.put(HEADER, whole)
    rooms = [(DATA + i * room, room, WRITE) for i in range(buffers)]
    if flags & 1:
        guest.packed_desc(0, 0, HEADER, 40, 0, NEXT | PACKED_AVAIL)
        guest.packed_desc(0, 1, HEADER + 40, len(whole) - 40, 0, PACKED_AVAIL)
        for i, (at, length, write) in enumerate(rooms):
            guest.packed_desc(RECEIVEQ, i, at, length, i, write | PACKED_AVAIL)
    else:
        guest.split_desc(0, 0, HEADER, 40, NEXT, 1)
        guest.split_desc(0, 1, HEADER + 40, len(whole) - 40, 0)
        guest.offer(0)
        for i, (at, length, write) in enumerate(rooms):
            guest.split_desc(RECEIVEQ, i, at, length, write)
        guest.put(RECEIVEQ + AVAIL, struct.pack(f"<HH{buffers}H", 0, buffers, *range(buffers)))
    for i, length in enumerate((60, 1514, 9, 4000, 65550, 65552)):
        guest.put(TAPE + i * 31, net_header() + struct.pack("<I", length)[:3] + bytes(range(16)))
    return guest.bytes()


RECEIVING = {
    "null": (NULL_PORT, 1526),
    "null_merged": (NULL_PORT | MRG_RXBUF, 300),
    "null_too_long": (NULL_PORT, 1000),
    "wire": (WIRE, 1526),
    "wire_merged": (WIRE | MRG_RXBUF, 1526),
    "wire_one_by_one": (WIRE_ONE_BY_ONE | MRG_RXBUF, 700),
}
RINGS = {"split": 0, "packed": 0b1001}
CARDS = {
    f"{name}_{ring}": card(flags | port, frame, room)
    for ring, flags in RINGS.items()
    for name, (port, frame, room) in {
        **{name: (ECHO, frame, 1000) for name, frame in TO_SEND.items()},
        **{name: (port, TO_SEND["plain"], room) for name, (port, room) in RECEIVING.items()},
    }.items()
}
SEEDS = {
    "read": split_request(0, bytes(512), writable=True),
    "write": split_request(1, bytes(range(256)) * 4, writable=False),
    "write_read_only": split_request(1, bytes(512), writable=False, flags=32),
    "flush": split_request(4, bytes(1), writable=True),
    "get_id": split_request(8, bytes(20), writable=True, flags=4),
    "get_lifetime": split_request(10, bytes(8), writable=True),
    "discard": split_request(11, struct.pack("<QII", 0, 8, 0) * 2, writable=False),
    "write_zeroes": split_request(13, struct.pack("<QII", 8, 8, 1), writable=False),
    "unknown": split_request(99, bytes(8), writable=False),
    "indirect": indirect_request(packed=False),
    "packed_indirect": indirect_request(packed=True),
    "packed_pair": packed_pair(),
    "crossing": crossing(),
}


def main() -> None:
    """Write every harness's seeds."""
    for harness, seeds in (("chains", SEEDS), ("blk", SEEDS), ("net", CARDS)):
        folder = CORPUS / harness
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
