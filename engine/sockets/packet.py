# SPDX-License-Identifier: Apache-2.0
"""Packet sockets (AF_PACKET): what they see, how, and their rings.

Facts:
- packet_diag tells by inode: protocol, interface, version, flags, memberships, rings, fanout. It
  sees one network namespace: that of the socket.
- A ring's size is kept. One that is mapped is mapped again (`memory/areas.py`) and begins anew:
  with TPACKET_V3 at the block that the program waits for (`dump/rings.py`), otherwise at its first
  frame, for there the kernel does not tell where it is. CRIU always begins at the first.
- Interfaces are named by index, as by CRIU: they must be there again with the same number.
- What waits to be read is lost, as a full queue may lose it at any time.
- A socket of the old type SOCK_PACKET is bound by the name of the interface.

Source: packet(7); include/uapi/linux/{packet_diag,if_packet}.h (v6.18). CRIU: packet_sock_entry.
torpor.json, section `packet`, has what that cannot say.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.engine.errors import Refused
from torpor.engine.files.common import (
    NOBODY,
    Owner,
    created,
    decode_owner,
    encode_owner,
    late_owners,
    read_owner,
    status_flags,
    subject,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import AF, S_IFSOCK, SO, SOCK, SOL_SOCKET
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Data, Op, place
from torpor.engine.sockets import option_plan
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.options import SocketOptions

SOL_PACKET = 263
ADD_MEMBERSHIP, RX_RING, COPY_THRESH, AUXDATA, ORIGDEV, VERSION = 1, 5, 7, 8, 9, 10
RESERVE, TX_RING, LOSS, VNET_HDR, TIMESTAMP, FANOUT = 12, 13, 14, 15, 17, 18
MORE = {
    19: "PACKET_TX_HAS_OFF", 20: "PACKET_QDISC_BYPASS", 23: "PACKET_IGNORE_OUTGOING",
    24: "PACKET_VNET_HDR_SZ",
}  # fmt: skip
FLAGS = {
    "aux_data": (2, AUXDATA), "orig_dev": (4, ORIGDEV), "vnet_hdr": (8, VNET_HDR),
    "loss": (16, LOSS),
}  # fmt: skip
NO_FANOUT = 0xFFFFFFFF
FANOUT_PROGRAMS = (6, 7)
"""PACKET_FANOUT_CBPF and _EBPF, in the third byte."""
TPACKET_V3 = 2
SECTION, DIAG = "packet", "packet_diag"
SHOW_ALL = 0xF
INFO = struct.Struct("=6I")
MEMBER = struct.Struct("=IIHH32s")
RING = struct.Struct("=7I")
REQUEST = struct.pack("=BBHIIII", AF.PACKET, 0, 0, 0, SHOW_ALL, NO_FANOUT, NO_FANOUT)
HEAD = struct.Struct("=BBHIII")

UNREADABLE = Limit(
    case="packet-unreadable",
    what="a packet socket of which the kernel does not tell the state (packet_diag)",
    remedy="close it before the checkpoint, or load the module af_packet_diag",
)
FANOUT_PROGRAM = Limit(
    case="packet-fanout-program",
    what="a packet socket whose group is shared out by a program that cannot be read back",
    remedy="close it before the checkpoint, or share out by another rule (PACKET_FANOUT_HASH)",
)
LIMITS = (UNREADABLE, FANOUT_PROGRAM, *sockopts.LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketState:
    """One socket. ``device`` is the name that one of SOCK_PACKET is bound to."""

    kind: int
    protocol: int
    flags: int
    interface: int = 0
    device: str = ""
    version: int = 0
    reserve: int = 0
    copy_thresh: int = 0
    timestamp: int = 0
    switches: tuple[str, ...] = ()
    """Names of FLAGS that are on."""
    members: tuple[tuple[int, int, bytes], ...] = ()
    """Interface, type, address of each membership."""
    fanout: int = NO_FANOUT
    receive_ring: tuple[int, ...] = ()
    send_ring: tuple[int, ...] = ()
    more: tuple[tuple[int, int], ...] = ()
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)

    @property
    def rings_bytes(self) -> int:
        """What mmap(2) of the socket maps: size and number of the blocks of both rings."""
        return sum(ring[0] * ring[1] for ring in (self.receive_ring, self.send_ring) if ring)

    @property
    def label(self) -> str:
        """`packet socket 0x0003, interface 1`."""
        return f"packet socket {self.protocol:#06x}, interface {self.interface}"


class Packet:
    """The kind."""

    name = "packet socket"
    types = ("PACKETSK",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By family."""
        return (
            view.st_mode & 0o170000 == S_IFSOCK
            and view.link.startswith("socket:[")
            and sockopts.number(view, SOL_SOCKET, SO.DOMAIN) == AF.PACKET
        )

    def questions(self, view: FdView) -> None:
        """None."""
        del view

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Nothing was asked."""
        del view, context
        return False

    def collect(self, view: FdView, context: DumpContext) -> PacketState:
        """Read the state."""
        known = _diag(view, context)
        if known is None:
            raise refuse(UNREADABLE, view.subject)
        kind, protocol, parts = known
        index, version, reserve, copy_thresh, timestamp, flags = INFO.unpack(parts[0][: INFO.size])
        memory = view.getsockopt(SOL_SOCKET, SO.MEMINFO, 36) or b""
        if int.from_bytes(memory[:4], "little"):
            context.warn(f"{view.subject}: queued packets are dropped")
        fanout = int.from_bytes(parts[4], "little") if 4 in parts else NO_FANOUT
        if fanout != NO_FANOUT and fanout >> 16 & 0xFF in FANOUT_PROGRAMS:
            raise refuse(FANOUT_PROGRAM, view.subject)
        more = ((n, sockopts.number(view, SOL_PACKET, n)) for n in MORE)
        return PacketState(
            kind=kind,
            protocol=protocol,
            flags=view.flags & ~0o2000000,
            interface=index,
            device=view.sockname()[2:16].rstrip(b"\0").decode("ascii", "replace")
            if kind == SOCK.PACKET
            else "",
            version=version,
            reserve=reserve,
            copy_thresh=copy_thresh,
            timestamp=timestamp,
            switches=tuple(name for name, (bit, _) in FLAGS.items() if flags & bit),
            members=_members(parts.get(1, b"")),
            fanout=fanout,
            receive_ring=RING.unpack(parts[2][: RING.size]) if 2 in parts else (),
            send_ring=RING.unpack(parts[3][: RING.size]) if 3 in parts else (),
            more=tuple((n, value) for n, value in more if value),
            owner=read_owner(view, context),
            options=sockopts.read(view, AF.PACKET, 0),
        )

    def check(
        self, states: Mapping[FileId, PacketState], context: DumpContext
    ) -> Iterable[Refused]:
        """Nothing more."""
        del states, context
        return ()

    def encode(self, states: Mapping[FileId, PacketState], images: ImageSink) -> None:
        """packet_sock_entry each."""
        for file_id, state in states.items():
            entry = _message(file_id, state)
            images.add("files", pb.file_entry(type=pb.PACKETSK, id=file_id, psk=entry))
            sockopts.keep(images, file_id, state.options)
            unsaid: dict[str, Any] = {}
            if state.device:
                unsaid["device"] = state.device
            if state.more:
                unsaid["more"] = [list(one) for one in state.more]
            if unsaid:
                images.extra(SECTION, str(file_id), unsaid)

    def decode(self, images: ImageSource) -> Mapping[FileId, PacketState]:
        """Read back."""
        return {
            file_id: _state(images, file_id, entry) for file_id, entry in images.files("PACKETSK")
        }

    def plan(self, states: Mapping[FileId, PacketState], context: PlanContext) -> Sequence[Op]:
        """Made without a protocol, so that nothing is seen before it is as it was."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, where = context.fd(file_id), subject(context, file_id, state.label)
            old = state.kind == SOCK.PACKET
            number = _swapped(state.protocol) if old else 0
            make = Op(call="socket", args=(AF.PACKET, state.kind, number), subject=where,
                      remedy="restore with CAP_NET_RAW")  # fmt: skip
            ops += place(make, fd)
            ops += option_plan.early_ops(state.options, fd, where)
            ops += _own_ops(state, fd, where)
            ops += option_plan.late_ops(state.options, fd, where)
            ops += _bound(state, fd, where)
            if state.fanout != NO_FANOUT:
                ops.append(_set(fd, FANOUT, struct.pack("<I", state.fanout), where, "FANOUT"))
            ops += option_plan.buffer_ops(state.options, fd, where)
            ops += status_flags(fd, state.flags, 0, where)
        return ops

    def late(self, states: Mapping[FileId, PacketState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in states.items()}, context)


def _diag(view: FdView, context: DumpContext) -> tuple[int, int, Mapping[int, bytes]] | None:
    """Type, protocol and attributes of a socket; asked once for a network namespace."""
    known: dict[int, tuple[int, int, Mapping[int, bytes]]] = context.cache.setdefault(DIAG, {})
    if view.st_ino not in known:
        request = netlink.request(netlink.SOCK_DIAG_BY_FAMILY, REQUEST)
        answer = view.netlink(AF.NETLINK, netlink.NETLINK_SOCK_DIAG, request)
        for _, payload in netlink.messages(answer):
            _, kind, protocol, inode, _, _ = HEAD.unpack_from(payload)
            known[inode] = (kind, protocol, netlink.attributes(payload[HEAD.size :]))
    return known.get(view.st_ino)


def _members(raw: bytes) -> tuple[tuple[int, int, bytes], ...]:
    found = []
    for at in range(0, len(raw) // MEMBER.size * MEMBER.size, MEMBER.size):
        index, times, kind, size, address = MEMBER.unpack_from(raw, at)
        found += [(index, kind, address[:size])] * times
    return tuple(found)


def _own_ops(state: PacketState, fd: int, where: str) -> list[Op]:
    """Options of packet sockets; the version before the rings."""
    ops = []
    if state.version:
        ops.append(_number(fd, VERSION, state.version, where, "VERSION"))
    for option, value, name in (
        (RESERVE, state.reserve, "RESERVE"), (COPY_THRESH, state.copy_thresh, "COPY_THRESH"),
        (TIMESTAMP, state.timestamp, "TIMESTAMP"),
    ):  # fmt: skip
        if value:
            ops.append(_number(fd, option, value, where, name))
    ops += [_number(fd, FLAGS[name][1], 1, where, name.upper()) for name in state.switches]
    ops += [_number(fd, option, value, where, MORE[option]) for option, value in state.more]
    for index, kind, address in state.members:
        raw = struct.pack("<iHH8s", index, kind, len(address), address)
        ops.append(_set(fd, ADD_MEMBERSHIP, raw, where, f"ADD_MEMBERSHIP of type {kind}"))
    for option, ring, name in (
        (RX_RING, state.receive_ring, "RX_RING"), (TX_RING, state.send_ring, "TX_RING"),
    ):  # fmt: skip
        if ring:
            raw = struct.pack("<7I", *ring)
            raw = raw if state.version == TPACKET_V3 else raw[:16]
            ops.append(_set(fd, option, raw, where, f"{name} of {ring[1]} blocks"))
    return ops


def _bound(state: PacketState, fd: int, where: str) -> list[Op]:
    if state.kind == SOCK.PACKET:
        raw = struct.pack("<H14s", AF.PACKET, state.device.encode())
        wanted, note = bool(state.device), state.device
    else:
        raw = struct.pack("<H", AF.PACKET) + struct.pack(">H", state.protocol)
        raw += struct.pack("<iHBB8x", state.interface, 0, 0, 0)
        wanted, note = bool(state.protocol or state.interface), f"interface {state.interface}"
    if not wanted:
        return []
    remedy = "make the network interface again, with the same number"
    at = Data(raw, 4, (), note)
    return [Op(call="bind", args=(fd, at, len(raw)), subject=where, note=note, remedy=remedy)]


def _swapped(protocol: int) -> int:
    """In network order, as socket(2) and CRIU's image have it; and back."""
    return (protocol & 0xFF) << 8 | protocol >> 8 & 0xFF


def _number(fd: int, option: int, value: int, where: str, name: str) -> Op:
    return _set(fd, option, struct.pack("<I", value), where, f"{name} = {value}")


def _set(fd: int, option: int, raw: bytes, where: str, note: str) -> Op:
    data = Data(raw, 4, (), f"<{len(raw)} bytes>")
    return Op(
        call="setsockopt", args=(fd, SOL_PACKET, option, data, len(raw)), subject=where, note=note
    )


def _message(file_id: FileId, state: PacketState) -> Any:  # noqa: ANN401
    entry = pb.packet_sock_entry(
        id=file_id,
        type=state.kind,
        protocol=_swapped(state.protocol),
        flags=state.flags,
        ifindex=state.interface,
        fown=encode_owner(state.owner),
        opts=sockopts.encode(state.options),
        version=state.version,
        reserve=state.reserve,
        timestamp=state.timestamp,
        copy_thresh=state.copy_thresh,
        ns_id=sockopts.NET_NS_ID,
        aux_data="aux_data" in state.switches,
        orig_dev="orig_dev" in state.switches,
        vnet_hdr="vnet_hdr" in state.switches,
        loss="loss" in state.switches,
    )
    for index, kind, address in state.members:
        entry.mclist.add(index=index, type=kind, addr=address)
    if state.fanout != NO_FANOUT:
        entry.fanout = state.fanout
    names = [f.name for f in pb.packet_ring.DESCRIPTOR.fields]
    for part, ring in ((entry.rx_ring, state.receive_ring), (entry.tx_ring, state.send_ring)):
        for name, value in zip(names, ring, strict=False):
            setattr(part, name, value)
    return entry


def _state(images: ImageSource, file_id: FileId, entry: Any) -> PacketState:  # noqa: ANN401
    unsaid = images.extra(SECTION, str(file_id)) or {}
    names = [f.name for f in pb.packet_ring.DESCRIPTOR.fields]
    rings = [
        tuple(getattr(getattr(entry, part), name) for name in names) if entry.HasField(part) else ()
        for part in ("rx_ring", "tx_ring")
    ]
    return PacketState(
        kind=entry.type,
        protocol=_swapped(entry.protocol),
        flags=entry.flags,
        interface=entry.ifindex,
        device=str(unsaid.get("device", "")),
        version=entry.version,
        reserve=entry.reserve,
        copy_thresh=entry.copy_thresh,
        timestamp=entry.timestamp,
        switches=tuple(name for name in FLAGS if getattr(entry, name)),
        members=tuple((m.index, m.type, m.addr) for m in entry.mclist),
        fanout=entry.fanout,
        receive_ring=rings[0],
        send_ring=rings[1],
        more=tuple((int(n), int(value)) for n, value in unsaid.get("more", ()) if int(n) in MORE),
        owner=decode_owner(entry.fown),
        options=sockopts.decode(entry.opts, images, file_id),
    )


KIND = Packet()
