# SPDX-License-Identifier: Apache-2.0
"""How TCP connections that were read by TCP_REPAIR go on: made without a packet to the peer.

Facts (net/ipv4/tcp.c, tcp_output.c, tcp_ipv4.c, v6.18):
- In repair mode connect(2) makes an ESTABLISHED socket at once; sequence numbers are set before
  it, options (TCP_REPAIR_OPTIONS) and the timestamp's offset after it.
- What is written to the receive queue waits to be read; what is written to the send queue
  counts as sent and not acknowledged, and its retransmission timer runs.
- shutdown(2) in repair mode puts a FIN into the send queue.
- What only a packet of the peer brings about (its FIN, its acknowledgement of ours) is sent by
  ourselves in its name through a raw socket, with the mark that the network lock lets pass.
- The window (TCP_REPAIR_WINDOW) must not be ahead of the receive queue: it is set last.
- When repair mode is left the kernel probes the peer's window, so both hear of each other. Bytes
  that were never sent are written after that, as by the program.

Order: all connections are made (1), so that the answer to a packet finds the other end; then
their ends (2); when the network is unlocked they leave repair mode (`late`, 3).
A connection that was being made (SYN_SENT) sends its SYN anew at (3), with its old number.
"""

import struct
from collections.abc import Mapping, Sequence

from torpor.engine.files.common import O, created, status_flags, subject
from torpor.engine.kernel.abi import (
    AF,
    IP,
    IPPROTO,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SO,
    SOCK,
    SOL_SOCKET,
    TCP,
    TCPState,
)
from torpor.engine.kernel.nftables import MARK
from torpor.engine.kind import FileId, LateOp, PlanContext
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot, place
from torpor.engine.sockets import option_plan, option_tables
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.inet_state import InetState, goes_on, mates, waiting_clients
from torpor.engine.sockets.segment import ACK, FIN, segment
from torpor.engine.sockets.tcp_stream import (
    FIN_RECEIVED,
    FIN_SENT,
    MASK,
    OPT_SACK,
    OPT_TIMESTAMPS,
    OPT_WSCALE,
    Stream,
)

SHUT_RD, SHUT_WR = 0, 1
REPAIR_ON, REPAIR_OFF, OFF_WITHOUT_PROBE = 1, 0, -1
NO_QUEUE, RECEIVE_QUEUE, SEND_QUEUE = 0, 1, 2
OPT_MSS, OPT_WINDOW, OPT_SACK_PERMITTED, OPT_TIMESTAMP = 2, 3, 4, 8
ROOMY_BYTES = 8192
LARGEST_MSS = 32767
RECEIVE_CHUNK, SEND_CHUNK = 16384, 65536
"""Bytes of one write: to the receive queue it becomes one buffer of the kernel."""
REUSEADDR = option_tables.ALL[SOL_SOCKET, SO.REUSEADDR]
F_SETFL = 4
REMEDY = "restore where the old address is, or give the connection up (--tcp-close)"


def kept(states: Mapping[FileId, InetState], context: PlanContext) -> Mapping[FileId, InetState]:
    """Connections that go on here."""
    if not context.tcp_repair or context.tcp_close:
        return {}
    mine = created(states, context)
    pairs = {a: b for a, b in mates(mine).items() if mine[b].stream is not None}
    clients = waiting_clients(mine, pairs)
    return {i: s for i, s in sorted(mine.items()) if i not in clients and goes_on(i, s, pairs)}


def plan(states: Mapping[FileId, InetState], context: PlanContext) -> list[Op]:
    """Operations of the root: all is made, still in repair mode."""
    ops: list[Op] = []
    raw: dict[int, Slot] = {}
    for file_id, state in states.items():
        where = subject(context, file_id, state.label)
        ops += _made(state, context.fd(file_id), where)
    for file_id, state in states.items():
        where = subject(context, file_id, state.label)
        if state.connected:
            ops += _ends(state, context.fd(file_id), where, raw)
        ops += _settings(state, context.fd(file_id), where)
    ops += [Op(call="close", args=(slot,), note="only helped") for slot in raw.values()]
    for file_id, state in states.items():
        if not context.holders.get(file_id):  # nobody but a queue has it
            where = subject(context, file_id, state.label)
            ops += _alive(state, context.fd(file_id), where)
    return ops


def late(states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[LateOp]:
    """Operations of a holder when packets pass again."""
    found = []
    for file_id, state in states.items():
        holders = context.holders.get(file_id)
        if holders:
            where = subject(context, file_id, state.label)
            ops = _alive(state, holders[0].fd, where)
            found += [LateOp(task=holders[0].task, op=op, last=True) for op in ops]
    return found


def _made(state: InetState, fd: int, where: str) -> list[Op]:
    """The socket with its numbers, addresses and queues."""
    stream = _stream(state)
    make = Op(call="socket", args=(state.family, SOCK.STREAM, state.protocol), subject=where)
    ops = place(make, fd)
    ops += option_plan.early_ops(state.options, fd, where)
    ops.append(_number(fd, TCP.REPAIR, REPAIR_ON, where))
    if state.calling:
        ops += _sequence(fd, SEND_QUEUE, stream.out_sequence - 1, where)
        ops += [
            _number(fd, TCP.REPAIR_QUEUE, NO_QUEUE, where),
            _number(fd, TCP.REPAIR, OFF_WITHOUT_PROBE, where),
            option_plan.set_value(fd, REUSEADDR, 1, where),
        ]
        return [*ops, _named("bind", fd, state.source, where)]
    if len(state.sent) > ROOMY_BYTES:
        ops += option_plan.raise_send_buffer(fd, len(state.sent), where)
    if len(state.received) > ROOMY_BYTES:
        ops += option_plan.raise_receive_buffer(fd, len(state.received), where)
    start = stream.out_sequence - len(state.sent) - (state.state in FIN_SENT)
    ops += _sequence(fd, SEND_QUEUE, start, where)
    start = stream.in_sequence - len(state.received) - (state.state in FIN_RECEIVED)
    ops += _sequence(fd, RECEIVE_QUEUE, start, where)
    ops.append(_named("bind", fd, state.source, where))
    assert state.peer is not None
    ops += _segments(fd, min(stream.mss, LARGEST_MSS), where)
    ops.append(_named("connect", fd, state.peer, where))
    ops += _segments(fd, 0, where)
    ops += _negotiated(stream, fd, where)
    ops += _write(fd, state.received, where, "waits to be read", RECEIVE_CHUNK)
    sent = state.sent[: len(state.sent) - _never_sent(state)]
    if sent:
        ops.append(_number(fd, TCP.REPAIR_QUEUE, SEND_QUEUE, where))
        ops += _write(fd, sent, where, "sent, not acknowledged")
    ops.append(_number(fd, TCP.REPAIR_QUEUE, NO_QUEUE, where))
    return ops


def _ends(state: InetState, fd: int, where: str, raw: dict[int, Slot]) -> list[Op]:
    """FINs of both, in their order; then the window."""
    stream, ops = _stream(state), list[Op]()
    shut = Op(call="shutdown", args=(fd, SHUT_WR), subject=where, note="its FIN is sent")
    ours = state.state in FIN_SENT and not _never_sent(state)
    if ours and state.state != TCPState.LAST_ACK:
        ops.append(shut)
    if state.state in FIN_RECEIVED:
        ops += _from_peer(state, FIN | ACK, stream.in_sequence - 1, where, raw)
    if state.state == TCPState.FIN_WAIT2:
        ops += _from_peer(state, ACK, stream.in_sequence, where, raw)
    if ours and state.state == TCPState.LAST_ACK:
        ops.append(shut)
    if stream.window:
        packed = struct.pack("<5I", *stream.window)
        window = Data(packed, 4, (), f"window {stream.window[1]} {stream.window[3]}")
        ops.append(_option(fd, TCP.REPAIR_WINDOW, window, where, "TCP_REPAIR_WINDOW"))
    if len(state.source.ip) == 4:
        ops.append(
            Op(call="setsockopt", args=(fd, IPPROTO.IP, IP.OPTIONS, 0, 0), subject=where,
               note="none, as it is: works out the size of segments", expect=Expect.ANY)
        )  # fmt: skip
    return ops


def _segments(fd: int, size: int, where: str) -> list[Op]:
    """TCP_MAXSEG while connect(2) works out the size of segments.

    It would take 536 for what the peer told, and ask again only when the route's MTU changes.
    For IPv4 IP_OPTIONS, too, has it ask, and that knows sizes above 32767.
    """
    data = Data(struct.pack("<I", size), 4, (), str(size))
    return [_option(fd, TCP.MAXSEG, data, where, "TCP_MAXSEG", expect=Expect.ANY)]


def _from_peer(
    state: InetState, flags: int, sequence: int, where: str, raw: dict[int, Slot]
) -> list[Op]:
    """A packet in the peer's name; it acknowledges what the peer had acknowledged."""
    assert state.peer is not None
    stream, ops = _stream(state), list[Op]()
    family = AF.INET if len(state.source.ip) == 4 else AF.INET6
    if family not in raw:
        raw[family] = Slot(f"tcp_raw{int(family)}")
        mark = Data(struct.pack("<I", MARK), 4, (), hex(MARK))
        ops += [
            Op(call="socket", args=(family, SOCK.RAW, IPPROTO.RAW), yields=raw[family],
               subject=where, note="to speak for a peer", remedy="restore with CAP_NET_RAW"),
            Op(call="setsockopt", args=(raw[family], SOL_SOCKET, SO.MARK, mark, 4), subject=where,
               note="passes the network lock"),
        ]  # fmt: skip
    acked = stream.out_sequence - len(state.sent)
    if state.state in FIN_SENT and state.state != TCPState.FIN_WAIT2:
        acked -= 1
    packet = segment(
        state.peer, state.source, sequence=sequence & MASK, acked=acked & MASK, flags=flags,
        window=min(stream.window[1] >> stream.send_scale, 65535) if stream.window else 65535,
    )  # fmt: skip
    text = "FIN of the peer" if flags & FIN else "acknowledgement of the peer"
    to = Address(family, state.source.ip).data()
    ops.append(
        Op(call="sendto",
           args=(raw[family], Data(packet, 4, (), f"<{text}>"), len(packet), 0, to,
                 len(to.content)),
           subject=where, expect=Expect.EQUAL, want=len(packet))
    )  # fmt: skip
    return ops


def _settings(state: InetState, fd: int, where: str) -> list[Op]:
    ops = option_plan.late_ops(state.options, fd, where)
    if state.congestion:
        name = Data(state.congestion.encode(), 1, (), repr(state.congestion))
        op = _option(fd, TCP.CONGESTION, name, where, "TCP_CONGESTION", expect=Expect.ANY)
        ops.append(op)
    if state.shutdown:
        ops.append(Op(call="shutdown", args=(fd, SHUT_RD), subject=where))
    if state.connected:
        ops += option_plan.buffer_ops(state.options, fd, where, raised=True)
    return [*ops, *status_flags(fd, state.flags, 0, where)]


def _alive(state: InetState, fd: int, where: str) -> list[Op]:
    """Out of repair mode; what was never sent; buffers at their own size."""
    if state.calling:
        flags = int(state.flags & (O.APPEND | O.NONBLOCK | O.ASYNC))
        assert state.peer is not None
        return [
            Op(call="fcntl", args=(fd, F_SETFL, flags | O.NONBLOCK), subject=where),
            _named("connect", fd, state.peer, where, expect=Expect.ANY),
            Op(call="fcntl", args=(fd, F_SETFL, flags), subject=where),
            option_plan.set_value(fd, REUSEADDR, _reusable(state), where),
            *option_plan.buffer_ops(state.options, fd, where),
        ]
    ops = [_number(fd, TCP.REPAIR, REPAIR_OFF, where)]
    unsent = _never_sent(state)
    if unsent:
        ops += option_plan.raise_send_buffer(fd, len(state.sent), where)
        ops += _write(fd, state.sent[-unsent:], where, "was never sent")
        if state.state in FIN_SENT:
            ops.append(Op(call="shutdown", args=(fd, SHUT_WR), subject=where))
        ops += option_plan.buffer_ops(state.options, fd, where, raised=True)
    return [*ops, option_plan.set_value(fd, REUSEADDR, _reusable(state), where)]


def _never_sent(state: InetState) -> int:
    """Bytes at the end of the send queue; of a FIN that follows them nothing is counted.

    With a FIN of the peer behind our unsent one (CLOSING), all counts as sent.
    """
    if state.state in (TCPState.CLOSING, TCPState.FIN_WAIT2):
        return 0
    unsent = _stream(state).unsent
    if unsent and state.state in FIN_SENT:
        unsent -= 1
    return min(unsent, len(state.sent))


def _negotiated(stream: Stream, fd: int, where: str) -> list[Op]:
    """Options that both ends had agreed on."""
    pairs = [(OPT_MSS, stream.mss)]
    if stream.options & OPT_WSCALE:
        pairs.append((OPT_WINDOW, stream.send_scale | stream.receive_scale << 16))
    if stream.options & OPT_SACK:
        pairs.append((OPT_SACK_PERMITTED, 0))
    if stream.options & OPT_TIMESTAMPS:
        pairs.append((OPT_TIMESTAMP, 0))
    raw = b"".join(struct.pack("<II", *pair) for pair in pairs)
    text = f"mss {stream.mss}, options {stream.options:#x}"
    ops = [_option(fd, TCP.REPAIR_OPTIONS, Data(raw, 4, (), text), where, "TCP_REPAIR_OPTIONS")]
    if stream.options & OPT_TIMESTAMPS:
        ops.append(_number(fd, TCP.TIMESTAMP, stream.timestamp, where))
    return ops


def _sequence(fd: int, queue: int, number: int, where: str) -> list[Op]:
    return [
        _number(fd, TCP.REPAIR_QUEUE, queue, where),
        _number(fd, TCP.QUEUE_SEQ, number, where),
    ]


def _reusable(state: InetState) -> int:
    return state.options.value(SOL_SOCKET, SO.REUSEADDR)


def _stream(state: InetState) -> Stream:
    assert state.stream is not None
    return state.stream


def _number(fd: Arg, option: TCP, value: int, where: str) -> Op:
    data = Data(struct.pack("<I", value & MASK), 4, (), str(value & MASK if value > 0 else value))
    return _option(fd, option, data, where, f"TCP_{option.name}")


def _option(
    fd: Arg, option: TCP, value: Data, where: str, note: str, *, expect: Expect = Expect.OK
) -> Op:
    return Op(
        call="setsockopt", args=(fd, IPPROTO.TCP, option, value, len(value.content)),
        subject=where, note=note, expect=expect,
    )  # fmt: skip


def _named(call: str, fd: int, address: Address, where: str, *, expect: Expect = Expect.OK) -> Op:
    at = address.data()
    return Op(
        call=call, args=(fd, at, len(at.content)), subject=where, note=str(address),
        remedy=REMEDY, expect=expect,
    )  # fmt: skip


def _write(fd: int, data: bytes, where: str, note: str, chunk_bytes: int = SEND_CHUNK) -> list[Op]:
    """All of it must go."""
    pieces = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return [
        Op(call="sendto",
           args=(fd, Data(piece, 8, (), f"<{len(piece)} bytes>"), len(piece),
                 MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0),
           subject=where, note=note, expect=Expect.EQUAL, want=len(piece))
        for piece in pieces
    ]  # fmt: skip
