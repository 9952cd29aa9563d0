# SPDX-License-Identifier: Apache-2.0
"""Multicast memberships of an Internet socket.

Facts (probed on v6.18):
- /proc/net/igmp and igmp6 list the groups of each interface, but not whose they are.
- MCAST_MSFILTER tells of one socket, interface and group the filter, EADDRNOTAVAIL when it is no
  member. A membership of any source is a filter that excludes none.
- Interfaces are named by index: they must be there again with the same number.

Source: ip(7), RFC 3678; net/ipv4/igmp.c, net/ipv6/mcast.c. Not in CRIU's images.
"""

import ipaddress
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.kernel.abi import AF, IPPROTO
from torpor.engine.kind import DumpContext, FdView
from torpor.engine.program.ops import Arg, Data, Op

JOIN_GROUP, BLOCK_SOURCE, JOIN_SOURCE_GROUP = 42, 43, 46
STORAGE = 128
TABLES = {IPPROTO.IP: "igmp", IPPROTO.IPV6: "igmp6"}
REMEDY = "make the network interface again, with the same number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Of a group on an interface, of all sources but these or of these only."""

    level: int
    interface: int
    group: bytes
    excludes: bool = True
    sources: tuple[bytes, ...] = ()


def read(view: FdView, family: int, context: DumpContext) -> tuple[Membership, ...]:
    """All of a socket. One for IPv6 may have some of IPv4 as well."""
    levels = [IPPROTO.IP, *([IPPROTO.IPV6] if family == AF.INET6 else [])]
    found = []
    for level in levels:
        for interface, group in _groups(view, level, context):
            known = view.source_filter(level, interface, group)
            if known is not None:
                excludes, sources = known
                found.append(
                    Membership(
                        level=int(level), interface=interface, group=group,
                        excludes=excludes, sources=sources,
                    )
                )  # fmt: skip
    return tuple(found)


def ops(memberships: Iterable[Membership], fd: Arg, where: str) -> Iterator[Op]:
    """Join them again."""
    for one in memberships:
        head = struct.pack("<I4x", one.interface) + storage(one.group)
        text = f"{_text(one.group)} on interface {one.interface}"
        if one.excludes:
            yield _set(fd, one.level, JOIN_GROUP, head, where, f"joins {text}")
        option = BLOCK_SOURCE if one.excludes else JOIN_SOURCE_GROUP
        for source in one.sources:
            note = f"{'blocks' if one.excludes else 'wants'} {_text(source)} in {text}"
            yield _set(fd, one.level, option, head + storage(source), where, note)


def storage(address: bytes) -> bytes:
    """Struct sockaddr_storage of an address without a port."""
    if len(address) == 4:
        return (struct.pack("<HH", AF.INET, 0) + address).ljust(STORAGE, b"\0")
    return (struct.pack("<HHI", AF.INET6, 0, 0) + address).ljust(STORAGE, b"\0")


def encode(memberships: Iterable[Membership]) -> list[list[Any]]:
    """JSON-able."""
    return [
        [m.level, m.interface, m.group.hex(), m.excludes, [s.hex() for s in m.sources]]
        for m in memberships
    ]


def decode(found: Iterable[Sequence[Any]]) -> tuple[Membership, ...]:
    """Back."""
    return tuple(
        Membership(
            level=int(level), interface=int(interface), group=bytes.fromhex(group),
            excludes=bool(excludes), sources=tuple(bytes.fromhex(s) for s in sources),
        )
        for level, interface, group, excludes, sources in found
    )  # fmt: skip


def _groups(view: FdView, level: IPPROTO, context: DumpContext) -> list[tuple[int, bytes]]:
    """Interface and address of all groups of the network namespace."""
    name = TABLES[level]
    known: dict[str, list[tuple[int, bytes]]] = context.cache.setdefault("multicast", {})
    key = f"{name} {view.namespaces().get('net', '')}"
    if key not in known:
        parse = parse_igmp if level == IPPROTO.IP else parse_igmp6
        known[key] = list(parse(view.net_table(name)))
    return known[key]


def parse_igmp(text: str) -> Iterator[tuple[int, bytes]]:
    """Lines of devices (`1 lo : ...`), and below each those of its groups, indented."""
    index = 0
    for line in text.splitlines()[1:]:
        words = line.split()
        if words and not line[:1].isspace():
            index = int(words[0])
        elif words:
            yield index, int(words[0], 16).to_bytes(4, "little")


def parse_igmp6(text: str) -> Iterator[tuple[int, bytes]]:
    """`1 lo ff02... users flags timer`."""
    for words in map(str.split, text.splitlines()):
        if len(words) > 2:
            yield int(words[0]), bytes.fromhex(words[2])


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _set(fd: Arg, level: int, option: int, raw: bytes, where: str, note: str) -> Op:
    data = Data(raw, 8, (), f"<{len(raw)} bytes>")
    return Op(
        call="setsockopt", args=(fd, level, option, data, len(raw)), subject=where, note=note,
        remedy=REMEDY,
    )  # fmt: skip
