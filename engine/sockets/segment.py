# SPDX-License-Identifier: Apache-2.0
"""A TCP segment as a raw IP packet, in the name of a peer.

Source: RFC 791, RFC 8200, RFC 9293 (headers), RFC 1071 (checksum).
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
    pseudo = source.ip + target.ip + struct.pack(">II", len(tcp), IPPROTO.TCP)
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
    if len(source.ip) == 4:
        header = struct.pack(
            ">BBHHHBBH", 0x40 | HEADER_WORDS, 0, 20 + len(tcp), 0, 0, HOPS, IPPROTO.TCP, 0
        )
        header += source.ip + target.ip
        header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    else:
        header = struct.pack(">IHBB", 6 << 28, len(tcp), IPPROTO.TCP, HOPS) + source.ip + target.ip
    return header + tcp


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
