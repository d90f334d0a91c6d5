"""Ethernet frames as a guest's stack writes them, and checks them when they arrive: ARP, IPv6 neighbours, UDP."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

type_ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_UDP, _ICMPV6 = 17, 58
_SOLICITATION, _ADVERTISEMENT = 135, 136


def checksum(data: bytes) -> int:
    """Return the internet checksum of RFC 1071; 0 for data that holds its own, right one."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Host:
    """One end of a conversation."""

    mac: bytes
    ip: type_ip


def ethernet(src: Host, dst: bytes, kind: int, payload: bytes) -> bytes:
    """Put a header before a payload."""
    return dst + src.mac + struct.pack(">H", kind) + payload


def pseudo_header(src: type_ip, dst: type_ip, protocol: int, length: int) -> bytes:
    """Return what checksums of UDP and ICMPv6 begin with."""
    if src.version == 4:
        return src.packed + dst.packed + struct.pack(">BBH", 0, protocol, length)
    return src.packed + dst.packed + struct.pack(">IHBB", length, 0, 0, protocol)


def over_ip(src: Host, dst: Host, protocol: int, payload: bytes) -> bytes:
    """Put Ethernet and IP before a payload."""
    addresses = src.ip.packed + dst.ip.packed
    if src.ip.version == 6:
        header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + addresses
        return ethernet(src, dst.mac, _IPV6, header + payload)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return ethernet(src, dst.mac, _IPV4, header + payload)


def udp(src: Host, dst: Host, ports: tuple[int, int], data: bytes, *, partial: bool = False) -> bytes:
    """Write a datagram; `partial`: with the pseudo-header's sum alone, for a checksum that is completed later."""
    length = 8 + len(data)
    pseudo = pseudo_header(src.ip, dst.ip, _UDP, length)
    header = struct.pack(">HHHH", *ports, length, 0)
    value = ~checksum(pseudo) & 0xFFFF if partial else checksum(pseudo + header + data) or 0xFFFF
    return over_ip(src, dst, _UDP, header[:6] + struct.pack(">H", value) + data)


def who_has(src: Host, wanted: type_ip) -> bytes:
    """Ask for the MAC address of a neighbour: by ARP, or by a neighbour solicitation (RFC 4861)."""
    if wanted.version == 4:
        body = struct.pack(">HHBBH", 1, _IPV4, 6, 4, 1) + src.mac + src.ip.packed + bytes(6) + wanted.packed
        return ethernet(src, b"\xff" * 6, _ARP, body)
    group = ipaddress.IPv6Address(ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + wanted.packed[13:])
    body = struct.pack(">BBHI", _SOLICITATION, 0, 0, 0) + wanted.packed + b"\x01\x01" + src.mac
    pseudo = pseudo_header(src.ip, group, _ICMPV6, len(body))
    body = body[:2] + struct.pack(">H", checksum(pseudo + body)) + body[4:]
    return over_ip(src, Host(b"\x33\x33" + group.packed[12:], group), _ICMPV6, body)


def is_answer(frame: bytes, src: Host, dst: Host) -> bool:
    """Whether it is src's answer to dst's who_has()."""
    kind = int.from_bytes(frame[12:14], "big")
    if frame[:6] != dst.mac or frame[6:12] != src.mac:
        return False
    if src.ip.version == 4:
        return kind == _ARP and frame[20:32] == b"\x00\x02" + src.mac + src.ip.packed
    return kind == _IPV6 and frame[20] == _ICMPV6 and frame[54] == _ADVERTISEMENT and frame[62:78] == src.ip.packed


def udp_data(frame: bytes, src: Host, dst: Host) -> bytes | None:
    """Return a datagram's data, if it is one between these two; its checksum must be right."""
    version = src.ip.version
    kind, protocol_at, at = (_IPV4, 23, 34) if version == 4 else (_IPV6, 20, 54)
    if int.from_bytes(frame[12:14], "big") != kind or frame[protocol_at] != _UDP:
        return None
    length = int.from_bytes(frame[at + 4 : at + 6], "big")
    datagram = frame[at : at + length]
    assert checksum(pseudo_header(src.ip, dst.ip, _UDP, length) + datagram) == 0
    return datagram[8:]
