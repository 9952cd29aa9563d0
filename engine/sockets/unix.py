# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: pairs, listening, connected, datagram; names, queued data, closed ends.

Facts:
- unix_diag gives by inode: type, state, name, the file of a bound path (inode, device), the
  peer's inode (0 when that end was closed, or waits to be accepted), the clients that wait at
  a listener, shutdown. It sees one network namespace: that of the socket's creation.
- A stream's end that was accepted has the name of the listener. bind(2) cannot give it that
  name, so such a pair is made again by connect(2) and accept(2).
- Bytes and messages in the receive queue are peeked at; the other end sends them again.
- Descriptors in flight are counted by `scm_fds:` of fdinfo, and had by peeking at the message.
  They are descriptions like all others, made by the root, who sends them again: `files/table.py`.
- A bound path stays when its socket goes. A stale file at the path is replaced only when it
  is a socket (open(2) of one gives ENXIO). Mode and owner of the file are set back.
- An end with unread data at the other end's death has ECONNRESET pending (POLLERR).
- Cannot be set back: SO_PEERCRED and the credentials of queued messages are those of the
  restoring root; the send queue's accounting starts anew; an empty datagram behind another
  one cannot be seen; getpeername of a datagram socket whose peer is gone is lost.

Source: unix(7); net/unix/af_unix.c, net/unix/diag.c (v6.8).
CRIU: unix_sk_entry; sk-queues.img. Not in it: senders of datagrams, order of waiting
clients, pending reset (torpor.json, section `unix`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

from torpor.engine.errors import Refused
from torpor.engine.files.common import (
    NOBODY,
    Owner,
    decode_owner,
    encode_owner,
    late_owners,
    read_owner,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import AF, POLLERR, S_IFSOCK, SO, SOCK, SOL_SOCKET, TCPState
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    Message,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Op
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.options import SocketOptions

TYPES = (SOCK.STREAM, SOCK.DGRAM, SOCK.SEQPACKET)
FAMILY_SIZE = 2
SHUT_BOTH = 3
USK_EXTERN = 1
SCM_RIGHTS = 1
MADE_LATE = ("anon_inode:[eventpoll]", "anon_inode:[pidfd]", "pidfd")
"""Links of what is made when all tasks are there: too late to be sent again."""
SECTION = "unix"
DIAG = "unix_diag"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixState:
    """One socket. ``name`` as in sun_path: absolute or relative path, or NUL and bytes."""

    inode: int
    kind: int
    flags: int
    name: bytes = b""
    peer: int | None = None
    """Inode of the other end, 0 when it is closed or waits to be accepted, None: none."""
    peer_name: bytes = b""
    listening: bool = False
    backlog: int = 0
    pending: tuple[int, ...] = ()
    """Inodes of clients that wait to be accepted here, in their order."""
    shutdown: int = 0
    reset: bool = False
    mode: int = 0o777
    uid: int = 0
    gid: int = 0
    deleted: bool = False
    """The path leads elsewhere now."""
    directory: str = ""
    """Where a relative name starts."""
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)
    queue: tuple[Message, ...] = ()

    @property
    def stream(self) -> bool:
        """Connections (also seqpacket), not datagrams."""
        return self.kind != SOCK.DGRAM

    @property
    def label(self) -> str:
        """`unix:[9123] /run/x.sock`."""
        name = readable(self.name)
        return f"unix:[{self.inode}] {name}" if name else f"unix:[{self.inode}]"


OUTSIDE = Limit(
    case="unix-outside",
    what="this unix socket is connected to a task outside of the tree",
    remedy="checkpoint the other end as well, close the connection before, or name it with "
    "--external unix[INODE] and give another to the restore by --inherit-fd fd[N]:socket[INODE]",
)
IN_FLIGHT = Limit(
    case="unix-in-flight",
    what="an epoll or pidfd is on its way through this unix socket (SCM_RIGHTS)",
    remedy="let the receiver take them, then take the checkpoint again",
)
UNACCEPTED_OUTSIDE = Limit(
    case="unix-unaccepted-outside",
    what="a client outside of the tree waits to be accepted by this listening unix socket",
    remedy="let the server accept it, then take the checkpoint again",
)
UNACCEPTED_DATA = Limit(
    case="unix-unaccepted-data",
    what="data was sent on a unix connection that is not accepted yet",
    remedy="let the server accept it, then take the checkpoint again",
)
RELATIVE = Limit(
    case="unix-relative",
    what="this unix socket is bound to a relative path and its directory is not known",
    remedy="bind to an absolute path, or stay in the directory of the socket",
)
NAMELESS_PEER = Limit(
    case="unix-datagram-nameless-peer",
    what="this datagram socket sends to one that has no name and does not send back",
    remedy="connect both ends to each other, or bind the receiver",
)
LIMITS = (
    OUTSIDE, IN_FLIGHT, UNACCEPTED_OUTSIDE, UNACCEPTED_DATA, RELATIVE, NAMELESS_PEER,
    sockopts.FILTER_UNREADABLE,
)  # fmt: skip


@runtime_checkable
class KnowsPaths(Protocol):
    """A view that knows more of the task's paths than `FdView` asks for."""

    @property
    def cwd(self) -> str:
        """Text of /proc/PID/cwd."""

    def path_perms(self, path: str) -> tuple[int, int, int] | None:
        """Mode, uid and gid of what is at a path."""


def readable(name: bytes) -> str:
    """A name for messages: `/path`, `@abstract`."""
    text = name.decode("utf-8", "backslashreplace")
    return "@" + text[1:].replace("\0", "\\0") if name[:1] == b"\0" else text


class Unix:
    """The kind."""

    name = "unix socket"
    types = ("UNIXSK",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By family."""
        return (
            view.st_mode & 0o170000 == S_IFSOCK
            and view.link.startswith("socket:[")
            and sockopts.number(view, SOL_SOCKET, SO.DOMAIN) == AF.UNIX
        )

    def collect(self, view: FdView, context: DumpContext) -> UnixState:
        """Read the state."""
        known = _diag(view, context)
        kind = sockopts.number(view, SOL_SOCKET, SO.TYPE) or SOCK.STREAM
        name = strip_name(view.sockname()[FAMILY_SIZE:])
        listening = bool(sockopts.number(view, SOL_SOCKET, SO.ACCEPTCONN))
        connected = view.peername()
        queue = () if listening else _queue(view, context)
        peer = None if connected is None else -1
        deleted = _deleted(view, name, known)
        mode, uid, gid = _perms(view, name) if not deleted else (0o777, 0, 0)
        if known is not None and known.peer is not None:
            peer = known.peer
        return UnixState(
            inode=view.st_ino,
            kind=kind,
            flags=view.flags & ~0o2000000,
            name=name,
            peer=None if listening else peer,
            peer_name=strip_name((connected or b"")[FAMILY_SIZE:]),
            listening=listening,
            backlog=known.send_queue if known and listening else 0,
            pending=known.pending if known and listening else (),
            shutdown=known.shutdown if known else 0,
            reset=kind != SOCK.DGRAM and bool(view.poll_events() & POLLERR),
            mode=mode,
            uid=uid,
            gid=gid,
            deleted=deleted,
            directory=_directory(view, name),
            owner=read_owner(view, context),
            options=sockopts.read(view, AF.UNIX, 0),
            queue=queue,
        )

    def check(self, states: Mapping[FileId, UnixState], context: DumpContext) -> Iterable[Refused]:
        """Refuse ends that lead out of the tree."""
        by_inode = {s.inode: s for s in states.values()}
        waiting = {inode for s in states.values() for inode in s.pending}
        sent = context.cache.get(DIAG, {})
        for file_id, state in states.items():
            subject = context.views[file_id].subject if file_id in context.views else state.label
            for inode in state.pending:
                if inode not in by_inode:
                    yield refuse(UNACCEPTED_OUTSIDE, subject, f"client is unix:[{inode}]")
            if state.inode in waiting and state.inode in sent and sent[state.inode].send_queue:
                yield refuse(UNACCEPTED_DATA, subject)
            yield from _check_rights(state, subject, context)
            if is_outside(state, by_inode, waiting):
                stdio = context.container and context.is_stdio(file_id)
                stdio = stdio or f"unix[{state.inode}]" in context.external
                if not stdio and not _reconnects(state):
                    peer = readable(state.peer_name) or f"unix:[{state.peer}]"
                    yield refuse(OUTSIDE, subject, f"the other end is {peer}")
                elif not stdio:
                    context.warn(
                        f"{subject}: it sends to {readable(state.peer_name)} outside of the "
                        "tree and will be connected to that name again"
                    )
            elif _one_way_to_nameless(state, by_inode):
                yield refuse(NAMELESS_PEER, subject)

    def encode(self, states: Mapping[FileId, UnixState], images: ImageSink) -> None:
        """unix_sk_entry each, sk_packet_entry for each queued message."""
        by_inode = {s.inode: s for s in states.values()}
        waiting = {inode for s in states.values() for inode in s.pending}
        for file_id in _writing_order(states):
            state = states[file_id]
            outside = is_outside(state, by_inode, waiting)
            images.add(
                "files",
                pb.file_entry(type=pb.UNIXSK, id=file_id, usk=_message(file_id, state, outside)),
            )
            for message in state.queue:
                entry = pb.sk_packet_entry(id_for=file_id, length=len(message.data))
                if message.rights:
                    entry.scm.add(type=SCM_RIGHTS, rights=message.rights)
                images.add("sk-queues", entry, message.data)
            sockopts.keep(images, file_id, state.options)
            unsaid = _unsaid(state)
            if unsaid:
                images.extra(SECTION, str(file_id), unsaid)

    def decode(self, images: ImageSource) -> Mapping[FileId, UnixState]:
        """Read back."""
        queues: dict[int, list[Message]] = {}
        for entry, payload in images.entries("sk-queues"):
            rights = tuple(
                FileId(one) for c in entry.scm if c.type == SCM_RIGHTS for one in c.rights
            )
            message = Message(data=payload, fds=len(rights), rights=rights)
            queues.setdefault(entry.id_for, []).append(message)
        return {
            file_id: _state(images, file_id, message, queues.get(file_id, []))
            for file_id, message in images.files("UNIXSK")
        }

    def plan(self, states: Mapping[FileId, UnixState], context: PlanContext) -> Sequence[Op]:
        """See `unix_plan`."""
        from torpor.engine.sockets.unix_plan import plan

        return plan(states, context)

    def late(self, states: Mapping[FileId, UnixState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in states.items()}, context)


def is_outside(state: UnixState, by_inode: Mapping[int, UnixState], waiting: set[int]) -> bool:
    """The other end is not in the tree.

    One that waits outside to be accepted has peer 0 as a closed one has, but only the closed
    one has shut both directions.
    """
    if state.listening or state.peer is None or state.inode in waiting:
        return False
    if state.peer == 0:
        return state.stream and state.shutdown != SHUT_BOTH
    return state.peer not in by_inode


def _queue(view: FdView, context: DumpContext) -> tuple[Message, ...]:
    """What waits to be received, with the descriptions that are carried."""
    carried = iter(context.in_flight.get(view.st_ino, ()))
    return tuple(
        replace(m, rights=next(carried), creds=None) if m.fds else replace(m, creds=None)
        for m in view.peek_messages()
    )


def _check_rights(state: UnixState, subject: str, context: DumpContext) -> Iterable[Refused]:
    for file_id in (one for m in state.queue for one in m.rights):
        link = context.views[file_id].link
        if link in MADE_LATE:
            yield refuse(IN_FLIGHT, subject, f"it carries {link}")


def strip_name(raw: bytes) -> bytes:
    """sun_path without the NULs that end a path; abstract names as they are."""
    return raw if raw[:1] == b"\0" and raw.strip(b"\0") else raw.partition(b"\0")[0]


def _diag(view: FdView, context: DumpContext) -> netlink.UnixSocket | None:
    """What unix_diag knows; asked once for a network namespace, and again when it is another."""
    known: dict[int, netlink.UnixSocket] = context.cache.setdefault(DIAG, {})
    if view.st_ino not in known:
        answer = view.netlink(AF.NETLINK, netlink.NETLINK_SOCK_DIAG, netlink.unix_diag_request())
        known.update(netlink.unix_sockets(answer))
    return known.get(view.st_ino)


def _reconnects(state: UnixState) -> bool:
    """A datagram socket (syslog's) finds its peer again by name."""
    return not state.stream and bool(state.peer_name)


def _one_way_to_nameless(state: UnixState, by_inode: Mapping[int, UnixState]) -> bool:
    if state.stream or not state.peer:
        return False
    peer = by_inode[state.peer]
    return not peer.name and peer.peer != state.inode


def _deleted(view: FdView, name: bytes, known: netlink.UnixSocket | None) -> bool:
    if not name or name[:1] == b"\0" or known is None or known.vfs is None:
        return False
    found = view.path_stat(name.decode("utf-8", "surrogateescape"))
    return found is None or found[1] != known.vfs[0]


def _perms(view: FdView, name: bytes) -> tuple[int, int, int]:
    """Of the file of a bound path; nothing to say of a socket without one."""
    if name and name[:1] != b"\0" and isinstance(view, KnowsPaths):
        found = view.path_perms(name.decode("utf-8", "surrogateescape"))
        if found is not None:
            return found
    return 0o777, 0, 0


def _directory(view: FdView, name: bytes) -> str:
    """Directory of a relative name. Raises Refused when the task is not there."""
    if not name or name[:1] in (b"\0", b"/"):
        return ""
    if isinstance(view, KnowsPaths) and view.path_stat(name.decode("utf-8", "replace")):
        return view.cwd
    raise refuse(RELATIVE, view.subject, f"name is {readable(name)}")


def _writing_order(states: Mapping[FileId, UnixState]) -> list[FileId]:
    """Of a pair the end with the higher id first.

    CRIU makes a pair in the task that holds the second one, and that must be the task which
    is there first (seen with 4.2.1).
    """
    by_inode = {s.inode: i for i, s in states.items()}

    def place(file_id: FileId) -> tuple[int, int]:
        other = by_inode.get(states[file_id].peer or 0, file_id)
        if states[other].peer != states[file_id].inode:
            return file_id, 0
        return min(file_id, other), -file_id

    return sorted(states, key=place)


def _message(file_id: FileId, state: UnixState, outside: bool) -> Any:  # noqa: ANN401
    path = bool(state.name) and state.name[:1] != b"\0"
    if state.listening:
        number = TCPState.LISTEN
    else:
        connected = state.peer is not None and state.stream
        number = TCPState.ESTABLISHED if connected else TCPState.CLOSE
    message = pb.unix_sk_entry(
        id=file_id,
        ino=state.inode,
        type=state.kind,
        state=number,
        flags=state.flags,
        uflags=USK_EXTERN if outside else 0,
        backlog=state.backlog,
        peer=max(state.peer or 0, 0),
        fown=encode_owner(state.owner),
        opts=sockopts.encode(state.options),
        name=state.name + b"\0" if path else state.name,
        ns_id=sockopts.NET_NS_ID,
    )
    if state.shutdown:
        message.shutdown = cast(Any, state.shutdown)
    if path:
        message.file_perms.CopyFrom(
            pb.file_perms_entry(mode=state.mode | S_IFSOCK, uid=state.uid, gid=state.gid)
        )
        if state.directory:
            message.name_dir = state.directory.encode("utf-8", "surrogateescape") + b"\0"
        if state.deleted:
            message.deleted = True
    return message


def _unsaid(state: UnixState) -> dict[str, Any]:
    """What CRIU's message has no room for; JSON-able."""
    found: dict[str, Any] = {}
    if state.pending:
        found["pending"] = list(state.pending)
    if state.reset:
        found["reset"] = True
    if state.peer is not None and state.peer <= 0:
        found["peer"] = state.peer
    if state.peer_name:
        found["peer_name"] = state.peer_name.hex()
    if any(m.address[FAMILY_SIZE:] for m in state.queue):
        found["senders"] = [m.address.hex() for m in state.queue]
    return found


def _state(
    images: ImageSource,
    file_id: FileId,
    message: Any,  # noqa: ANN401
    queue: Sequence[Message],
) -> UnixState:
    unsaid = images.extra(SECTION, str(file_id)) or {}
    # connect(2) marks a datagram receiver as established as well, so that says nothing.
    closed = message.state == TCPState.ESTABLISHED and message.type != SOCK.DGRAM
    peer = message.peer or (0 if closed else None)
    senders = [bytes.fromhex(s) for s in unsaid.get("senders", ())]
    perms = message.file_perms
    listening = message.state == TCPState.LISTEN
    return UnixState(
        inode=message.ino,
        kind=message.type,
        flags=message.flags,
        name=strip_name(message.name),
        peer=None if listening else unsaid.get("peer", peer),
        peer_name=bytes.fromhex(unsaid.get("peer_name", "")),
        listening=listening,
        backlog=message.backlog,
        pending=tuple(unsaid.get("pending", ())),
        shutdown=message.shutdown,
        reset=bool(unsaid.get("reset", False)),
        mode=perms.mode & 0o7777 if message.HasField("file_perms") else 0o777,
        uid=perms.uid,
        gid=perms.gid,
        deleted=message.deleted,
        directory=message.name_dir.rstrip(b"\0").decode("utf-8", "surrogateescape"),
        owner=decode_owner(message.fown),
        options=sockopts.decode(message.opts, images, file_id),
        queue=tuple(
            replace(message, address=senders[i] if i < len(senders) else b"")
            for i, message in enumerate(queue)
        ),
    )


KIND = Unix()
