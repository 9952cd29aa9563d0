# SPDX-License-Identifier: Apache-2.0
"""How TCP sockets come back.

1. connections inside the tree: a listener for the purpose at the server's address and port,
   the client bound to its old port, connect, accept; then these listeners are closed;
2. connections that are over or lead outside (and are not kept: `tcp_kept`): connected to a
   listener on the loopback device, filled with what was queued, and then closed by the other end:
   by a FIN where the peer had closed, by a RST (SO_LINGER of 0) otherwise; those with nothing
   left to read or to tell are fresh sockets that are shut down;
3. listening, bound and fresh sockets at their addresses; clients that wait to be accepted;
4. options, queued bytes, shutdown, buffer sizes, status flags.

SO_REUSEADDR is set on everything that binds, because accepted sockets hold the listener's
port, and is set to its own value at the end.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.files.common import created, status_flags, subject
from torpor.engine.kernel.abi import (
    AF,
    IPPROTO,
    IPV6,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SO,
    SOCK,
    SOL_SOCKET,
    TCP,
    TCPState,
)
from torpor.engine.kind import FileId, PlanContext
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot, move, place
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import option_plan, option_tables
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.inet_state import InetState, leads_outside, mates, waiting_clients
from torpor.engine.sockets.tcp_stream import FIN_SENT, MASK

SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2
ROOMY_BYTES, PIECE_BYTES = 32768, 65536
SOCKADDR_SIZE = {AF.INET: 16, AF.INET6: 28}
ADDRESS_REMEDY = (
    "free the address and port, or map the old address to one of this machine (address map)"
)
REUSEADDR = option_tables.ALL[SOL_SOCKET, SO.REUSEADDR]
V6ONLY = option_tables.ALL[IPPROTO.IPV6, IPV6.V6ONLY]


def plan(states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[Op]:
    """Operations for all TCP sockets of the tree."""
    mine = dict(sorted(created(states, context).items()))
    mine = {
        i: s.as_closed() if s.over or (context.tcp_close and (s.connected or s.calling)) else s
        for i, s in mine.items()
    }
    return _Planner(mine, context).run()


def moved(address: Address, context: PlanContext) -> Address:
    """An address after the caller's map."""
    return address.moved(dict(context.address_map))


@dataclass(slots=True)
class _Planner:
    states: Mapping[FileId, InetState]
    context: PlanContext
    ops: list[Op] = field(default_factory=list)
    helpers: dict[tuple[int, bytes, int], Slot] = field(default_factory=dict)
    """Listeners for the purpose, by family, address and port."""
    loopback: dict[tuple[int, bool], Slot] = field(default_factory=dict)
    raised: set[FileId] = field(default_factory=set)
    slots: int = 0

    def run(self) -> list[Op]:
        pairs = {one: two for one, two in mates(self.states).items() if one != two}
        clients = waiting_clients(self.states, pairs)
        over = [i for i in self.states if i not in pairs and i not in clients and self._over(i)]
        rest = [i for i in self.states if i not in pairs and i not in over]
        for file_id, other in pairs.items():
            if file_id < other:
                self._pair(file_id, other)
        for slot in self.helpers.values():
            self.ops.append(Op(call="close", args=(slot,), note="only helped"))
        for file_id in over:
            self._closed_by_peer(file_id)
        for slot in self.loopback.values():
            self.ops.append(Op(call="close", args=(slot,), note="only helped"))
        for file_id in rest:
            self._fresh(file_id, listen=False)
        for file_id in rest:
            if self.states[file_id].state == TCPState.LISTEN:
                self._fresh(file_id, listen=True)
        self._fill(pairs, clients)
        return self.ops

    def _fill(self, pairs: Mapping[FileId, FileId], clients: Mapping[FileId, FileId]) -> None:
        """Options, connections that wait, what is queued."""
        for file_id in self.states:
            if file_id not in clients:
                self._options(file_id, accepted=file_id in pairs)
        for client, server in clients.items():
            self._wait(client, server)
            self._options(client, accepted=False)
        for file_id, other in pairs.items():
            queued = self.states[file_id].received + _missing(self.states, file_id, other)
            self._send(self.context.fd(other), queued, self._where(file_id), other)
        for file_id in self.states:
            self._finish(file_id, paired=file_id in pairs, waits=file_id in clients)

    def _over(self, file_id: FileId) -> bool:
        state = self.states[file_id]
        if state.closed:
            return False
        return leads_outside(state) or state.reset or state.ended

    # ---- connections inside

    def _pair(self, one: FileId, two: FileId) -> None:
        """The accepted end is at a port where somebody listens, or has the lower port."""
        listening = {s.source.port for s in self.states.values() if s.state == TCPState.LISTEN}

        def rank(file_id: FileId) -> tuple[bool, int]:
            port = self.states[file_id].source.port
            return port in listening, -port

        server = max(one, two, key=rank)
        self._connect_pair(two if server == one else one, server)

    def _connect_pair(self, client_id: FileId, server_id: FileId) -> None:
        client, server = self.states[client_id], self.states[server_id]
        source, target = (
            self._local(client.source, client_id),
            self._local(server.source, server_id),
        )
        listener = self._listener_for(target, server, self._where(server_id))
        where = self._where(client_id)
        socket, accepted = self._slot("client"), self._slot("accepted")
        at = target.in_family(client.family).data()
        self.ops.append(
            Op(call="socket", args=(client.family, SOCK.STREAM, 0), subject=where, yields=socket)
        )
        if client.options.value(IPPROTO.IPV6, IPV6.V6ONLY):
            self.ops.append(option_plan.set_value(socket, V6ONLY, 1, where))
        self._bind(socket, source, where)
        self.ops += [
            Op(call="connect", args=(socket, at, len(at.content)), subject=where,
               note=f"to {target}", remedy=ADDRESS_REMEDY),
            Op(call="accept4", args=(listener, 0, 0, 0), subject=self._where(server_id),
               yields=accepted),
            *move(socket, self.context.fd(client_id), subject=where),
            *move(accepted, self.context.fd(server_id), subject=self._where(server_id)),
        ]  # fmt: skip

    def _local(self, address: Address, file_id: FileId) -> Address:
        """Where an end of a connection inside can be.

        An address that is gone becomes the loopback's: the connection lives on, only its
        name differs.
        """
        new = moved(address, self.context)
        if new != address or new.loopback or not self.context.new_container:
            return new
        self.context.warn(
            f"{self._where(file_id)}: {address.text} is not in the address map; the connection "
            "inside the tree comes back on the loopback address"
        )
        mapped = len(address.ip) == 4
        return addresses.loopback(address.family, mapped=mapped, port=address.port)

    def _listener_for(self, target: Address, server: InetState, where: str) -> Slot:
        key = (server.family, *target.key)
        if key in self.helpers:
            return self.helpers[key]
        slot = self.helpers[key] = self._slot("listener")
        self.ops.append(
            Op(call="socket", args=(server.family, SOCK.STREAM, 0), subject=where, yields=slot,
               note="listener for the purpose")
        )  # fmt: skip
        if server.family == AF.INET6:
            only = server.options.value(IPPROTO.IPV6, IPV6.V6ONLY)
            self.ops.append(option_plan.set_value(slot, V6ONLY, only, where))
        self._bind(slot, target, where)
        self.ops.append(Op(call="listen", args=(slot, 16), subject=where))
        return slot

    def _bind(self, fd: Arg, address: Address, where: str) -> None:
        data = address.data()
        self.ops += [
            option_plan.set_value(fd, REUSEADDR, 1, where),
            Op(call="bind", args=(fd, data, len(data.content)), subject=where,
               note=str(address), remedy=ADDRESS_REMEDY),
        ]  # fmt: skip

    # ---- connections that are over

    def _closed_by_peer(self, file_id: FileId) -> None:
        """Connected to ourselves, filled, and closed from the other side."""
        state, where = self.states[file_id], self._where(file_id)
        if leads_outside(state) and state.state != TCPState.CLOSE_WAIT:
            self.context.warn(f"{where}: comes back closed, as if its peer had reset it")
        mapped = state.family == AF.INET6 and len(state.source.ip) == 4
        socket, other = self._slot("closed"), self._slot("other")
        self.ops.append(
            Op(call="socket", args=(state.family, SOCK.STREAM, 0), subject=where, yields=socket)
        )
        if len(state.received) > ROOMY_BYTES:
            self.raised.add(file_id)
            self.ops += option_plan.raise_receive_buffer(socket, len(state.received), where)
        listener, room = self._loopback(state.family, where, mapped=mapped)
        self.ops += [
            Op(call="connect", args=(socket, room, SOCKADDR_SIZE[AF(state.family)]),
               subject=where, note="over the loopback device, to be closed"),
            Op(call="accept4", args=(listener, 0, 0, 0), subject=where, yields=other),
        ]  # fmt: skip
        self._send(other, state.received, where, None)
        gentle = state.state == TCPState.CLOSE_WAIT or (state.ended and not state.reset)
        if not gentle:
            linger = Data(struct.pack("<ii", 1, 0), 4, (), "{1, 0}")
            self.ops.append(
                Op(call="setsockopt", args=(other, SOL_SOCKET, SO.LINGER, linger, 8),
                   subject=where, note="close by a reset")
            )  # fmt: skip
        note = "the peer had closed" if gentle else "the peer resets: ECONNRESET"
        self.ops += [
            Op(call="close", args=(other,), subject=where, note=note),
            *move(socket, self.context.fd(file_id), subject=where),
        ]
        if state.ended and gentle:
            self.ops.append(
                Op(call="shutdown", args=(self.context.fd(file_id), SHUT_WR), subject=where)
            )

    def _loopback(self, family: int, where: str, *, mapped: bool) -> tuple[Slot, Data]:
        """A listener on a port of the kernel's choice, and room that holds its address."""
        key = (family, mapped)
        if key not in self.loopback:
            slot = self._slot("loopback")
            at = addresses.loopback(family, mapped=mapped).data()
            self.ops += [
                Op(call="socket", args=(family, SOCK.STREAM, 0), subject=where, yields=slot,
                   note="stands for peers outside"),
                Op(call="bind", args=(slot, at, len(at.content)), subject=where,
                   remedy="bring the loopback device up in this network namespace"),
                Op(call="listen", args=(slot, 16), subject=where),
            ]  # fmt: skip
            self.loopback[key] = slot
        room = Data(bytes(28), 4, (), "its address")
        size = Data(struct.pack("<I", 28), 4, (), "28")
        slot = self.loopback[key]
        self.ops.append(Op(call="getsockname", args=(slot, room, size), subject=where))
        return slot, room

    # ---- the others

    def _fresh(self, file_id: FileId, *, listen: bool) -> None:
        """A socket that is not connected; listeners are made in a second pass."""
        state, where = self.states[file_id], self._where(file_id)
        if (state.state == TCPState.LISTEN) != listen:
            return
        fd = self.context.fd(file_id)
        self.ops += place(
            Op(call="socket", args=(state.family, SOCK.STREAM, state.protocol), subject=where),
            fd,
        )
        self.ops += option_plan.early_ops(state.options, fd, where)
        if state.closed:
            self.ops.append(
                Op(call="shutdown", args=(fd, SHUT_RDWR), subject=where, expect=Expect.ANY,
                   note="ENOTCONN, and shut nevertheless")
            )  # fmt: skip
            return
        if state.source.port:
            at = moved(state.source, self.context)
            if state.state == TCPState.ESTABLISHED:
                at = self._local(state.source, file_id)
            self._bind(fd, at, where)
        if listen:
            self.ops += option_plan.buffer_ops(state.options, fd, where)
            self.ops.append(Op(call="listen", args=(fd, state.backlog), subject=where))

    def _wait(self, client_id: FileId, server_id: FileId) -> None:
        """A client that is not accepted yet."""
        client, where = self.states[client_id], self._where(client_id)
        if client.peer is None:
            return
        at = self._local(client.peer, client_id).data()
        self.ops.append(
            Op(call="connect", args=(self.context.fd(client_id), at, len(at.content)),
               subject=where, note=f"waits to be accepted by {self._where(server_id)}")
        )  # fmt: skip

    def _options(self, file_id: FileId, *, accepted: bool) -> None:
        state, where, fd = self.states[file_id], self._where(file_id), self.context.fd(file_id)
        if accepted:
            rest = (o for o in option_plan.early_ops(state.options, fd, where) if not _is_v6only(o))
            self.ops += rest
        self.ops += option_plan.late_ops(state.options, fd, where)
        if state.congestion and state.congestion != "cubic":
            name = Data(state.congestion.encode(), 1, (), repr(state.congestion))
            self.ops.append(
                Op(call="setsockopt",
                   args=(fd, IPPROTO.TCP, TCP.CONGESTION, name, len(name.content)),
                   subject=where, note="TCP_CONGESTION", expect=Expect.ANY)
            )  # fmt: skip

    def _send(self, fd: Arg, data: bytes, where: str, sender: FileId | None) -> None:
        """Queue bytes at the other end; of a pair all of them must go."""
        if not data:
            return
        if sender is not None and len(data) > ROOMY_BYTES:
            self.raised.add(sender)
            self.ops += option_plan.raise_send_buffer(fd, len(data), where)
        for piece in (data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)):
            self.ops.append(
                Op(call="sendto",
                   args=(fd, Data(piece, 8, (), f"<{len(piece)} bytes>"), len(piece),
                         MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0),
                   subject=where, note="queued again",
                   expect=Expect.ANY if sender is None else Expect.EQUAL, want=len(piece))
            )  # fmt: skip

    def _finish(self, file_id: FileId, *, paired: bool, waits: bool) -> None:
        state, where, fd = self.states[file_id], self._where(file_id), self.context.fd(file_id)
        if paired and state.state in FIN_SENT:
            self.ops.append(Op(call="shutdown", args=(fd, SHUT_WR), subject=where))
        if paired and state.shutdown:
            self.ops.append(Op(call="shutdown", args=(fd, SHUT_RD), subject=where))
        if state.state != TCPState.LISTEN:
            raised = file_id in self.raised
            self.ops += option_plan.buffer_ops(state.options, fd, where, raised=raised)
        fresh = state.source.port and not self._over(file_id) and not state.closed
        bound = paired or waits or fresh
        if bound and not state.options.value(SOL_SOCKET, SO.REUSEADDR):
            self.ops.append(option_plan.set_value(fd, REUSEADDR, 0, where))
        self.ops += status_flags(fd, state.flags, 0, where)

    def _slot(self, text: str) -> Slot:
        self.slots += 1
        return Slot(f"tcp_{text}{self.slots}")

    def _where(self, file_id: FileId) -> str:
        return subject(self.context, file_id, self.states[file_id].label)


def _missing(states: Mapping[FileId, InetState], file_id: FileId, other: FileId) -> bytes:
    """What the other end sent and this one has not received: the end of its send queue."""
    mine, theirs = states[file_id].stream, states[other].stream
    if mine is None or theirs is None:
        return b""
    behind = (theirs.out_sequence - mine.in_sequence) & MASK
    if states[other].state in FIN_SENT and behind:
        behind -= 1
    sent = states[other].sent
    return sent[len(sent) - behind :] if behind <= len(sent) else sent


def _is_v6only(op: Op) -> bool:
    return op.args[1:3] == (V6ONLY.level, V6ONLY.number)
