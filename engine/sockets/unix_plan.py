# SPDX-License-Identifier: Apache-2.0
"""How unix sockets come back: the order of making, connecting, filling and closing.

1. what leads outside: the new container's stdio, or what the caller hands in;
2. named and listening sockets, each at its own name;
3. connections: a pair without names by socketpair(2); with the name of a listener by
   connect(2) and accept(2), at the old listener or at one for the purpose;
4. options, then queued data from the other end (which may be one that is closed at the end);
5. clients that wait to be accepted, datagram peers, shutdown, sizes, status flags;
6. the files of names get to their places: `unix_bind`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torpor.engine.errors import Bug, Refused
from torpor.engine.files.common import created, status_flags, subject
from torpor.engine.kernel.abi import AF, MSG_NOSIGNAL, SOCK
from torpor.engine.kind import FileId, PlanContext, refuse
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot, move, place
from torpor.engine.sockets import option_plan
from torpor.engine.sockets.unix import OUTSIDE
from torpor.engine.sockets.unix_bind import Binder, Key, address, bind, folder_of, key_of
from torpor.engine.sockets.unix_creds import Impostor
from torpor.engine.sockets.unix_messages import sent
from torpor.engine.sockets.unix_state import (
    SHUT_BOTH,
    Creator,
    Place,
    UnixState,
    is_outside,
    readable,
    strip_name,
)

ROOMY_BYTES = 32768


def plan(states: Mapping[FileId, UnixState], context: PlanContext) -> Sequence[Op]:
    """Operations for all unix sockets of the tree."""
    return _Planner(dict(sorted(created(states, context).items())), context).run()


@dataclass(slots=True)
class _End:
    """An end of a connection: a descriptor (number or slot) and what it shall be."""

    fd: Arg
    state: UnixState | None
    where: str


@dataclass(slots=True)
class _Planner:
    states: Mapping[FileId, UnixState]
    context: PlanContext
    ops: list[Op] = field(default_factory=list)
    made: dict[FileId, _End] = field(default_factory=dict)
    closing: list[Arg] = field(default_factory=list)
    """Ends that only helped; closed once all is sent."""
    names: Binder = field(init=False)
    impostor: Impostor = field(init=False)
    helpers: dict[tuple[Key, int], Arg] = field(default_factory=dict)
    """Listeners for the purpose, by name and type."""
    by_inode: dict[int, FileId] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    mates: dict[FileId, FileId] = field(default_factory=dict)
    """Ends that are made at once."""
    peers: dict[FileId, _End] = field(default_factory=dict)
    """The other end of each connection."""
    raised: dict[str, Arg] = field(default_factory=dict)
    """Descriptors whose send buffer we made larger."""
    stand_ins: dict[bytes, Slot] = field(default_factory=dict)
    """By name: senders that are not in the tree."""
    slots: int = 0

    def __post_init__(self) -> None:
        self.names = Binder(self.ops)
        self.impostor = Impostor(self.context)

    def run(self) -> list[Op]:
        self.by_inode = {s.inode: i for i, s in self.states.items()}
        self.waiting = {inode for s in self.states.values() for inode in s.pending}
        inodes = {s.inode: s for s in self.states.values()}
        self.mates = _mates(self.states)
        outside = {i for i, s in self.states.items() if is_outside(s, inodes, self.waiting)}
        self.ops += self.impostor.begin(self.states.values())
        for file_id in outside:
            if self.states[file_id].stream or not self.states[file_id].peer_name:
                self._take_from_outside(file_id)
        rest = [i for i in self.states if i not in self.made]
        for file_id in rest:
            if self.states[file_id].listening:
                self._listener(file_id)
        for file_id in rest:
            if file_id not in self.made:
                self._other(file_id)
        for file_id in rest:
            self._queue(file_id)
        for file_id in rest:
            self._options(file_id)
        for file_id in rest:
            self._clients(file_id)
        for file_id in rest:
            self._datagram_peer(file_id, outside=file_id in outside)
        for fd in (*self.closing, *self.helpers.values()):
            self.ops.append(Op(call="close", args=(fd,), note="only helped"))
        for file_id in rest:
            self._finish(file_id)
        self.names.finish()
        return self.ops

    # ---- making

    def _take_from_outside(self, file_id: FileId) -> None:
        """Stdio of the new container, or what the caller hands in under the old name."""
        state = self.states[file_id]
        where = self._where(file_id)
        source = self.context.inherit.get(f"socket:[{state.inode}]")
        if source is None:
            numbers = [h.fd for h in self.context.holders.get(file_id, ()) if h.fd <= 2]
            source = self.context.stdio.get(min(numbers, default=-1))
        if source is None:
            raise refuse(OUTSIDE, where, "nothing was given in its place")
        fd = self.context.fd(file_id)
        self.ops.append(
            Op(call="dup3", args=(source, fd, 0), subject=where, note="from outside",
               expect=Expect.EQUAL, want=fd)
        )  # fmt: skip
        self.made[file_id] = _End(fd, state, where)

    def _listener(self, file_id: FileId) -> None:
        state, where = self.states[file_id], self._where(file_id)
        fd = self.context.fd(file_id)
        self._socket(fd, state, where)
        self.names.bind(fd, state, where)
        listen = Op(call="listen", args=(fd, state.backlog), subject=where)
        self.ops += self.impostor.of(state.creator, [listen])
        self.made[file_id] = _End(fd, state, where)

    def _other(self, file_id: FileId) -> None:
        """A connection (both ends at once), or a socket alone."""
        state, where = self.states[file_id], self._where(file_id)
        if state.inode in self.waiting:
            fd = self.context.fd(file_id)
            self._socket(fd, state, where)
            if state.name:
                self.names.bind(fd, state, where)
            self.made[file_id] = _End(fd, state, where)
            return
        other_id = self.mates.get(file_id)
        if other_id is not None:
            self._pair(file_id, other_id)
            return
        nameless = not state.stream and not state.name and state.peer is None
        had_end = state.peer == 0 and (state.stream or state.queue or not state.peer_name)
        if had_end or (state.queue and nameless):
            self._pair(file_id, None)
            return
        fd = self.context.fd(file_id)
        self._socket(fd, state, where)
        if state.name:
            self.names.bind(fd, state, where)
        self.made[file_id] = _End(fd, state, where)

    def _pair(self, file_id: FileId, other_id: FileId | None) -> None:
        """Two ends; without ``other_id`` the other one is closed when it has sent."""
        end = _End(self.context.fd(file_id), self.states[file_id], self._where(file_id))
        if other_id is None:
            other = _End(self._slot("gone"), None, end.where)
            self.closing.append(other.fd)
        else:
            other = _End(self.context.fd(other_id), self.states[other_id], self._where(other_id))
            self.made[other_id] = other
        self.made[file_id] = end
        self._join(end, other)
        self.peers[file_id] = other
        if other_id is not None:
            self.peers[other_id] = end

    def _join(self, end: _End, other: _End) -> None:
        """Make both ends of a connection."""
        mine, theirs = self._named(end, other), self._named(other, end)
        if not end.state or not end.state.stream:
            self._socketpair(end, other)
            for each in (end, other):
                if each.state is not None and each.state.name:
                    self.names.bind(each.fd, each.state, each.where)
            self._forget(end, other)
        elif mine is None and theirs is None:
            self._socketpair(end, other)
        elif mine is not None and self._serves(end) >= self._serves(other):
            self._connected(other, end, mine)
        elif theirs is not None:
            self._connected(end, other, theirs)

    def _forget(self, *ends: _End) -> None:
        """An end that does not send back is disconnected before anything is queued."""
        inodes = {each.state.inode for each in ends if each.state is not None}
        nobody = Data(bytes(2), 2, (), "AF_UNSPEC")
        for each in ends:
            if len(inodes) == 2 and each.state is not None and each.state.peer not in inodes:
                self.ops.append(
                    Op(call="connect", args=(each.fd, nobody, 2), subject=each.where,
                       note="sends to nobody")
                )  # fmt: skip

    def _named(self, end: _End, other: _End) -> UnixState | None:
        """An end with a name; that of a closed one is known by getpeername."""
        if end.state is not None:
            return end.state if end.state.name else None
        state = other.state
        if state is None or not state.peer_name or state.peer_name[:1] not in (b"\0", b"/"):
            return None
        for each in self.states.values():  # what it was accepted by may be there still
            if each.listening and each.name == state.peer_name and each.kind == state.kind:
                return each
        place = Place(deleted=True, folder=state.peer_folder)
        return UnixState(
            inode=state.inode, kind=state.kind, flags=0, name=state.peer_name, place=place
        )

    def _serves(self, end: _End) -> tuple[int, int]:
        """How sure we are that an end is the accepted one, which is made after the caller."""
        if end.state is None or not end.state.name:
            return 0, 0
        alike = [s for s in self.states.values() if key_of(s) == key_of(end.state)]
        rank = 3 if any(s.listening for s in alike) else min(len(alike), 2)
        return rank, end.state.inode

    def _socketpair(self, end: _End, other: _End) -> None:
        kind = _kind(end, other)
        room = Data.room(8)
        first, second = self._slot("end"), self._slot("end")
        known = end.state or other.state
        creator = known.creator if known is not None else None
        pair = [
            Op(call="socketpair", args=(AF.UNIX, kind, 0, room), subject=end.where),
            Op(call="@load32", args=(room, 0), yields=first),
            Op(call="@load32", args=(room, 4), yields=second),
        ]
        self.ops += self.impostor.of(creator, pair)
        self._put(first, end)
        self._put(second, other)

    def _connected(self, client: _End, server: _End, named: UnixState) -> None:
        """``server`` is what accept(2) gives at the listener of that name."""
        kind = _kind(server, client)
        listener = self._listener_for(named, kind, server.where, _creator(client))
        socket = self._slot("client")
        self.ops.append(
            Op(call="socket", args=(AF.UNIX, kind, 0), subject=client.where, yields=socket)
        )
        mine = client.state
        if mine is not None and mine.name and key_of(mine) not in self.names.bound:
            self.names.bind(socket, mine, client.where)
        accepted = self._slot("accepted")
        ways, to = self.names.reach(named)
        connect = [*ways, self._connect(socket, to, client.where, named.name)]
        self.ops += [
            *self.impostor.of(_creator(server), connect),
            Op(call="accept4", args=(listener, 0, 0, 0), subject=server.where, yields=accepted),
        ]
        self._put(socket, client)
        self._put(accepted, server)

    def _listener_for(
        self, named: UnixState, kind: int, where: str, creator: Creator | None
    ) -> Arg:
        """The old listener, or one for the purpose."""
        key = key_of(named)
        for file_id, state in self.states.items():
            if state.listening and key_of(state) == key and state.kind == kind:
                return self.made[file_id].fd
        if (key, kind) not in self.helpers:
            slot = self._slot("listener")
            self.helpers[key, kind] = slot
            self.ops.append(
                Op(call="socket", args=(AF.UNIX, kind, 0), subject=where, yields=slot,
                   note="listener for the purpose")
            )  # fmt: skip
            self.names.bind(slot, named, where)
            listen = Op(call="listen", args=(slot, 16), subject=where)
            self.ops += self.impostor.of(creator, [listen])
        return self.helpers[key, kind]

    def _put(self, made: Slot, end: _End) -> None:
        """To the service number; an end that only helps stays in its slot."""
        if isinstance(end.fd, Slot):
            self.ops.append(
                Op(call="dup", args=(made,), yields=end.fd, subject=end.where,
                   note="closed again at the end")
            )  # fmt: skip
            self.ops.append(Op(call="close", args=(made,), subject=end.where))
        elif isinstance(end.fd, int):
            self.ops += move(made, end.fd, subject=end.where)

    def _socket(self, fd: int, state: UnixState, where: str) -> None:
        self.ops += place(Op(call="socket", args=(AF.UNIX, state.kind, 0), subject=where), fd)

    def _connect(self, fd: Arg, address: Data, where: str, name: bytes) -> Op:
        return Op(
            call="connect", args=(fd, address, len(address.content)), subject=where,
            note=readable(name),
        )  # fmt: skip

    # ---- filling

    def _options(self, file_id: FileId) -> None:
        end, state = self.made[file_id], self.states[file_id]
        self.ops += option_plan.early_ops(state.options, end.fd, end.where)
        self.ops += option_plan.late_ops(state.options, end.fd, end.where)

    def _queue(self, file_id: FileId) -> None:
        state, end = self.states[file_id], self.made[file_id]
        total = sum(len(m.data) for m in state.queue)
        senders: dict[str, Arg] = {}
        stream = state.kind == SOCK.STREAM
        for message in state.queue:
            sender, ways, to = self._sender(file_id, message.address[2:])
            if total > ROOMY_BYTES and repr(sender) not in senders:
                senders[repr(sender)] = sender
                self.ops += option_plan.raise_send_buffer(sender, total, end.where)
            if ways and message.creds:
                ways = self.impostor.by(message.creds[0], ways)
            self.ops += [*ways, *sent(self.impostor, sender, to, message, end.where, stream=stream)]
        self.raised.update(senders)
        if state.reset and state.peer == 0:
            self.ops.append(
                Op(call="sendto",
                   args=(end.fd, Data(b"!", 1, (), "<1 byte>"), 1, MSG_NOSIGNAL, 0, 0),
                   subject=end.where, note="unread at the other end's death: ECONNRESET")
            )  # fmt: skip

    def _sender(self, file_id: FileId, name: bytes) -> tuple[Arg, list[Op], Data | None]:
        """Who sends a message again, and the address it must use (None: it is connected)."""
        state = self.states[file_id]
        if file_id in self.peers:
            return self.peers[file_id].fd, [], None
        ways, to = self.names.reach(state)
        for other_id, other in self.states.items():
            if name and other.name == strip_name(name):
                return self.made[other_id].fd, ways, to
        if state.peer == state.inode:
            return self.made[file_id].fd, ways, to
        if not state.name:
            raise Refused(
                "datagrams are queued at a unix socket that has neither name nor peer",
                subject=self.made[file_id].where,
                remedy="let the task read them before the checkpoint",
            )
        return self._stand_in(strip_name(name), state), ways, to

    def _stand_in(self, name: bytes, receiver: UnixState) -> Arg:
        """A socket with the name of a sender that is not in the tree any more."""
        if name not in self.stand_ins:
            slot = self.stand_ins[name] = self._slot("sender")
            self.closing.append(slot)
            where = f"sender {readable(name) or 'without a name'}"
            self.ops.append(
                Op(call="socket", args=(AF.UNIX, SOCK.DGRAM, 0), yields=slot, subject=where,
                   note="it is not in the tree")
            )  # fmt: skip
            if name[:1] == b"\0":
                self.ops.append(replace(bind(slot, name, where), expect=Expect.ANY))
            elif name[:1] == b"/" and receiver.has_path:
                self._bind_stand_in(slot, name, receiver, where)
            elif name:
                self.context.warn(
                    f"a queued message from {readable(name)} comes back without its sender"
                )
        return self.stand_ins[name]

    def _bind_stand_in(self, slot: Slot, name: bytes, receiver: UnixState, where: str) -> None:
        number = len(self.stand_ins)
        place = Place(deleted=True, folder=folder_of(receiver), file=-number)
        gone = UnixState(inode=number, kind=SOCK.DGRAM, flags=0, name=name, place=place)
        self.names.bind(slot, gone, where)

    def _clients(self, file_id: FileId) -> None:
        """Clients of a listener that are not accepted yet, in their order."""
        state = self.states[file_id]
        for inode in state.pending:
            client_id = self.by_inode.get(inode)
            if client_id is None:
                continue
            client = self.made[client_id]
            ways, to = self.names.reach(state)
            connect = [*ways, self._connect(client.fd, to, client.where, state.name)]
            self.ops += self.impostor.of(self._caller(client_id), connect)

    def _caller(self, file_id: FileId) -> Creator:
        """Who has called by a socket that is not accepted: as far as is known, who has it."""
        options, held = self.states[file_id].options, self.context.holders.get(file_id, ())
        tasks = {one.task for one in held}
        return Creator(
            pid=tasks.pop() if len(tasks) == 1 else 0, uid=options.uid, gid=options.gid,
            groups=self.impostor.groups,
        )  # fmt: skip

    def _datagram_peer(self, file_id: FileId, *, outside: bool) -> None:
        """One-way connection of a datagram socket, by the other's name."""
        state, end = self.states[file_id], self.made[file_id]
        if state.stream or state.peer is None or file_id in self.peers:
            return
        peer_id = self.by_inode.get(state.peer)
        name = self.states[peer_id].name if peer_id is not None else state.peer_name
        if not name:
            return
        if peer_id is not None:
            ways, to = self.names.reach(self.states[peer_id])
        else:
            ways, to = [], address(name)
        op = self._connect(end.fd, to, end.where, name)
        anyhow = outside or peer_id is None
        self.ops += [*ways, replace(op, expect=Expect.ANY) if anyhow else op]

    # ---- the end

    def _finish(self, file_id: FileId) -> None:
        state, end = self.states[file_id], self.made[file_id]
        if 0 < state.shutdown <= SHUT_BOTH and state.peer != 0:
            self.ops.append(
                Op(call="shutdown", args=(end.fd, state.shutdown - 1), subject=end.where,
                   expect=Expect.OK if state.peer else Expect.ANY)
            )  # fmt: skip
        raised = repr(end.fd) in self.raised
        self.ops += option_plan.buffer_ops(state.options, end.fd, end.where, raised=raised)
        if isinstance(end.fd, int):
            self.ops += status_flags(end.fd, state.flags, 0, end.where)

    def _slot(self, text: str) -> Slot:
        self.slots += 1
        return Slot(f"unix_{text}{self.slots}")

    def _where(self, file_id: FileId) -> str:
        return subject(self.context, file_id, self.states[file_id].label)


def _mates(states: Mapping[FileId, UnixState]) -> dict[FileId, FileId]:
    """Both send to each other, or one to the other, which cannot be called by a name."""
    by_inode, found = {s.inode: i for i, s in states.items()}, dict[FileId, FileId]()
    for one, state in states.items():
        two = by_inode.get(state.peer or 0)
        if two is None or two == one or one in found or two in found:
            continue
        other = states[two]
        if other.peer == state.inode or not (state.stream or other.name or other.peer):
            found[one], found[two] = two, one
    return found


def _creator(end: _End) -> Creator | None:
    return end.state.creator if end.state is not None else None


def _kind(end: _End, other: _End) -> int:
    state = end.state or other.state
    if state is None:
        raise Bug("a pair of unix sockets without a state", subject=end.where)
    return state.kind
