# SPDX-License-Identifier: Apache-2.0
"""TCP segments and UDP datagrams as raw IP packets, in the name of a peer.

Source: RFC 768, RFC 791, RFC 3828, RFC 8200, RFC 9293 (headers), RFC 1071 (checksum).
"""

import struct

from torpor.engine.kernel.abi import IPPROTO
from torpor.engine.sockets.address import Address

FIN, ACK = 0x01, 0x10
HOPS = 64
HEADER_WORDS = 5


def segment(
    source: Address, target: Address, *, sequence: int, acked: int, flags: int, window: int
) -> bytes:
    """A packet without data; IPv4 for addresses that are mapped into IPv6."""
    tcp = struct.pack(
        ">HHIIBBHHH", source.port, target.port, sequence, acked, HEADER_WORDS << 4, flags, window,
        0, 0,
    )  # fmt: skip
    tcp = tcp[:16] + _summed(source, target, IPPROTO.TCP, tcp) + tcp[18:]
    return _packet(source, target, IPPROTO.TCP, tcp)


def datagram(source: Address, target: Address, data: bytes, protocol: int = IPPROTO.UDP) -> bytes:
    """One of UDP, or of UDP-Lite with a checksum that covers all of it."""
    size = 8 + len(data)
    length = size if protocol == IPPROTO.UDP else 0
    udp = struct.pack(">HHHH", source.port, target.port, length, 0) + data
    summed = _summed(source, target, protocol, udp)
    udp = udp[:6] + (summed if any(summed) else b"\xff\xff") + udp[8:]
    return _packet(source, target, protocol, udp)


def _summed(source: Address, target: Address, protocol: int, payload: bytes) -> bytes:
    """The checksum over the pseudo header and all of the payload."""
    pseudo = source.ip + target.ip + struct.pack(">II", len(payload), protocol)
    return struct.pack(">H", checksum(pseudo + payload + bytes(len(payload) % 2)))


def _packet(source: Address, target: Address, protocol: int, payload: bytes) -> bytes:
    if len(source.ip) == 4:
        header = struct.pack(
            ">BBHHHBBH", 0x40 | HEADER_WORDS, 0, 20 + len(payload), 0, 0, HOPS, protocol, 0
        )
        header += source.ip + target.ip
        header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    else:
        header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, HOPS)
        header += source.ip + target.ip
    return header + payload


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
