# SPDX-License-Identifier: Apache-2.0
"""How UDP, raw and ping sockets come back: made, bound, filled, connected.

Datagrams that wait are sent by a raw socket in the name of their senders, over the loopback
device, before filters and connect(2) would keep any out. That takes CAP_NET_RAW, and a port that
one socket of the tree has alone; else they are dropped with a warning.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from torpor.engine.files.common import created, status_flags, subject
from torpor.engine.kernel.abi import AF, IPPROTO, SO, SOCK, SOL_SOCKET
from torpor.engine.kind import FileId, Message, PlanContext
from torpor.engine.program.ops import Data, Expect, Op, Slot, place
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import multicast, option_plan, option_tables
from torpor.engine.sockets.inet_state import InetState
from torpor.engine.sockets.segment import datagram
from torpor.engine.sockets.tcp import ADDRESS_REMEDY, moved

LARGEST, OVERHEAD_BYTES = 65535, 1024
REUSEADDR = option_tables.ALL[SOL_SOCKET, SO.REUSEADDR]


def plan(states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[Op]:
    """Operations for all UDP sockets: all are bound before one is connected."""
    ops: list[Op] = []
    mine = created(states, context)
    for file_id, state in mine.items():
        fd, where = context.fd(file_id), subject(context, file_id, state.label)
        make = Op(call="socket", args=(state.family, state.kind, state.protocol), subject=where)
        ops += place(make, fd)
        ops += option_plan.early_ops(state.options, fd, where)
        if state.protocol not in (IPPROTO.UDP, IPPROTO.UDPLITE):  # others are made with it
            reuse = state.options.value(SOL_SOCKET, SO.REUSEADDR)
            ops.append(option_plan.set_value(fd, REUSEADDR, reuse, where))
        raw = state.kind == SOCK.RAW  # its port is the protocol
        if not state.source.wildcard if raw else state.source.port:
            at = _local(state, context).data()
            ops.append(
                Op(call="bind", args=(fd, at, len(at.content)), subject=where, note=at.text,
                   remedy=ADDRESS_REMEDY)
            )  # fmt: skip
    ops += _queues(mine, context)
    for file_id, state in mine.items():
        fd, where = context.fd(file_id), subject(context, file_id, state.label)
        ops += multicast.ops(state.groups, fd, where)
        if state.peer is not None:
            at = moved(state.peer, context).data()
            ops.append(
                Op(call="connect", args=(fd, at, len(at.content)), subject=where,
                   note=f"to {at.text}", remedy="make a route to that address")
            )  # fmt: skip
        if state.shutdown:
            how = state.shutdown - 1
            ops.append(Op(call="shutdown", args=(fd, how), subject=where))
        ops += option_plan.late_ops(state.options, fd, where)
        raised = bool(state.queue)
        ops += option_plan.buffer_ops(state.options, fd, where, raised=raised)
        ops += status_flags(fd, state.flags, 0, where)
    return ops


def _queues(states: Mapping[FileId, InetState], context: PlanContext) -> list[Op]:
    ops: list[Op] = []
    raw: dict[int, Slot] = {}
    ports = Counter((s.protocol, s.source.port) for s in states.values())
    for file_id, state in states.items():
        fd, where = context.fd(file_id), subject(context, file_id, state.label)
        total = sum(len(one.data) + OVERHEAD_BYTES for one in state.queue)
        packets = [_packet(one, state, context) for one in state.queue]
        alone = ports[state.protocol, state.source.port] == 1
        if packets and not (context.tcp_repair and alone and all(packets)):
            context.warn(f"{where}: {len(packets)} queued datagrams are dropped")
        elif packets:
            ops += option_plan.raise_receive_buffer(fd, total, where)
            for to, packet in filter(None, packets):
                ops += _sent(to, packet, raw, where)
    return [*ops, *(Op(call="close", args=(slot,), note="only helped") for slot in raw.values())]


def _packet(
    message: Message, state: InetState, context: PlanContext
) -> tuple[addresses.Address, bytes] | None:
    """Where to send what; None for what cannot be sent over the loopback device."""
    sender, local = addresses.parse(message.address), moved(state.source, context)
    family = AF.INET if len(sender.ip) == 4 else AF.INET6
    here = addresses.loopback(family) if local.wildcard else local
    if len(here.ip) != len(sender.ip) or here.is_multicast or not state.source.port:
        return None
    target = addresses.Address(family, here.ip, local.port)
    packet = datagram(sender, target, message.data, state.protocol)
    return (addresses.Address(family, here.ip), packet) if len(packet) <= LARGEST else None


def _sent(to: addresses.Address, packet: bytes, raw: dict[int, Slot], where: str) -> list[Op]:
    ops = []
    if to.family not in raw:
        raw[to.family] = Slot(f"udp_raw{int(to.family)}")
        ops.append(
            Op(call="socket", args=(to.family, SOCK.RAW, IPPROTO.RAW), yields=raw[to.family],
               subject=where, note="to speak for senders", remedy="restore with CAP_NET_RAW")
        )  # fmt: skip
    data, at = Data(packet, 4, (), f"<datagram of {len(packet)} bytes>"), to.data()
    args = (raw[to.family], data, len(packet), 0, at, len(at.content))
    ops.append(
        Op(call="sendto", args=args, subject=where, note="queued again", expect=Expect.EQUAL,
           want=len(packet))
    )  # fmt: skip
    return ops


def _local(state: InetState, context: PlanContext) -> addresses.Address:
    """The address to bind to. One that connect(2) chose is chosen anew in a new place."""
    new = moved(state.source, context)
    if new == state.source and state.peer and context.new_container and not new.loopback:
        return addresses.any_address(state.family, state.source.port)
    return new
