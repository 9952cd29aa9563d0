# SPDX-License-Identifier: Apache-2.0
"""Internet addresses: struct sockaddr_in and sockaddr_in6, and CRIU's words."""

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torpor.engine.kernel.abi import AF
from torpor.engine.program.ops import Data

MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Address:
    """A family, the raw address of 4 or 16 bytes, and a port."""

    family: int
    raw: bytes
    port: int = 0
    scope: int = 0

    @property
    def ip(self) -> bytes:
        """The address that counts: that of IPv4 when it is one mapped into IPv6."""
        return self.raw[12:] if self.raw[:12] == MAPPED else self.raw

    @property
    def key(self) -> tuple[bytes, int]:
        """Equal for both families when it is the same place."""
        return self.ip, self.port

    @property
    def wildcard(self) -> bool:
        """All addresses."""
        return not any(self.ip)

    @property
    def loopback(self) -> bool:
        """127.0.0.0/8 or ::1."""
        return self.ip[:1] == b"\x7f" if len(self.ip) == 4 else self.ip == bytes(15) + b"\1"

    @property
    def is_multicast(self) -> bool:
        """224.0.0.0/4, broadcast, or ff00::/8."""
        return self.ip[0] >= 224 if len(self.ip) == 4 else self.ip[0] == 0xFF

    @property
    def text(self) -> str:
        """As `ipaddress` writes it, without the port."""
        return str(ipaddress.ip_address(self.ip))

    def __str__(self) -> str:
        return f"[{self.text}]:{self.port}" if len(self.ip) == 16 else f"{self.text}:{self.port}"

    def with_ip(self, ip: bytes) -> "Address":
        """Another address of the same family; IPv4 becomes mapped in IPv6."""
        if self.family == AF.INET6 and len(ip) == 4:
            ip = MAPPED + ip
        return replace(self, raw=ip, scope=0)

    def in_family(self, family: int) -> "Address":
        """The same place for a socket of another family."""
        if family == self.family:
            return self
        raw = self.ip if family == AF.INET else MAPPED + self.raw
        return Address(family, raw, self.port)

    def moved(self, addresses: "dict[str, str]") -> "Address":
        """After a map of old to new addresses."""
        new = addresses.get(self.text)
        return self if new is None else self.with_ip(ipaddress.ip_address(new).packed)

    def data(self) -> Data:
        """The sockaddr."""
        port = struct.pack(">H", self.port)
        if self.family == AF.INET:
            raw = struct.pack("<H", AF.INET) + port + self.raw + bytes(8)
        else:
            raw = struct.pack("<H", AF.INET6) + port + bytes(4) + self.raw
            raw += struct.pack("<I", self.scope)
        return Data(raw, 4, (), str(self))


def any_address(family: int, port: int = 0) -> Address:
    """The wildcard of a family."""
    return Address(family, bytes(4 if family == AF.INET else 16), port)


def loopback(family: int, *, mapped: bool = False, port: int = 0) -> Address:
    """127.0.0.1 or ::1; ``mapped``: 127.0.0.1 for a socket of IPv6."""
    if family == AF.INET:
        return Address(family, b"\x7f\0\0\1", port)
    return Address(family, MAPPED + b"\x7f\0\0\1" if mapped else bytes(15) + b"\1", port)


def parse(sockaddr: bytes) -> Address:
    """From a raw sockaddr."""
    family = int.from_bytes(sockaddr[:2], "little")
    port = int.from_bytes(sockaddr[2:4], "big")
    if family == AF.INET6:
        scope = int.from_bytes(sockaddr[24:28], "little")
        return Address(family, sockaddr[8:24].ljust(16, b"\0"), port, scope)
    return Address(AF.INET, sockaddr[4:8].ljust(4, b"\0"), port)


def words(address: Address) -> list[int]:
    """CRIU's src_addr and dst_addr: the bytes read as the machine's words."""
    return list(struct.unpack(f"<{len(address.raw) // 4}I", address.raw))


def from_words(family: int, numbers: Sequence[int], port: int, scope: int = 0) -> Address:
    """Back."""
    size = 4 if family == AF.INET else 16
    raw = struct.pack(f"<{len(numbers)}I", *numbers)[:size].ljust(size, b"\0")
    return Address(family, raw, port, scope)
