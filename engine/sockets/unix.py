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
- SO_PEERCRED and the credentials of queued messages are those of whoever makes and sends them:
  `unix_creds`. They come back when their task is in the tree, and otherwise with the root's pid.
- Cannot be set back: the send queue's accounting starts anew; getpeername of a datagram socket
  whose peer is gone is lost; SO_PEERPIDFD, which wants the very task.

Source: unix(7); net/unix/af_unix.c, net/unix/diag.c (v6.8).
CRIU: unix_sk_entry; sk-queues.img. Not in it: senders of datagrams, order of waiting
clients, pending reset (torpor.json, section `unix`).
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torpor.engine.asking import NAMES, Questions, option
from torpor.engine.errors import Refused
from torpor.engine.files.common import (
    OWNER,
    QUEUED,
    has_no_owner,
    is_quiet,
    late_owners,
    read_owner,
)
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import AF, O_PATH, POLLERR, POLLPRI, S_IFSOCK, SO, SOCK, SOL_SOCKET
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
from torpor.engine.sockets import unix_names
from torpor.engine.sockets.unix_state import (
    FAMILY_SIZE,
    Creator,
    UnixState,
    is_outside,
    is_path,
    readable,
    strip_name,
)

MADE_LATE = ("anon_inode:[eventpoll]", "anon_inode:[pidfd]", "pidfd")
"""Links of what is made when all tasks are there: too late to be sent again."""
DIAG = "unix_diag"
MOST_GROUPS, USUAL_GROUPS = 1024, 64
QUESTIONS = Questions(
    *OWNER, *QUEUED, *NAMES, *sockopts.questions(AF.UNIX, 0),
    option(SOL_SOCKET, SO.ACCEPTCONN), option(SOL_SOCKET, SO.PEERCRED, 12),
    option(SOL_SOCKET, SO.PEERGROUPS, 4 * USUAL_GROUPS),
)  # fmt: skip

OUTSIDE = Limit(
    case="unix-outside",
    what="this unix socket is connected to a task outside of the tree",
    remedy="checkpoint the other end as well, close the connection before, or name it with "
    "--external unix[INODE] and give another to the restore by --inherit-fd fd[N]:socket[INODE]",
)
IN_FLIGHT = Limit(
    case="unix-in-flight",
    what="an epoll, a pidfd or the path of a socket is on its way through this unix socket",
    remedy="let the receiver take them, then take the checkpoint again",
    is_passing=True,
)
UNACCEPTED_OUTSIDE = Limit(
    case="unix-unaccepted-outside",
    what="a client outside of the tree waits to be accepted by this listening unix socket",
    remedy="let the server accept it, then take the checkpoint again",
    is_passing=True,
)
UNACCEPTED_DATA = Limit(
    case="unix-unaccepted-data",
    what="data was sent on a unix connection that is not accepted yet",
    remedy="let the server accept it, then take the checkpoint again",
    is_passing=True,
)
NAMELESS_PEER = Limit(
    case="unix-datagram-nameless-peer",
    what="this datagram socket sends to one that has no name, and so do others or it to others",
    remedy="connect both ends to each other, or bind the receiver",
)
URGENT = Limit(
    case="unix-urgent",
    what="a byte out of band (MSG_OOB) waits in this unix socket",
    remedy="let the task read it, then take the checkpoint again",
)
LIMITS = (
    URGENT,
    OUTSIDE, IN_FLIGHT, UNACCEPTED_OUTSIDE, UNACCEPTED_DATA, unix_names.RELATIVE, NAMELESS_PEER,
    *sockopts.LIMITS,
)  # fmt: skip


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

    def questions(self, view: FdView) -> Questions:
        """All that `collect` asks; of a listener it will ask again."""
        del view
        return QUESTIONS

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Where nothing is queued, no path is in its names, and the kernel knows of it."""
        peer_name = strip_name((view.peername() or b"")[FAMILY_SIZE:])
        names = strip_name(view.sockname()[FAMILY_SIZE:]), peer_name
        return (
            has_no_owner(view)
            and is_quiet(view)
            and not any(map(is_path, names))
            and view.is_of_own_network()
            and view.st_ino in _known(view, context)
        )

    def collect(self, view: FdView, context: DumpContext) -> UnixState:
        """Read the state."""
        known = _diag(view, context)
        kind = sockopts.number(view, SOL_SOCKET, SO.TYPE) or SOCK.STREAM
        name = strip_name(view.sockname()[FAMILY_SIZE:])
        listening = bool(sockopts.number(view, SOL_SOCKET, SO.ACCEPTCONN))
        connected = view.peername()
        peer_name = strip_name((connected or b"")[FAMILY_SIZE:])
        events = view.poll_events()
        if events & POLLPRI:
            raise refuse(URGENT, view.subject)
        queue = () if listening else _queue(view, context)
        peer = None if connected is None else -1
        if known is not None and known.peer is not None:
            peer = known.peer
        return UnixState(
            inode=view.st_ino,
            kind=kind,
            flags=view.flags & ~0o2000000,
            name=name,
            place=unix_names.read(view, name, known, context),
            peer=None if listening else peer,
            peer_name=peer_name,
            peer_folder=unix_names.closest_folder(view, peer_name) if peer == 0 else "",
            listening=listening,
            backlog=known.send_queue if known and listening else 0,
            pending=known.pending if known and listening else (),
            shutdown=known.shutdown if known else 0,
            reset=kind != SOCK.DGRAM and bool(events & POLLERR),
            creator=_creator(view, context),
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
            calls = state.inode in waiting and state.inode in sent
            if calls and netlink.unix_socket(sent[state.inode]).send_queue:
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
            elif _cannot_be_called(state, by_inode):
                yield refuse(NAMELESS_PEER, subject)

    def encode(self, states: Mapping[FileId, UnixState], images: ImageSink) -> None:
        """unix_sk_entry each, sk_packet_entry for each queued message."""
        from torpor.engine.sockets import unix_images

        by_inode = {s.inode: s for s in states.values()}
        waiting = {inode for s in states.values() for inode in s.pending}
        outside = {i: is_outside(s, by_inode, waiting) for i, s in states.items()}
        unix_images.write(states, outside, images)

    def decode(self, images: ImageSource) -> Mapping[FileId, UnixState]:
        """Read back."""
        from torpor.engine.sockets import unix_images

        return unix_images.read(images)

    def plan(self, states: Mapping[FileId, UnixState], context: PlanContext) -> Sequence[Op]:
        """See `unix_plan`."""
        from torpor.engine.sockets.unix_plan import plan

        return plan(states, context)

    def late(self, states: Mapping[FileId, UnixState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in states.items()}, context)


def _queue(view: FdView, context: DumpContext) -> tuple[Message, ...]:
    """What waits to be received, with the descriptions that are carried, and who has sent it."""
    carried = iter(context.in_flight.get(view.st_ino, ()))
    found = []
    for message in view.peek_messages():
        rights = next(carried) if message.fds else ()
        pid, uid, gid = message.creds or (0, 0, 0)
        if pid and pid not in context.tasks:
            context.warn(f"{view.subject}: a queued message comes back with the root's pid")
        creds = (context.tasks.get(pid, 0), uid, gid) if pid else None
        found.append(replace(message, rights=rights, creds=creds))
    return tuple(found)


def _check_rights(state: UnixState, subject: str, context: DumpContext) -> Iterable[Refused]:
    for file_id in (one for m in state.queue for one in m.rights):
        view = context.views[file_id]
        is_path = view.flags & O_PATH and view.st_mode & 0o170000 == S_IFSOCK
        if view.link in MADE_LATE or is_path:
            yield refuse(IN_FLIGHT, subject, f"it carries {view.link}")


def _diag(view: FdView, context: DumpContext) -> netlink.UnixSocket | None:
    """What unix_diag knows."""
    payload = _known(view, context).get(view.st_ino)
    return None if payload is None else netlink.unix_socket(payload)


def _known(view: FdView, context: DumpContext) -> Mapping[int, bytes]:
    """Asked once for a network namespace, and again when it is another."""
    known: dict[int, bytes] = context.cache.setdefault(DIAG, {})
    if view.st_ino not in known:
        answer = view.netlink(AF.NETLINK, netlink.NETLINK_SOCK_DIAG, netlink.unix_diag_request())
        known.update(netlink.unix_sockets(answer))
    return known


def _reconnects(state: UnixState) -> bool:
    """A datagram socket (syslog's) finds its peer again by name."""
    return not state.stream and bool(state.peer_name)


def _cannot_be_called(state: UnixState, by_inode: Mapping[int, UnixState]) -> bool:
    """A nameless receiver can be had by making both at once, so for one sender only."""
    if state.stream or not state.peer:
        return False
    peer = by_inode[state.peer]
    senders = sum(s.peer == state.peer for s in by_inode.values())
    return not peer.name and peer.peer != state.inode and (senders > 1 or bool(peer.peer))


def _creator(view: FdView, context: DumpContext) -> Creator | None:
    """What SO_PEERCRED tells; pids of tasks outside are as good as none."""
    raw = view.getsockopt(SOL_SOCKET, SO.PEERCRED, 12)
    if raw is None or len(raw) < 12:
        return None
    pid, uid, gid = struct.unpack("<iII", raw)
    if not pid:
        return None
    groups = view.getsockopt(SOL_SOCKET, SO.PEERGROUPS, MOST_GROUPS * 4) or b""
    return Creator(
        pid=context.tasks.get(pid, 0), uid=uid, gid=gid,
        groups=struct.unpack(f"<{len(groups) // 4}I", groups),
    )  # fmt: skip


KIND = Unix()
