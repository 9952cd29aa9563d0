# SPDX-License-Identifier: Apache-2.0
"""How unix sockets come back: the order of making, connecting, filling and closing.

1. what leads outside: the new container's stdio, or what the caller hands in;
2. named and listening sockets, each at its own name;
3. connections: a pair without names by socketpair(2); with the name of a listener by
   connect(2) and accept(2), at the old listener or at one for the purpose;
4. options, then queued data from the other end (which may be one that is closed at the end);
5. clients that wait to be accepted, datagram peers, shutdown, sizes, status flags;
6. names that are gone are removed again.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torpor.engine.errors import Bug, Refused
from torpor.engine.files.common import created, status_flags, subject
from torpor.engine.kernel.abi import (
    AF,
    ENXIO,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    RENAME_NOREPLACE,
    S_IFSOCK,
    SOCK,
    SOL_SOCKET,
)
from torpor.engine.kind import FileId, Message, PlanContext, refuse
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot, move, place
from torpor.engine.sockets import option_plan
from torpor.engine.sockets.unix import (
    OUTSIDE,
    SCM_RIGHTS,
    SHUT_BOTH,
    UnixState,
    is_outside,
    readable,
)

AT_FDCWD = -100
O_RDONLY_NOFOLLOW = 0o400000 | 0o4000  # with O_NONBLOCK, for a fifo at the path
ROOMY_BYTES = 32768
CMSG_HEADER = 16
OTHER_FILE = "something else is at the socket's path: move it away"


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
    gone: list[bytes] = field(default_factory=list)
    """Paths to be removed at the end."""
    helpers: dict[tuple[bytes, int], Arg] = field(default_factory=dict)
    """Listeners for the purpose, by name and type."""
    bound: set[bytes] = field(default_factory=set)
    by_inode: dict[int, FileId] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    peers: dict[FileId, _End] = field(default_factory=dict)
    """The other end of each connection."""
    raised: dict[str, Arg] = field(default_factory=dict)
    """Descriptors whose send buffer we made larger."""
    anonymous: Slot | None = None
    slots: int = 0

    def run(self) -> list[Op]:
        self.by_inode = {s.inode: i for i, s in self.states.items()}
        self.waiting = {inode for s in self.states.values() for inode in s.pending}
        inodes = {s.inode: s for s in self.states.values()}
        outside = {i for i, s in self.states.items() if is_outside(s, inodes, self.waiting)}
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
            self._options(file_id)
        for file_id in rest:
            self._queue(file_id)
        for file_id in rest:
            self._clients(file_id)
        for file_id in rest:
            self._datagram_peer(file_id, outside=file_id in outside)
        for fd in (*self.closing, *self.helpers.values()):
            self.ops.append(Op(call="close", args=(fd,), note="only helped"))
        for file_id in rest:
            self._finish(file_id)
        self._remove()
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
        self._bind(fd, state, where)
        self.ops.append(Op(call="listen", args=(fd, state.backlog), subject=where))
        self.made[file_id] = _End(fd, state, where)

    def _other(self, file_id: FileId) -> None:
        """A connection (both ends at once), or a socket alone."""
        state, where = self.states[file_id], self._where(file_id)
        if state.inode in self.waiting:
            fd = self.context.fd(file_id)
            self._socket(fd, state, where)
            if state.name:
                self._bind(fd, state, where)
            self.made[file_id] = _End(fd, state, where)
            return
        other_id = self.by_inode.get(state.peer or 0)
        other = self.states[other_id] if other_id is not None else None
        if other_id is not None and other is not None and other.peer == state.inode:
            if other_id != file_id:
                self._pair(file_id, other_id)
                return
        elif state.peer == 0 and (state.stream or state.queue):
            self._pair(file_id, None)
            return
        fd = self.context.fd(file_id)
        self._socket(fd, state, where)
        if state.name:
            self._bind(fd, state, where)
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
        names = self._names(end, other)
        if not end.state or not end.state.stream:
            self._socketpair(end, other)
            for each in (end, other):
                if each.state is not None and each.state.name:
                    self._bind(each.fd, each.state, each.where)
        elif not any(names):
            self._socketpair(end, other)
        elif self._serves(end, names[0]) >= self._serves(other, names[1]):
            self._connected(other, end, names[1], names[0])
        else:
            self._connected(end, other, names[0], names[1])
        self.peers[file_id] = other
        if other_id is not None:
            self.peers[other_id] = end

    def _names(self, end: _End, other: _End) -> tuple[bytes, bytes]:
        """The names of both; that of a closed end is known by getpeername."""
        mine = end.state.name if end.state else b""
        if other.state is not None:
            return mine, other.state.name
        theirs = end.state.peer_name if end.state else b""
        relative = theirs[:1] not in (b"", b"\0", b"/")
        return mine, b"" if relative else theirs

    def _serves(self, end: _End, name: bytes) -> int:
        """How sure we are that an end is the accepted one."""
        if not name:
            return 0
        listens = any(s.listening and s.name == name for s in self.states.values())
        return 2 if listens else 1

    def _socketpair(self, end: _End, other: _End) -> None:
        kind = _kind(end, other)
        room = Data.room(8)
        first, second = self._slot("end"), self._slot("end")
        self.ops += [
            Op(call="socketpair", args=(AF.UNIX, kind, 0, room), subject=end.where),
            Op(call="@load32", args=(room, 0), yields=first),
            Op(call="@load32", args=(room, 4), yields=second),
        ]
        self._put(first, end)
        self._put(second, other)

    def _connected(
        self, client: _End, server: _End, client_name: bytes, server_name: bytes
    ) -> None:
        """``server`` is what accept(2) gives at the listener of that name."""
        kind = _kind(server, client)
        listener = self._listener_for(server, server_name, kind)
        socket = self._slot("client")
        self.ops.append(
            Op(call="socket", args=(AF.UNIX, kind, 0), subject=client.where, yields=socket)
        )
        if client_name and client_name not in self.bound and client.state is not None:
            self._bind(socket, client.state, client.where)
        accepted = self._slot("accepted")
        self.ops += [
            self._connect(socket, self._address(server_name), client.where, server_name),
            Op(call="accept4", args=(listener, 0, 0, 0), subject=server.where, yields=accepted),
        ]
        self._put(socket, client)
        self._put(accepted, server)

    def _listener_for(self, server: _End, name: bytes, kind: int) -> Arg:
        """The old listener, or one for the purpose."""
        for file_id, state in self.states.items():
            if state.listening and state.name == name and state.kind == kind:
                return self.made[file_id].fd
        if (name, kind) not in self.helpers:
            slot = self._slot("listener")
            self.helpers[name, kind] = slot
            self.ops.append(
                Op(call="socket", args=(AF.UNIX, kind, 0), subject=server.where, yields=slot,
                   note="listener for the purpose")
            )  # fmt: skip
            if server.state is not None and server.state.name == name:
                self._bind(slot, server.state, server.where)
            else:
                named = UnixState(inode=0, kind=kind, flags=0, name=name, deleted=True)
                self._bind(slot, named, server.where)
            self.ops.append(Op(call="listen", args=(slot, 16), subject=server.where))
        return self.helpers[name, kind]

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

    def _bind(self, fd: Arg, state: UnixState, where: str) -> None:
        """Bind to the name; of a path also its mode and owner."""
        if state.name[:1] == b"\0":
            self.ops.append(self._bind_op(fd, state.name, where))
            return
        path = Data.path(state.name)
        if state.directory:
            directory = Data.path(state.directory)
            self.ops.append(Op(call="chdir", args=(directory,), subject=where))
        if state.deleted:
            aside = Data.path(_aside(state.name))
            self.ops.append(
                Op(call="renameat2", args=(AT_FDCWD, path, AT_FDCWD, aside, RENAME_NOREPLACE),
                   subject=where, note="set aside what is at the path", expect=Expect.ANY,
                   yields=Slot(f"aside {readable(state.name)}"),
                   undo=(Op(call="renameat2", expect=Expect.ANY, subject=where,
                            args=(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE)),))
            )  # fmt: skip
            self.gone.append(state.name)
        else:
            self.ops += _remove_stale(path, where, Slot(f"made {readable(state.name)}"))
        self.bound.add(state.name)
        bind = self._bind_op(fd, state.name, where)
        self.ops.append(replace(bind, undo=(_unlink(path, where),)) if state.deleted else bind)
        if not state.deleted:
            self.ops += [
                Op(call="fchownat", args=(AT_FDCWD, path, state.uid, state.gid, 0), subject=where),
                Op(call="fchmodat", args=(AT_FDCWD, path, state.mode), subject=where),
            ]

    def _bind_op(self, fd: Arg, name: bytes, where: str) -> Op:
        address = self._address(name)
        return Op(
            call="bind", args=(fd, address, len(address.content)), subject=where,
            note=readable(name), remedy=f"make sure that nothing else uses {readable(name)}",
        )  # fmt: skip

    def _connect(self, fd: Arg, address: Data, where: str, name: bytes) -> Op:
        return Op(
            call="connect", args=(fd, address, len(address.content)), subject=where,
            note=readable(name),
        )  # fmt: skip

    @staticmethod
    def _address(name: bytes) -> Data:
        end = b"" if name[:1] == b"\0" else b"\0"
        return Data(struct.pack("<H", AF.UNIX) + name + end, 2, (), f"'{readable(name)}'")

    # ---- filling

    def _options(self, file_id: FileId) -> None:
        end, state = self.made[file_id], self.states[file_id]
        self.ops += option_plan.early_ops(state.options, end.fd, end.where)
        self.ops += option_plan.late_ops(state.options, end.fd, end.where)

    def _queue(self, file_id: FileId) -> None:
        state, end = self.states[file_id], self.made[file_id]
        total = sum(len(m.data) for m in state.queue)
        senders: dict[str, Arg] = {}
        for message in state.queue:
            sender, address = self._sender(file_id, message.address[2:])
            if total > ROOMY_BYTES and repr(sender) not in senders:
                senders[repr(sender)] = sender
                self.ops += option_plan.raise_send_buffer(sender, total, end.where)
            self.ops.append(self._send(sender, address, message, end.where))
        self.raised.update(senders)
        if state.reset and state.peer == 0:
            self.ops.append(
                Op(call="sendto",
                   args=(end.fd, Data(b"!", 1, (), "<1 byte>"), 1, MSG_NOSIGNAL, 0, 0),
                   subject=end.where, note="unread at the other end's death: ECONNRESET")
            )  # fmt: skip

    def _send(self, sender: Arg, address: Data | None, message: Message, where: str) -> Op:
        """One message, with the descriptors that it carries."""
        size, flags = len(message.data), MSG_DONTWAIT | MSG_NOSIGNAL
        data = Data(message.data or b"\0", 8, (), f"<{size} bytes>")
        if not message.rights:
            to: tuple[Arg, ...] = (address, len(address.content)) if address else (0, 0)
            return Op(
                call="sendto", args=(sender, data, size, flags, *to), subject=where,
                note="queued again", expect=Expect.EQUAL, want=size,
            )  # fmt: skip
        header = _header(data, size, address, [self.context.fd(one) for one in message.rights])
        return Op(
            call="sendmsg", args=(sender, header, flags), subject=where,
            note=f"queued again with {len(message.rights)} descriptors",
            expect=Expect.EQUAL, want=size,
        )  # fmt: skip

    def _sender(self, file_id: FileId, name: bytes) -> tuple[Arg, Data | None]:
        """Who sends a message again, and the address it must use (None: it is connected)."""
        state = self.states[file_id]
        if file_id in self.peers:
            return self.peers[file_id].fd, None
        for other_id, other in self.states.items():
            if name and other.name == name.rstrip(b"\0" if name[:1] != b"\0" else b""):
                return self.made[other_id].fd, self._address(state.name)
        if not state.name:
            raise Refused(
                "datagrams are queued at a unix socket that has neither name nor peer",
                subject=self.made[file_id].where,
                remedy="let the task read them before the checkpoint",
            )
        if self.anonymous is None:
            self.anonymous = self._slot("sender")
            self.closing.append(self.anonymous)
            self.ops.append(
                Op(call="socket", args=(AF.UNIX, SOCK.DGRAM, 0), yields=self.anonymous,
                   note="for senders that are not in the tree")
            )  # fmt: skip
        if name:
            self.context.warn(
                f"{self.made[file_id].where}: a queued message from {readable(name)} comes "
                "back without its sender"
            )
        return self.anonymous, self._address(state.name)

    def _clients(self, file_id: FileId) -> None:
        """Clients of a listener that are not accepted yet, in their order."""
        state = self.states[file_id]
        for inode in state.pending:
            client_id = self.by_inode.get(inode)
            if client_id is None:
                continue
            client = self.made[client_id]
            address = self._address(state.name)
            self.ops.append(self._connect(client.fd, address, client.where, state.name))

    def _datagram_peer(self, file_id: FileId, *, outside: bool) -> None:
        """One-way connection of a datagram socket, by the other's name."""
        state, end = self.states[file_id], self.made[file_id]
        if state.stream or state.peer is None or file_id in self.peers:
            return
        peer_id = self.by_inode.get(state.peer)
        name = self.states[peer_id].name if peer_id is not None else state.peer_name
        if not name:
            return
        op = self._connect(end.fd, self._address(name), end.where, name)
        if outside or peer_id is None:
            op = Op(call=op.call, args=op.args, subject=op.subject, note=op.note,
                    expect=Expect.ANY)  # fmt: skip
        self.ops.append(op)

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

    def _remove(self) -> None:
        for name in self.gone:
            path, aside = Data.path(name), Data.path(_aside(name))
            self.ops += [
                Op(call="unlinkat", args=(AT_FDCWD, path, 0), note="its name was gone",
                   expect=Expect.ANY),
                Op(call="renameat2", args=(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE),
                   note="what was set aside", expect=Expect.ANY),
            ]  # fmt: skip

    def _slot(self, text: str) -> Slot:
        self.slots += 1
        return Slot(f"unix_{text}{self.slots}")

    def _where(self, file_id: FileId) -> str:
        return subject(self.context, file_id, self.states[file_id].label)


def _header(data: Data, size: int, address: Data | None, fds: Sequence[int]) -> Data:
    """Struct msghdr with one cmsghdr of SCM_RIGHTS."""
    rights = struct.pack(f"<{len(fds)}i", *fds)
    head = struct.pack("<Qii", CMSG_HEADER + len(rights), SOL_SOCKET, SCM_RIGHTS)
    control = Data(head + rights + bytes(-len(rights) % 8), 8, (), f"rights {[*fds]}")
    vector = Data(struct.pack("<QQ", 0, size), 8, ((0, data),), "iovec")
    raw = struct.pack(
        "<QIxxxxQQQQixxxx",
        0, len(address.content) if address else 0, 0, 1, 0, CMSG_HEADER + len(rights), 0,
    )  # fmt: skip
    pointers = [(16, vector), (32, control)]
    if address:
        pointers.append((0, address))
    return Data(raw, 8, tuple(pointers), f"message of {size} bytes")


def _unlink(path: Data, where: str) -> Op:
    return Op(call="unlinkat", args=(AT_FDCWD, path, 0), subject=where, expect=Expect.ANY)


def _remove_stale(path: Data, where: str, made: Slot) -> list[Op]:
    """Unlink what an earlier run left, but only a socket: open(2) of one gives ENXIO.

    There is always something to unlink, because a socket file is made first; when that could be
    made, no name is to be left by a restore that fails.
    """
    return [
        Op(call="mknodat", args=(AT_FDCWD, path, S_IFSOCK | 0o600, 0), subject=where,
           expect=Expect.ANY, yields=made, undo=(_unlink(path, where),)),
        Op(call="openat", args=(AT_FDCWD, path, O_RDONLY_NOFOLLOW, 0), subject=where,
           note="a socket gives ENXIO", remedy=OTHER_FILE, expect=Expect.EQUAL, want=-ENXIO),
        Op(call="unlinkat", args=(AT_FDCWD, path, 0), subject=where, note="left by an earlier run"),
    ]  # fmt: skip


def _aside(name: bytes) -> bytes:
    return name + b".torpor-aside"


def _kind(end: _End, other: _End) -> int:
    state = end.state or other.state
    if state is None:
        raise Bug("a pair of unix sockets without a state", subject=end.where)
    return state.kind
