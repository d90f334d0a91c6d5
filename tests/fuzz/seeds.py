"""Writes the seed corpus of the two C harnesses: well-formed guests, from which the fuzzer breaks things.

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


class Guest:
    """A guest's memory in the layout of fuzz_guest.h."""

    def __init__(self, flags: int, log_size: int = 4) -> None:
        """Start with zeroed memory; flags as in the harness."""
        self.flags, self.log_size, self.avail = flags, log_size, 0
        self.memory = bytearray(20480)

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


SEEDS = {
    "read": split_request(0, bytes(512), writable=True),
    "write": split_request(1, bytes(range(256)) * 4, writable=False),
    "write_read_only": split_request(1, bytes(512), writable=False, flags=32),
    "flush": split_request(4, bytes(1), writable=True),
    "get_id": split_request(8, bytes(20), writable=True, flags=4),
    "discard": split_request(11, struct.pack("<QII", 0, 8, 0) * 2, writable=False),
    "write_zeroes": split_request(13, struct.pack("<QII", 8, 8, 1), writable=False),
    "unknown": split_request(99, bytes(8), writable=False),
    "indirect": indirect_request(packed=False),
    "packed_indirect": indirect_request(packed=True),
    "packed_pair": packed_pair(),
    "crossing": crossing(),
}


def main() -> None:
    """Write every seed for both harnesses."""
    for harness in ("chains", "blk"):
        folder = CORPUS / harness
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in SEEDS.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
