# SPDX-License-Identifier: Apache-2.0
"""Network interfaces by netlink: what is asked (rtnetlink, ethtool), and what makes one so again.

Requests and messages are bytes, as in `netlink.py`. Numbers of interfaces differ from machine to
machine: a message that has one inside is in pieces, with a `Place` where the number belongs.

Facts (probed on v6.18):
- An address and a route can be sent back as they were dumped (ip-address(8), `save`): without the
  times of their making, and with the marks of the dump (RTNH_F_DEAD, RTM_F_CLONED) taken off.
- IPv4 settings of an interface (net.ipv4.conf.NAME) are told as a list of numbers in the order of
  their ids (1, 2, ...), and set back by attributes of these types: no write to /proc/sys is needed.
- Of the settings of IPv6, only the way to make link-local addresses (addr_gen_mode) can be set so.

Source: rtnetlink(7); include/uapi/linux/{if_link,if_addr,rtnetlink,ethtool_netlink}.h (v6.18).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from torpor.engine.kernel.netlink import attributes, messages, request

NETLINK_ROUTE, NETLINK_GENERIC = 0, 16
NEWLINK, GETLINK, NEWADDR, GETADDR, NEWROUTE, GETROUTE = 16, 18, 20, 22, 24, 26
ASK, CHANGE = 1, 5
"""NLM_F_REQUEST; with NLM_F_ACK."""
MAKE_OR_REPLACE = CHANGE | 0x500
NESTED = 0x8000
AF_INET, AF_INET6 = 2, 10
UP, NOARP, MULTICAST = 0x1, 0x80, 0x1000
NLMSG_HEADER_BYTES = 16

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_GENERIC = struct.Struct("=BBH")


class Link:
    """IFLA_*."""

    ADDRESS = 1
    NAME = 3
    MTU = 4
    MASTER = 10
    QUEUE_LENGTH = 13
    INFO = 18
    ALIAS = 20
    FAMILIES = 26
    GROUP = 27
    CARRIER = 33


INFO_DATA, INET_CONF, INET6_GEN_MODE, GEN_MODE_NONE = 2, 1, 8, 1
TUN_OWNER, TUN_GROUP, TUN_PI = 1, 2, 4
ADDRESS_CACHEINFO, ADDRESS_FLAGS, NO_DETECTION, TENTATIVE = 6, 8, 0x02, 0x40 | 0x08
ROUTE_OIF, ROUTE_GATEWAY, ROUTE_MULTIPATH, ROUTE_CACHEINFO, ROUTE_VIA, ROUTE_NEXTHOP = (
    4, 5, 9, 12, 18, 30,
)  # fmt: skip
TABLE_LOCAL, BY_KERNEL, CLONED, LASTING = 255, 2, 0x200, 0x02 | 0x04
CONTROL, GET_FAMILY, FAMILY_ID, FAMILY_NAME = 0x10, 3, 1, 2
GET_FEATURES, ACTIVE, DEVICE_NAME, BITS, BIT_NAME = 11, 4, 2, 3, 2


class Place(Enum):
    """Where a message has the number of an interface."""

    INTERFACE = "interface"
    MASTER = "master"


Pieces = tuple[bytes | Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What is told of an interface. ``info`` are attributes of its kind (IFLA_INFO_DATA).

    ``conf`` are the settings of IPv4 by id less 1; ``gen_mode`` is None without IPv6.
    """

    name: str
    index: int
    flags: int
    mtu: int
    hardware: int
    queue_length: int
    address: bytes = b""
    alias: bytes = b""
    group: int = 0
    master: int = 0
    carrier: bool = True
    conf: tuple[int, ...] = ()
    gen_mode: int | None = None
    info: Mapping[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    head = struct.pack("=HH", 4 + len(value), kind)
    return head + value + bytes(-len(value) % 4)


def link_request(name: str) -> bytes:
    """For one interface by its name."""
    text = attribute(Link.NAME, name.encode("utf-8", "surrogateescape") + b"\0")
    return request(GETLINK, _LINK.pack(0, 0, 0, 0, 0) + text, ASK)


def link_by_number_request(index: int) -> bytes:
    """For one interface by its number."""
    return request(GETLINK, _LINK.pack(0, 0, index, 0, 0), ASK)


def addresses_request() -> bytes:
    """For all addresses."""
    return request(GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0))


def routes_request() -> bytes:
    """For all routes of all tables."""
    return request(GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))


def interface(answer: bytes) -> Interface:
    """Of the answer to a request for one. Raises KernelError."""
    ((_, payload),) = messages(answer)
    _, hardware, index, flags, _ = _LINK.unpack_from(payload)
    parts = attributes(payload[_LINK.size :])
    families = attributes(parts.get(Link.FAMILIES, b""))
    conf = attributes(families.get(AF_INET, b"")).get(INET_CONF, b"")
    mode = attributes(families.get(AF_INET6, b"")).get(INET6_GEN_MODE)
    return Interface(
        name=parts[Link.NAME].rstrip(b"\0").decode("utf-8", "surrogateescape"), index=index,
        flags=flags, mtu=_number(parts, Link.MTU), hardware=hardware,
        queue_length=_number(parts, Link.QUEUE_LENGTH), address=parts.get(Link.ADDRESS, b""),
        alias=parts.get(Link.ALIAS, b"").rstrip(b"\0"), group=_number(parts, Link.GROUP),
        master=_number(parts, Link.MASTER), carrier=parts.get(Link.CARRIER, b"\1") != b"\0",
        conf=struct.unpack(f"={len(conf) // 4}I", conf[: len(conf) & ~3]),
        gen_mode=mode[0] if mode else None,
        info=attributes(attributes(parts.get(Link.INFO, b"")).get(INFO_DATA, b"")),
    )  # fmt: skip


def info_number(found: Interface, kind: int) -> int | None:
    """A number of its kind, None when it is not told."""
    raw = found.info.get(kind)
    return None if raw is None else int.from_bytes(raw, "little")


def addresses(answer: bytes, of: Interface) -> list[tuple[bytes, bytes]]:
    """Of one interface, as `address_message` takes them: (head, attributes)."""
    found = []
    for _, payload in messages(answer):
        family, prefix, flags, scope, owner = _ADDRESS.unpack_from(payload)
        if owner == of.index:
            parts = dict(attributes(payload[_ADDRESS.size :]))
            state = int.from_bytes(parts.get(ADDRESS_FLAGS, bytes([flags])), "little")
            state &= ~TENTATIVE
            if family == AF_INET6 and not of.flags & NOARP:
                state |= NO_DETECTION
            parts[ADDRESS_FLAGS] = struct.pack("=I", state)
            parts[ADDRESS_CACHEINFO] = parts.get(ADDRESS_CACHEINFO, b"")[:8] + bytes(8)
            found.append((bytes([family, prefix, state & 0xFF, scope]), _joined(parts)))
    return found


def routes(answer: bytes, index: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Of one interface: (head, attributes) of each, and how many are not told in a usable way.

    Those that come with an address are left out; those with a gateway come last: it has to be
    within reach when they are made.
    """
    found: list[tuple[bool, bytes, bytes]] = []
    lost = 0
    for _, payload in messages(answer):
        *_, table, protocol, _, _, flags = _ROUTE.unpack_from(payload)
        parts = dict(attributes(payload[_ROUTE.size :]))
        is_shared = ROUTE_MULTIPATH in parts and _has_hop(parts[ROUTE_MULTIPATH], index)
        if _number(parts, ROUTE_OIF) != index and not is_shared:
            continue
        if table == TABLE_LOCAL or protocol == BY_KERNEL or flags & CLONED:
            continue
        if is_shared or ROUTE_NEXTHOP in parts:
            lost += 1
            continue
        parts.pop(ROUTE_CACHEINFO, None)
        parts.pop(ROUTE_OIF)
        head = payload[: _ROUTE.size - 4] + struct.pack("=I", flags & LASTING)
        found.append((ROUTE_GATEWAY in parts or ROUTE_VIA in parts, head, _joined(parts)))
    found.sort(key=lambda one: one[0])
    return [(head, rest) for _, head, rest in found], lost


def address_message(head: bytes, rest: bytes) -> Pieces:
    """Adds an address, or brings one that is there to this state."""
    size = NLMSG_HEADER_BYTES + _ADDRESS.size + len(rest)
    return _header(NEWADDR, size, MAKE_OR_REPLACE) + head[:4], Place.INTERFACE, rest


def route_message(head: bytes, rest: bytes) -> Pieces:
    """Adds a route, or replaces that to the same place."""
    size = NLMSG_HEADER_BYTES + len(head) + len(rest) + 8
    oif = struct.pack("=HH", 8, ROUTE_OIF)
    return _header(NEWROUTE, size, MAKE_OR_REPLACE) + head + rest + oif, Place.INTERFACE


def settings_message(wanted: Interface) -> Pieces:
    """All but whether it is up."""
    conf = b"".join(
        attribute(number, struct.pack("=I", value)) for number, value in enumerate(wanted.conf, 1)
    )
    parts = [
        attribute(Link.MTU, struct.pack("=I", wanted.mtu)),
        attribute(Link.QUEUE_LENGTH, struct.pack("=I", wanted.queue_length)),
        attribute(Link.GROUP, struct.pack("=I", wanted.group)),
    ]
    if wanted.address:
        parts.append(attribute(Link.ADDRESS, wanted.address))
    if wanted.alias:
        parts.append(attribute(Link.ALIAS, wanted.alias))
    if conf:
        family = attribute(NESTED | AF_INET, attribute(NESTED | INET_CONF, conf))
        parts.append(attribute(NESTED | Link.FAMILIES, family))
    return _link_message(0, 0, b"".join(parts))


def gen_mode_message(mode: int) -> Pieces:
    """How link-local addresses are made; GEN_MODE_NONE while it is set up."""
    family = attribute(NESTED | AF_INET6, attribute(INET6_GEN_MODE, bytes([mode])))
    return _link_message(0, 0, attribute(NESTED | Link.FAMILIES, family))


def flags_message(flags: int, changed: int) -> Pieces:
    """Whether it is up, and the like."""
    return _link_message(flags, changed, b"")


def master_message() -> Pieces:
    """Puts it into a bridge, or the like."""
    size = NLMSG_HEADER_BYTES + _LINK.size + 8
    head, *rest = _link_message(0, 0, struct.pack("=HH", 8, Link.MASTER), size)
    return head, *rest, Place.MASTER


def family_request(name: str) -> bytes:
    """For the number of a family of generic netlink."""
    text = attribute(FAMILY_NAME, name.encode() + b"\0")
    return request(CONTROL, _GENERIC.pack(GET_FAMILY, 1, 0) + text, ASK)


def family_number(answer: bytes) -> int:
    """Of the answer. Raises KernelError."""
    ((_, payload),) = messages(answer)
    return int.from_bytes(attributes(payload[_GENERIC.size :])[FAMILY_ID], "little")


def features_request(family: int, name: str) -> bytes:
    """For the offloads of an interface (ethtool -k)."""
    head = attribute(DEVICE_NAME, name.encode("utf-8", "surrogateescape") + b"\0")
    return request(family, _GENERIC.pack(GET_FEATURES, 1, 0) + attribute(NESTED | 1, head), ASK)


def features(answer: bytes) -> set[str]:
    """Names of the active ones."""
    ((_, payload),) = messages(answer)
    active = attributes(payload[_GENERIC.size :]).get(ACTIVE, b"")
    bits = _each(attributes(active).get(BITS, b""))
    return {attributes(bit)[BIT_NAME].rstrip(b"\0").decode() for bit in bits}


def _link_message(flags: int, changed: int, rest: bytes, size: int = 0) -> Pieces:
    size = size or NLMSG_HEADER_BYTES + _LINK.size + len(rest)
    whole = _LINK.pack(0, 0, 0, flags, changed)
    return _header(NEWLINK, size, CHANGE) + whole[:4], Place.INTERFACE, whole[8:] + rest


def _header(kind: int, size: int, flags: int) -> bytes:
    return struct.pack("=IHHII", size, kind, flags, 1, 0)


def _joined(parts: Mapping[int, bytes]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in parts.items())


def _number(parts: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(parts.get(kind, b""), "little")


def _has_hop(raw: bytes, index: int) -> bool:
    return any(number == index for number in _hops(raw))


def _hops(raw: bytes) -> Iterator[int]:
    """Interfaces of struct rtnexthop: length, flags, hops, number."""
    at = 0
    while at + 8 <= len(raw):
        size, _, _, number = struct.unpack_from("=HBBi", raw, at)
        yield number
        at += max(size + 3 & ~3, 8)


def _each(raw: bytes) -> Sequence[bytes]:
    """Attributes that are all of one type."""
    found, at = [], 0
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("=H", raw, at)
        found.append(raw[at + 4 : at + max(size, 4)])
        at += max(size + 3 & ~3, 4)
    return found
