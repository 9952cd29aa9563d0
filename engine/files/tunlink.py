# SPDX-License-Identifier: Apache-2.0
"""Interfaces of tun and tap: what they are, in images, and how they become so again (`tun.py`).

Facts (probed on v6.18):
- TUNGETIFF tells the flags, but IFF_NO_PI is the same bit as IFF_NOFILTER, which is nearly always
  set: whether packets have the four bytes of IFF_NO_PI is told by rtnetlink (IFLA_TUN_PI).
- Offloads (TUNSETOFFLOAD) are told by ethtool only. Size of header, send buffer and byte order are
  of the interface, though each queue can ask for them.
- TUNGETFILTER (tap) gives the length of a filter, and an address of the task that has set it.
- An address of IPv6 is not looked for on the net (IFA_F_NODAD) when it comes back: it is in use
  at once. That the kernel had chosen it (IFA_F_STABLE_PRIVACY) cannot be set.
- Not readable: BPF programs that steer or filter (TUNSETSTEERINGEBPF, TUNSETFILTEREBPF), and the
  filter of addresses (TUNSETTXFILTER).
- CRIU has net_device_entry; what that cannot say (addresses, routes, offloads) is in torpor.json.

Source: drivers/net/tun.c (v6.18).
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torpor.engine.errors import KernelError
from torpor.engine.files.common import O, bad_image, path_bytes
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import rtnetlink
from torpor.engine.kernel.netlink import AF_NETLINK
from torpor.engine.kernel.rtnetlink import MULTICAST, NOARP, UP, Interface, Pieces, Place
from torpor.engine.kind import DumpContext, FdView, ImageSink, ImageSource, Limit, refuse
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

NETWORK = 2
"""Number of the tree's network namespace in the images."""


class Tun:
    """Requests of ioctl(2), and flags (IFF_*)."""

    SETIFF = 0x400454CA
    SETPERSIST = 0x400454CB
    SETOWNER = 0x400454CC
    SETLINK = 0x400454CD
    SETGROUP = 0x400454CE
    SETOFFLOAD = 0x400454D0
    GETIFF = 0x800454D2
    GETSNDBUF = 0x800454D3
    SETSNDBUF = 0x400454D4
    GETVNETHDRSZ = 0x800454D7
    SETVNETHDRSZ = 0x400454D8
    SETQUEUE = 0x400454D9
    SETIFINDEX = 0x400454DA
    GETFILTER = 0x801054DB
    SETVNETLE = 0x400454DC
    GETVNETLE = 0x800454DD
    SETCARRIER = 0x400454E2

    TAP = 0x2
    NAPI = 0x10
    NAPI_FRAGS = 0x20
    MULTI_QUEUE = 0x100
    DETACH_QUEUE = 0x400
    PERSIST = 0x800
    NO_PI = 0x1000
    VNET_HDR = 0x4000


NAMES = {
    value: f"TUN{name}" for name, value in vars(Tun).items() if name.startswith(("GET", "SET"))
}
OF_A_QUEUE = Tun.NO_PI | Tun.DETACH_QUEUE
"""What TUNGETIFF tells of one queue only."""
SIOCGIFINDEX = 0x8933
ETHER, NO_HARDWARE = 1, 65534
NO_LIMIT = 0x7FFFFFFF
NOT_SET = 0xFFFFFFFF
QUEUE_LENGTH = 500
OFFLOADS = {
    "tx-checksum-ip-generic": 0x1, "tx-tcp-segmentation": 0x2, "tx-tcp6-segmentation": 0x4,
    "tx-tcp-ecn-segmentation": 0x8, "tx-udp-segmentation": 0x60,
}  # fmt: skip
REQUEST = struct.Struct("<16sH22x")
ACK_BYTES, ACK_ERROR_AT = 256, 16
INDEX_AT = 16
ADDRESS_BYTES, ROUTE_BYTES, MOST = 4, 12, 4096
NAME = re.compile(rb"[^/\0%\s]{1,15}")

FILTER = Limit(
    case="tun-filter",
    what="a tap interface with a filter (TUNATTACHFILTER), which cannot be read back",
    remedy="detach it before the checkpoint (TUNDETACHFILTER)",
)
ELSEWHERE = Limit(
    case="tun-elsewhere",
    what="a tun or tap interface that is in another network namespace than the task",
    remedy="close it before the checkpoint, or leave it where the task is",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An interface: what rtnetlink tells of it, and what only its own calls tell.

    ``flags`` are those of TUNGETIFF, with NO_PI set right. ``addresses`` and ``routes`` are
    (head, attributes) of rtnetlink. ``owner`` and ``group`` are NOT_SET for anybody.
    """

    link: Interface
    flags: int
    owner: int = NOT_SET
    group: int = NOT_SET
    header_bytes: int = 0
    send_buffer: int = NO_LIMIT
    little_endian: bool = False
    offloads: int = 0
    master: str = ""
    addresses: tuple[tuple[bytes, bytes], ...] = ()
    routes: tuple[tuple[bytes, bytes], ...] = ()


def read(view: FdView, name: str, flags: int, context: DumpContext) -> Network:
    """What it is now. Raises Refused."""
    try:
        link = rtnetlink.interface(_route(view, rtnetlink.link_request(name)))
    except KernelError as error:
        raise refuse(ELSEWHERE, view.subject, f"{name}: {error.cause or error.what}") from error
    has_pi = rtnetlink.info_number(link, rtnetlink.TUN_PI)
    if has_pi is None:
        raise refuse(ELSEWHERE, view.subject, f"{name} is another kind of interface there")
    own = rtnetlink.info_number(link, rtnetlink.TUN_OWNER)
    group = rtnetlink.info_number(link, rtnetlink.TUN_GROUP)
    if flags & Tun.TAP and _int(view, Tun.GETFILTER, 16) & 0xFFFF:
        raise refuse(FILTER, view.subject, name)
    routes, lost = rtnetlink.routes(_route(view, rtnetlink.routes_request()), link.index)
    if lost:
        context.warn(f"{view.subject}: {lost} routes of {name} with several next hops are lost")
    master = ""
    if link.master:
        by_number = rtnetlink.link_by_number_request(link.master)
        master = rtnetlink.interface(_route(view, by_number)).name
    return Network(
        link=link, flags=flags & ~OF_A_QUEUE | (0 if has_pi else Tun.NO_PI),
        owner=NOT_SET if own is None else own, group=NOT_SET if group is None else group,
        header_bytes=_int(view, Tun.GETVNETHDRSZ), send_buffer=_int(view, Tun.GETSNDBUF),
        little_endian=bool(_int(view, Tun.GETVNETLE)), offloads=_offloads(view, name),
        master=master, routes=tuple(routes),
        addresses=tuple(
            rtnetlink.addresses(_route(view, rtnetlink.addresses_request()), link)
        ),
    )  # fmt: skip


def encode(network: Network, images: ImageSink) -> None:
    """net_device_entry, and the rest in torpor.json."""
    link = network.link
    entry = pb.net_device_entry(
        type=pb.TUN, ifindex=link.index, mtu=link.mtu, flags=link.flags & NOT_SET,
        name=path_bytes(link.name), address=link.address,
        tun=pb.tun_link_entry(
            flags=network.flags, owner=_signed(network.owner),
            group=_signed(network.group), vnethdr=network.header_bytes,
            sndbuf=network.send_buffer,
        ),
    )  # fmt: skip
    images.add(f"netdev-{NETWORK}", entry)
    images.extra("tun", link.name, {
        "hardware": link.hardware, "queue_length": link.queue_length, "group": link.group,
        "alias": link.alias.hex(), "carrier": link.carrier, "conf": list(link.conf),
        "gen_mode": link.gen_mode, "little_endian": network.little_endian,
        "offloads": network.offloads, "master": network.master,
        "addresses": [[head.hex(), rest.hex()] for head, rest in network.addresses],
        "routes": [[head.hex(), rest.hex()] for head, rest in network.routes],
    })  # fmt: skip


def decode(name: str, images: ImageSource, namespace: int, where: str) -> Network:
    """The interface that a file of files.img, ``where``, belongs to. Raises BadImage."""
    if not NAME.fullmatch(path_bytes(name)):
        bad_image(f"{name!r} is no name of an interface", where)
    entries = images.entries(f"netdev-{namespace:d}")
    found = [e for e, _ in entries if path_bytes(name) == e.name and e.HasField("tun")]
    if not found:
        bad_image(f"{name} is not there as a tun interface", f"netdev-{namespace}.img", where)
    kept = images.extra("tun", name) or {}
    if not isinstance(kept, dict):
        bad_image("is no tun interface", f"torpor.json, tun {name}")
    try:
        return _from_image(name, found[0], kept)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        bad_image("is no tun interface", f"torpor.json, tun {name}", str(error))


def set_up(network: Network, fd: int, what: str) -> list[Op]:
    """What calls on a queue set."""
    link = network.link
    usual = ETHER if network.flags & Tun.TAP else NO_HARDWARE
    ops = []
    if network.flags & Tun.VNET_HDR:
        ops.append(call(fd, Tun.SETVNETHDRSZ, _word(network.header_bytes), what))
    if network.little_endian:
        ops.append(call(fd, Tun.SETVNETLE, _word(1), what))
    if network.send_buffer != NO_LIMIT:
        ops.append(call(fd, Tun.SETSNDBUF, _word(network.send_buffer), what))
    if network.offloads:
        ops.append(call(fd, Tun.SETOFFLOAD, network.offloads, what))
    if network.owner != NOT_SET:
        ops.append(call(fd, Tun.SETOWNER, network.owner, what))
    if network.group != NOT_SET:
        ops.append(call(fd, Tun.SETGROUP, network.group, what))
    if link.hardware != usual:
        ops.append(call(fd, Tun.SETLINK, link.hardware, what))
    if not link.carrier:
        ops.append(call(fd, Tun.SETCARRIER, _word(0), what))
    return ops


def configure(network: Network, spare: int, what: str) -> list[Op]:
    """What rtnetlink sets: link-local addresses are not made anew meanwhile."""
    link = network.link
    made = Op(call="socket", args=(AF_NETLINK, 3 | O.CLOEXEC, rtnetlink.NETLINK_ROUTE),
              subject=what, yields=Slot(f"route{spare}"))  # fmt: skip
    ops = place(made, spare)
    numbers = {Place.INTERFACE: Data(bytes(8), text="number")}
    ops += _number(link.name, numbers[Place.INTERFACE], spare, what)
    has_mode = link.gen_mode not in (None, rtnetlink.GEN_MODE_NONE)
    steps: list[tuple[Pieces, str]] = [(rtnetlink.settings_message(link), "its settings")]
    if has_mode:
        none = rtnetlink.gen_mode_message(rtnetlink.GEN_MODE_NONE)
        steps.append((none, "no addresses of its own"))
    if network.master:
        numbers[Place.MASTER] = Data(bytes(8), text=f"number of {network.master}")
        ops += _number(network.master, numbers[Place.MASTER], spare, what)
        steps.append((rtnetlink.master_message(), f"belongs to {network.master}"))
    flags, changed = link.flags & (UP | NOARP | MULTICAST), UP | NOARP | MULTICAST
    steps.append((rtnetlink.flags_message(flags, changed), "up" if flags & UP else "down"))
    steps += [(rtnetlink.address_message(*one), "an address") for one in network.addresses]
    steps += [(rtnetlink.route_message(*one), "a route") for one in network.routes]
    if has_mode and link.gen_mode is not None:
        steps.append((rtnetlink.gen_mode_message(link.gen_mode), "addresses of its own"))
    for pieces, note in steps:
        ops += _sent(pieces, note, numbers, spare, what)
    ops.append(Op(call="close", args=(spare,), subject=what))
    return ops


def call(
    fd: int, request: int, argument: Data | int, what: str, note: str = "", remedy: str = "",
    expect: Expect = Expect.OK,
) -> Op:  # fmt: skip
    """An ioctl(2) on a queue, or on a socket."""
    return Op(call="ioctl", args=(fd, request, argument), subject=what,
              note=note or NAMES.get(request, ""), remedy=remedy, expect=expect)  # fmt: skip


def _route(view: FdView, request: bytes) -> bytes:
    return view.netlink(AF_NETLINK, rtnetlink.NETLINK_ROUTE, request)


def _int(view: FdView, request: int, room: int = 4) -> int:
    return int.from_bytes(view.ioctl(request, bytes(room))[:4], "little")


def _offloads(view: FdView, name: str) -> int:
    def ask(request: bytes) -> bytes:
        return view.netlink(AF_NETLINK, rtnetlink.NETLINK_GENERIC, request)

    family = rtnetlink.family_number(ask(rtnetlink.family_request("ethtool")))
    found = rtnetlink.features(ask(rtnetlink.features_request(family, name)))
    return sum(bit for feature, bit in OFFLOADS.items() if feature in found)


def _from_image(name: str, entry: Any, kept: Mapping[str, Any]) -> Network:  # noqa: ANN401
    tun = entry.tun
    is_tap = bool(tun.flags & Tun.TAP)
    gen_mode = kept.get("gen_mode")
    link = Interface(
        name=name, index=_fits(entry.ifindex, NO_LIMIT), flags=entry.flags, mtu=entry.mtu,
        hardware=_fits(kept.get("hardware", ETHER if is_tap else NO_HARDWARE), 0xFFFF),
        queue_length=_fits(kept.get("queue_length", QUEUE_LENGTH), NO_LIMIT),
        address=bytes(entry.address)[:32], alias=bytes.fromhex(kept.get("alias", ""))[:255],
        group=_fits(kept.get("group", 0), NO_LIMIT), carrier=bool(kept.get("carrier", True)),
        conf=tuple(_fits(value & NOT_SET, NOT_SET) for value in kept.get("conf", ()))[:256],
        gen_mode=None if gen_mode is None else _fits(gen_mode, 0xFF), info={},
    )  # fmt: skip
    return Network(
        link=link, flags=tun.flags, owner=tun.owner & NOT_SET, group=tun.group & NOT_SET,
        header_bytes=tun.vnethdr, send_buffer=tun.sndbuf & NO_LIMIT,
        little_endian=bool(kept.get("little_endian")),
        offloads=_fits(kept.get("offloads", 0), 0xFF), master=_name(kept.get("master", "")),
        addresses=_pairs(kept.get("addresses", ()), ADDRESS_BYTES),
        routes=_pairs(kept.get("routes", ()), ROUTE_BYTES),
    )  # fmt: skip


def _name(value: object) -> str:
    if not isinstance(value, str) or (value and not NAME.fullmatch(path_bytes(value))):
        raise ValueError(f"{value!r} is no name of an interface")
    return value


def _pairs(kept: Iterable[Any], head_bytes: int) -> tuple[tuple[bytes, bytes], ...]:
    pairs = tuple((bytes.fromhex(head), bytes.fromhex(rest)) for head, rest in kept)
    if any(len(head) != head_bytes or len(rest) % 4 or len(rest) > MOST for head, rest in pairs):
        raise ValueError("an address or a route of a wrong size")
    return pairs


def _fits(number: object, most: int) -> int:
    if not isinstance(number, int) or not 0 <= number <= most:
        raise ValueError(f"{number!r} is not among 0 to {most}")
    return number


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def _number(name: str, number: Data, spare: int, what: str) -> list[Op]:
    asked = Data(REQUEST.pack(path_bytes(name), 0), text=name)
    found = Slot(f"number of {name}")
    return [
        call(spare, SIOCGIFINDEX, asked, what, note=f"number of {name}",
              remedy=f"{name} must be there"),
        Op(call="@load32", args=(asked, INDEX_AT), yields=found, subject=what),
        Op(call="@store64", args=(number, found), subject=what),
    ]  # fmt: skip


def _sent(
    pieces: Pieces, note: str, numbers: Mapping[Place, Data], spare: int, what: str
) -> list[Op]:
    """A request to rtnetlink and its answer: 0, or what has gone wrong."""
    parts = [
        (numbers[piece], 4) if isinstance(piece, Place) else (Data(piece, text=note), len(piece))
        for piece in pieces
    ]
    vector = Data(
        b"".join(struct.pack("<QQ", 0, size) for _, size in parts),
        pointers=tuple((16 * at, data) for at, (data, _) in enumerate(parts)), text="pieces",
    )  # fmt: skip
    message = Data(
        struct.pack("<QIxxxxQQQQIxxxx", 0, 0, 0, len(parts), 0, 0, 0),
        pointers=((16, vector),), text=note,
    )  # fmt: skip
    answer = Data.room(ACK_BYTES)
    return [
        Op(call="sendmsg", args=(spare, message, 0), subject=what, note=note),
        Op(call="recvfrom", args=(spare, answer, ACK_BYTES, 0, 0, 0), subject=what),
        Op(call="@load32", args=(answer, ACK_ERROR_AT), subject=what, note=note,
           remedy="restore with CAP_NET_ADMIN over the network namespace"),
    ]  # fmt: skip


def _word(value: int) -> Data:
    return Data(struct.pack("<I", value), text=str(value))
