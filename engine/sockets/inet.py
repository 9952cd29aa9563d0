# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets: listening, bound, connected inside the tree; to the outside, closed.

Facts:
- getsockname, getpeername, TCP_INFO (state; of a listener the backlog and how many wait to
  be accepted) and the options tell all; the receive queue is peeked at. The send queue cannot
  be read without TCP_REPAIR (CAP_NET_ADMIN), but inside the tree all that was sent is in the
  other end's receive queue, unless that is full: SIOCOUTQNSD and TCP_INFO's counters tell.
- A connection inside the tree is two sockets with each other's addresses. It is made again
  by bind, listen, connect and accept at the old addresses and ports, with no right needed;
  queued bytes are sent again. Sequence numbers, windows and timing start anew.
- A connection to the outside comes back as if the peer had reset it after its last byte: what
  was queued can be read, then ECONNRESET, then EOF and EPIPE; epoll reports IN, ERR, HUP and
  RDHUP; getpeername gives ENOTCONN. A peer that had closed before is EOF as it was.
- A socket whose error is pending (POLLERR) is not read from: a read takes the error away.
- UDP loses datagrams by its nature: queued ones are dropped with a warning.
- A UDP socket's local address that connect(2) chose cannot be told from one that was asked
  for: in a new container it is chosen anew.
- Multicast memberships, urgent data, TCP_ULP of connections inside the tree: not restored.

Source: tcp(7), udp(7), ip(7); net/ipv4/tcp.c, tcp_reset() keeps the receive queue (v6.18).
CRIU: inet_sk_entry; tcp-stream-N.img (sequence numbers are invented, for they do not matter).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from torpor.engine.kernel.abi import (
    AF,
    IP,
    IPPROTO,
    IPV6,
    POLLERR,
    S_IFSOCK,
    SIOCOUTQ,
    SIOCOUTQNSD,
    SO,
    SOCK,
    SOL_SOCKET,
    TCP,
    TCPState,
)
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
from torpor.engine.options import TcpPolicy
from torpor.engine.program.ops import Op
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.options import SocketOptions

PROTOCOLS = {
    SOCK.STREAM: (IPPROTO.TCP, IPPROTO.MPTCP),
    SOCK.DGRAM: (IPPROTO.UDP, IPPROTO.UDPLITE),
}
POLLIN = 1
TCP_INFO_ROOM = 192
UNACKED_AT, SACKED_AT, BYTES_ACKED_AT, BYTES_RECEIVED_AT = 24, 28, 120, 128
CONTROL_BYTES = 2
"""SYN and FIN count as one byte each in tcpi_bytes_acked."""
SECTION = "inet"
LOOPBACK_MSS = 65495
FIRST_SEQUENCE = 1 << 20

CONNECTED = (
    TCPState.ESTABLISHED, TCPState.FIN_WAIT1, TCPState.FIN_WAIT2, TCPState.CLOSE_WAIT,
    TCPState.LAST_ACK, TCPState.CLOSING,
)  # fmt: skip
SHUT_WRITING = (TCPState.FIN_WAIT1, TCPState.FIN_WAIT2, TCPState.LAST_ACK, TCPState.CLOSING)

OUTSIDE = Limit(
    case="tcp-outside",
    what="this TCP connection leads out of the tree",
    remedy="close it before the checkpoint, or allow it to come back closed (--tcp-close)",
)
UNSENT = Limit(
    case="tcp-unsent",
    what="this TCP connection inside the tree has data that the other end has no room for",
    remedy="let the other end read, then take the checkpoint again",
)
UNACCEPTED_DATA = Limit(
    case="tcp-unaccepted-data",
    what="data was sent on a TCP connection that is not accepted yet",
    remedy="let the server accept it, then take the checkpoint again",
)
UNACCEPTED = Limit(
    case="tcp-unaccepted-outside",
    what="connections from outside of the tree wait to be accepted",
    remedy="let the server accept them, or allow that they are lost (--tcp-close)",
)
ULP = Limit(
    case="tcp-ulp",
    what="this TCP connection is handled by a protocol in the kernel (TLS)",
    remedy="close it before the checkpoint, or keep TLS in the program",
)
LIMITS = (OUTSIDE, UNSENT, UNACCEPTED_DATA, UNACCEPTED, ULP, sockopts.FILTER_UNREADABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class InetState:
    """One socket.

    ``received`` is what waits to be read, ``unsent`` what the other end lacks (only in images
    that CRIU made).
    """

    inode: int
    family: int
    kind: int
    protocol: int
    state: int
    flags: int
    source: Address
    peer: Address | None = None
    backlog: int = 0
    waiting: int = 0
    """Connections that wait to be accepted."""
    ended: bool = False
    """Was connected and is closed in both directions."""
    reset: bool = False
    received: bytes = b""
    unsent: bytes = b""
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)
    congestion: str = ""

    @property
    def tcp(self) -> bool:
        """TCP, not UDP."""
        return self.kind == SOCK.STREAM

    @property
    def connected(self) -> bool:
        """A TCP connection in any state in which the kernel knows the peer."""
        return self.tcp and self.state in CONNECTED and self.peer is not None

    @property
    def label(self) -> str:
        """`tcp 127.0.0.1:80 to 127.0.0.1:4711`."""
        text = f"{'tcp' if self.tcp else 'udp'} {self.source}"
        if self.state == TCPState.LISTEN:
            text += " listening"
        return f"{text} to {self.peer}" if self.peer else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Counters of a connection while it is looked at; not part of its state."""

    written: int
    received: int
    unsent: int
    ulp: bytes


class Inet:
    """The kind."""

    name = "TCP and UDP socket"
    types = ("INETSK",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By family, type and protocol."""
        if view.st_mode & 0o170000 != S_IFSOCK or not view.link.startswith("socket:["):
            return False
        if sockopts.number(view, SOL_SOCKET, SO.DOMAIN) not in (AF.INET, AF.INET6):
            return False
        kind = sockopts.number(view, SOL_SOCKET, SO.TYPE)
        known = PROTOCOLS.get(SOCK(kind), ()) if kind in PROTOCOLS else ()
        return sockopts.number(view, SOL_SOCKET, SO.PROTOCOL) in known

    def collect(self, view: FdView, context: DumpContext) -> InetState:
        """Read the state."""
        family = sockopts.number(view, SOL_SOCKET, SO.DOMAIN) or AF.INET
        kind = sockopts.number(view, SOL_SOCKET, SO.TYPE) or SOCK.STREAM
        protocol = sockopts.number(view, SOL_SOCKET, SO.PROTOCOL) or IPPROTO.TCP
        peer = view.peername()
        events = view.poll_events()
        common: dict[str, Any] = {
            "inode": view.st_ino,
            "family": family,
            "kind": kind,
            "protocol": protocol,
            "flags": view.flags & ~0o2000000,
            "source": addresses.parse(view.sockname()),
            "peer": addresses.parse(peer) if peer else None,
            "reset": bool(events & POLLERR) and kind == SOCK.STREAM,
            "owner": read_owner(view, context),
            "options": sockopts.read(view, family, protocol),
        }
        if kind == SOCK.DGRAM:
            memory = view.getsockopt(SOL_SOCKET, SO.MEMINFO, 36) or b""
            if int.from_bytes(memory[:4], "little"):
                context.warn(f"{view.subject}: queued datagrams are dropped")
            state = TCPState.ESTABLISHED if peer else TCPState.CLOSE
            return InetState(state=state, **common)
        return _collect_tcp(view, context, events, common)

    def check(self, states: Mapping[FileId, InetState], context: DumpContext) -> Iterable[Refused]:
        """Refuse what leads outside if asked to, and what cannot be read."""
        traffic: Mapping[int, Traffic] = context.cache.get(SECTION, {})
        pairs = mates(states)
        clients = waiting_clients(states, pairs)
        for file_id, state in states.items():
            view = context.views.get(file_id)
            subject = view.subject if view else state.label
            seen = traffic.get(state.inode)
            if state.state == TCPState.LISTEN:
                inside = sum(server == file_id for server in clients.values())
                yield from _check_listener(state, inside, subject, context)
            elif file_id in clients:
                if seen and seen.written > CONTROL_BYTES:
                    yield refuse(UNACCEPTED_DATA, subject, state.label)
            elif file_id in pairs:
                mate = traffic.get(states[pairs[file_id]].inode)
                yield from _check_pair(state, seen, mate, subject)
            elif leads_outside(state):
                if context.tcp is TcpPolicy.REFUSE:
                    yield refuse(OUTSIDE, subject, state.label)
                else:
                    context.warn(f"{subject}: {state.label} comes back closed by its peer")

    def encode(self, states: Mapping[FileId, InetState], images: ImageSink) -> None:
        """inet_sk_entry each, and a tcp_stream_entry for each connection."""
        pairs = mates(states)
        for file_id, state in states.items():
            images.add(
                "files", pb.file_entry(type=pb.INETSK, id=file_id, isk=_message(file_id, state))
            )
            if state.connected:
                low = min(file_id, pairs.get(file_id, file_id))
                images.add(*_stream(state, first=file_id == low))
            sockopts.keep(images, file_id, state.options)
            unsaid = _unsaid(state)
            if unsaid:
                images.extra(SECTION, str(file_id), unsaid)

    def decode(self, images: ImageSource) -> Mapping[FileId, InetState]:
        """Read back."""
        return {
            file_id: _state(images, file_id, message) for file_id, message in images.files("INETSK")
        }

    def plan(self, states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[Op]:
        """See `tcp` and `udp`."""
        from torpor.engine.sockets import tcp, udp

        return [
            *tcp.plan({i: s for i, s in states.items() if s.tcp}, context),
            *udp.plan({i: s for i, s in states.items() if not s.tcp}, context),
        ]

    def late(self, states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in states.items()}, context)


def mates(states: Mapping[FileId, InetState]) -> dict[FileId, FileId]:
    """The other end of each connection that has both ends in the tree."""
    ends = {(s.source.key, s.peer.key): i for i, s in states.items() if s.connected and s.peer}
    found = {}
    for (source, peer), file_id in ends.items():
        other = ends.get((peer, source))
        if other is not None and other != file_id:
            found[file_id] = other
    return found


def waiting_clients(
    states: Mapping[FileId, InetState], pairs: Mapping[FileId, FileId]
) -> dict[FileId, FileId]:
    """Clients in the tree that wait to be accepted by a listener in the tree."""
    listeners = {i: s for i, s in states.items() if s.tcp and s.state == TCPState.LISTEN}
    found = {}
    for file_id, state in states.items():
        peer = state.peer
        if state.state != TCPState.ESTABLISHED or not state.connected or file_id in pairs:
            continue
        if peer is None or not (peer.loopback or peer.ip == state.source.ip):
            continue
        for server_id, server in listeners.items():
            if (
                server.waiting
                and server.source.port == peer.port
                and (server.source.wildcard or server.source.ip == peer.ip)
            ):
                found[file_id] = server_id
                break
    return found


def before_kill(states: Mapping[FileId, InetState]) -> dict[FileId, bool]:
    """Connections whose ports must be free when their tasks are dead, and whether by a reset.

    Right before the tasks are killed (and only then) each is for `fdview.free_port`: what a
    killed task closes by a FIN is in TIME_WAIT for a minute, at the very address and port that
    a restore on this machine needs. Peers outside still get what was sent, and the FIN.
    """
    pairs = mates(states)
    both = {*pairs, *waiting_clients(states, pairs)}
    return {i: i in both for i, s in states.items() if s.connected}


def leads_outside(state: InetState) -> bool:
    """For a socket without mate: whether a peer outside still takes part."""
    if not state.tcp or state.reset:
        return False
    return state.connected or state.state in (TCPState.SYN_SENT, TCPState.SYN_RECV)


def _collect_tcp(
    view: FdView, context: DumpContext, events: int, common: dict[str, Any]
) -> InetState:
    info = (view.getsockopt(IPPROTO.TCP, TCP.INFO, TCP_INFO_ROOM) or b"").ljust(
        TCP_INFO_ROOM, b"\0"
    )
    state = info[0] or TCPState.CLOSE
    listening = state == TCPState.LISTEN
    ended = state == TCPState.CLOSE and bool(events & (POLLIN | POLLERR))
    received = b""
    if state in CONNECTED or ended:
        received = b"".join(m.data for m in view.peek_messages())
    if state in CONNECTED:
        context.cache.setdefault(SECTION, {})[view.st_ino] = _traffic(view, info)
    congestion = view.getsockopt(IPPROTO.TCP, TCP.CONGESTION, 16) or b""
    return InetState(
        state=state,
        backlog=_u32(info, SACKED_AT) if listening else 0,
        waiting=_u32(info, UNACKED_AT) if listening else 0,
        ended=ended,
        received=received,
        congestion=congestion.rstrip(b"\0").decode("ascii", "replace"),
        **common,
    )


def _traffic(view: FdView, info: bytes) -> Traffic:
    unacked = int.from_bytes(view.ioctl(SIOCOUTQ, bytes(4)), "little")
    return Traffic(
        written=int.from_bytes(info[BYTES_ACKED_AT : BYTES_ACKED_AT + 8], "little") + unacked,
        received=int.from_bytes(info[BYTES_RECEIVED_AT : BYTES_RECEIVED_AT + 8], "little"),
        unsent=int.from_bytes(view.ioctl(SIOCOUTQNSD, bytes(4)), "little"),
        ulp=(view.getsockopt(IPPROTO.TCP, TCP.ULP, 16) or b"").rstrip(b"\0"),
    )


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")


def _check_listener(
    state: InetState, inside: int, subject: str, context: DumpContext
) -> Iterable[Refused]:
    lost = state.waiting - inside
    if lost > 0 and context.tcp is TcpPolicy.REFUSE:
        yield refuse(UNACCEPTED, subject, f"{lost} at {state.source}")
    elif lost > 0:
        context.warn(f"{subject}: {lost} connections that wait to be accepted are lost")


def _check_pair(
    state: InetState, seen: Traffic | None, mate: Traffic | None, subject: str
) -> Iterable[Refused]:
    if seen is None or mate is None:
        return
    if seen.ulp:
        yield refuse(ULP, subject, seen.ulp.decode("ascii", "replace"))
    if seen.unsent or seen.written - mate.received > CONTROL_BYTES:
        yield refuse(UNSENT, subject, f"{state.label}, {seen.unsent} bytes not sent")


def _message(file_id: FileId, state: InetState) -> Any:  # noqa: ANN401
    value = state.options.value
    message = pb.inet_sk_entry(
        id=file_id,
        ino=state.inode,
        family=state.family,
        type=state.kind,
        proto=state.protocol,
        state=state.state,
        src_port=state.source.port,
        dst_port=state.peer.port if state.peer else 0,
        flags=state.flags,
        backlog=state.backlog,
        src_addr=addresses.words(state.source),
        dst_addr=addresses.words(state.peer or addresses.any_address(state.family)),
        fown=encode_owner(state.owner),
        opts=sockopts.encode(state.options),
        ns_id=sockopts.NET_NS_ID,
        ip_opts=pb.ip_opts_entry(
            freebind=bool(value(IPPROTO.IP, IP.FREEBIND)),
            pktinfo=bool(value(IPPROTO.IP, IP.PKTINFO)),
            tos=value(IPPROTO.IP, IP.TOS),
            ttl=value(IPPROTO.IP, IP.TTL),
        ),
    )
    if state.family == AF.INET6:
        message.v6only = bool(value(IPPROTO.IPV6, IPV6.V6ONLY))
    if state.tcp:
        message.tcp_opts.CopyFrom(
            pb.tcp_opts_entry(
                cork=bool(value(IPPROTO.TCP, TCP.CORK)),
                nodelay=bool(value(IPPROTO.TCP, TCP.NODELAY)),
                keepcnt=value(IPPROTO.TCP, TCP.KEEPCNT),
                keepidle=value(IPPROTO.TCP, TCP.KEEPIDLE),
                keepintvl=value(IPPROTO.TCP, TCP.KEEPINTVL),
            )
        )
    return message


def _stream(state: InetState, *, first: bool) -> tuple[str, Any, bytes]:
    """Name, message and bytes of tcp-stream-N; both ends agree on the numbers invented."""
    mine, theirs = FIRST_SEQUENCE, 2 * FIRST_SEQUENCE
    if not first:
        mine, theirs = theirs, mine
    message = pb.tcp_stream_entry(
        inq_len=len(state.received), inq_seq=theirs, outq_len=len(state.unsent), outq_seq=mine,
        opt_mask=0, snd_wscale=0, mss_clamp=LOOPBACK_MSS, unsq_len=0,
    )  # fmt: skip
    return f"tcp-stream-{state.inode:x}", message, state.received + state.unsent


def _unsaid(state: InetState) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if state.ended:
        found["ended"] = True
        found["received"] = state.received.hex()
    if state.reset:
        found["reset"] = True
    if state.source.scope:
        found["scope"] = state.source.scope
    if state.congestion:
        found["congestion"] = state.congestion
    if state.waiting:
        found["waiting"] = state.waiting
    return found


def _state(images: ImageSource, file_id: FileId, message: Any) -> InetState:  # noqa: ANN401
    unsaid = images.extra(SECTION, str(file_id)) or {}
    received, unsent = bytes.fromhex(unsaid.get("received", "")), b""
    for entry, payload in images.entries(f"tcp-stream-{message.ino:x}"):
        received = payload[: entry.inq_len]
        unsent = payload[entry.inq_len : entry.inq_len + entry.outq_len]
    scope = int(unsaid.get("scope", 0))
    peer = None
    if message.dst_port and message.state != TCPState.LISTEN:
        peer = addresses.from_words(message.family, message.dst_addr, message.dst_port)
    return InetState(
        inode=message.ino,
        family=message.family,
        kind=message.type,
        protocol=message.proto,
        state=message.state,
        flags=message.flags,
        source=addresses.from_words(message.family, message.src_addr, message.src_port, scope),
        peer=peer,
        backlog=message.backlog,
        waiting=int(unsaid.get("waiting", 0)),
        ended=bool(unsaid.get("ended", False)),
        reset=bool(unsaid.get("reset", False)),
        received=received,
        unsent=unsent,
        owner=decode_owner(message.fown),
        options=sockopts.decode(message.opts, images, file_id, _own_options(message)),
        congestion=str(unsaid.get("congestion", "")),
    )


def _own_options(message: Any) -> list[tuple[int, int, int]]:  # noqa: ANN401
    """Options that inet_sk_entry has fields for."""
    found = []
    for part, level, numbers in (
        ("ip_opts", IPPROTO.IP,
         {"freebind": IP.FREEBIND, "pktinfo": IP.PKTINFO, "tos": IP.TOS, "ttl": IP.TTL}),
        ("tcp_opts", IPPROTO.TCP,
         {"cork": TCP.CORK, "nodelay": TCP.NODELAY, "keepcnt": TCP.KEEPCNT,
          "keepidle": TCP.KEEPIDLE, "keepintvl": TCP.KEEPINTVL}),
    ):  # fmt: skip
        inner = getattr(message, part)
        for name, number in numbers.items():
            if inner.HasField(name):
                found.append((int(level), int(number), int(getattr(inner, name))))
    if message.HasField("v6only"):
        found.append((int(IPPROTO.IPV6), int(IPV6.V6ONLY), int(message.v6only)))
    return found


KIND = Inet()
