# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets: listening, bound, connected inside the tree; to the outside, closed.

Facts:
- getsockname, getpeername, TCP_INFO (state; of a listener the backlog and how many wait to
  be accepted) and the options tell much; with CAP_NET_ADMIN, TCP_REPAIR tells the rest (queues,
  sequence numbers, window) and makes a connection anew without a packet: `tcp_kept`.
- Without that right the send queue cannot be read; but inside the tree all that was sent is in
  the other end's receive queue, unless that is full: SIOCOUTQNSD and TCP_INFO's counters tell.
  Such a connection is made again by bind, listen, connect and accept at the old addresses and
  ports; queued bytes are sent again. Sequence numbers, windows and timing start anew.
- A connection to the outside that is not kept comes back as if the peer had reset it after its
  last byte: what was queued can be read, then ECONNRESET, then EOF and EPIPE; epoll reports IN,
  ERR, HUP and RDHUP; getpeername gives ENOTCONN. A peer that had closed before is EOF as it was.
- A socket whose error is pending (POLLERR) is not read from: a read takes the error away.
- Raw and ping sockets are like UDP's; the port of a raw one is its protocol, and of a ping one
  the identifier of its echoes.
- Datagrams that wait are peeked at, and sent again in the name of their senders: `udp`. Those of
  raw and ping sockets are dropped with a warning.
- A UDP socket's local address that connect(2) chose cannot be told from one that was asked
  for: in a new container it is chosen anew.
- With CRIU's --tcp-close every connection comes back as a fresh socket that is shut down (seen:
  state CLOSE, no name, recv gives 0, send EPIPE, poll IN OUT HUP).
- Urgent data and the state of protocols on top (TLS, MPTCP) cannot be read back.
- Segments that came out of order are dropped: the peer sends them again.

Source: tcp(7), udp(7), ip(7); net/ipv4/tcp.c, tcp_reset() keeps the receive queue (v6.18).
CRIU: inet_sk_entry (`inet_images`); tcp-stream-N.img (`tcp_stream`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torpor.engine.asking import NAMES, POLL, Questions, option
from torpor.engine.errors import KernelError, Refused
from torpor.engine.files.common import OWNER, late_owners, read_owner
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import (
    AF,
    IP,
    IPPROTO,
    IPV6,
    POLLERR,
    POLLPRI,
    POLLRDHUP,
    S_IFSOCK,
    SIOCOUTQ,
    SIOCOUTQNSD,
    SO,
    SOCK,
    SOL_SOCKET,
    TCP,
    UDP,
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
    Message,
    PlanContext,
    refuse,
)
from torpor.engine.options import TcpPolicy
from torpor.engine.program.ops import Op
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import multicast, tcp_stream
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.inet_state import (
    SHUT_BY_ITSELF,
    InetState,
    leads_outside,
    mates,
    waiting_clients,
)
from torpor.engine.sockets.options import SocketOptions

PROTOCOLS = {
    SOCK.STREAM: (IPPROTO.TCP, IPPROTO.MPTCP),
    SOCK.DGRAM: (IPPROTO.UDP, IPPROTO.UDPLITE, IPPROTO.ICMP, IPPROTO.ICMPV6),
}
POLLIN = 1
TCP_INFO_ROOM = 192
UNACKED_AT, SACKED_AT, BYTES_ACKED_AT, BYTES_RECEIVED_AT = 24, 28, 120, 128
CONTROL_BYTES = 2
"""SYN and FIN count as one byte each in tcpi_bytes_acked."""
RAW_PEER, RAW_INODE = 2, 9
TRAFFIC = "inet.traffic"
ROUTES: dict[tuple[int, int], str] = {
    (AF.INET, IPPROTO.IGMP): "ip_mr_vif",
    (AF.INET6, IPPROTO.ICMPV6): "ip6_mr_vif",
}

OUTSIDE = Limit(
    case="tcp-outside",
    what="this TCP connection leads out of the tree",
    remedy="have it kept (--tcp-established) or closed (--tcp-close), or close it before",
)
NO_RIGHT = Limit(
    case="tcp-no-right",
    what="this TCP connection cannot be kept without CAP_NET_ADMIN",
    remedy="run with CAP_NET_ADMIN over its network namespace, or let it be closed (--tcp-close)",
)
URGENT = Limit(
    case="tcp-urgent",
    what="urgent data waits in this TCP connection",
    remedy="let the task read it (MSG_OOB), then take the checkpoint again",
)
MPTCP = Limit(
    case="mptcp",
    what="this connection is MPTCP, whose subflows cannot be read back",
    remedy="run with MPTCP off (sysctl net.mptcp.enabled=0, or GODEBUG=multipathtcp=0)",
)
UNSENT = Limit(
    case="tcp-unsent",
    what="this TCP connection inside the tree has data that the other end has no room for",
    remedy="let the other end read, then take the checkpoint again",
    is_passing=True,
)
UNACCEPTED_DATA = Limit(
    case="tcp-unaccepted-data",
    what="data was sent on a TCP connection that is not accepted yet",
    remedy="let the server accept it, then take the checkpoint again",
    is_passing=True,
)
UNACCEPTED = Limit(
    case="tcp-unaccepted-outside",
    what="connections from outside of the tree wait to be accepted",
    remedy="let the server accept them, or allow that they are lost (--skip-in-flight)",
    is_passing=True,
)
ULP = Limit(
    case="tcp-ulp",
    what="this TCP connection is handled by a protocol in the kernel (TLS)",
    remedy="close it before the checkpoint, or keep TLS in the program",
)
SIGNED = Limit(
    case="tcp-signed",
    what="this TCP socket signs its segments (TCP_MD5SIG) with keys that cannot be read back",
    remedy="close it before the checkpoint",
)
CORKED = Limit(
    case="udp-corked",
    what="this UDP socket holds back what is to be one datagram (UDP_CORK)",
    remedy="take the checkpoint again, when the task has sent it",
    is_passing=True,
)
ENCAPSULATION = Limit(
    case="udp-encapsulation",
    what="this UDP socket takes packets for a tunnel in the kernel (UDP_ENCAP)",
    remedy="close it before the checkpoint",
)
ROUTER_ALERT = Limit(
    case="ipv6-router-alert",
    what="this raw socket is told of IPv6 packets with a router alert; of which is not readable",
    remedy="close it before the checkpoint",
)
ROUTER = Limit(
    case="multicast-router",
    what="this socket may be the one that routes multicast in its network (MRT_INIT)",
    remedy="stop the multicast router before the checkpoint",
)
LIMITS = (
    CORKED, ENCAPSULATION, ROUTER_ALERT, ROUTER, OUTSIDE, NO_RIGHT, UNSENT, UNACCEPTED_DATA,
    UNACCEPTED, URGENT, MPTCP, ULP, SIGNED,
    *sockopts.LIMITS,
)  # fmt: skip


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
        if kind == SOCK.RAW:
            return True
        known = PROTOCOLS.get(SOCK(kind), ()) if kind in PROTOCOLS else ()
        return sockopts.number(view, SOL_SOCKET, SO.PROTOCOL) in known

    def questions(self, view: FdView) -> Questions:
        """Its options and names."""
        family, kind, protocol = (sockopts.number(view, *one) or 0 for one in sockopts.KINDS)
        return _questions(family, kind, protocol)

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """No: its peer may be anywhere, and its queues are asked for otherwise."""
        del view, context
        return False

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
            "options": sockopts.read(view, family, protocol, kind),
        }
        if kind != SOCK.STREAM:
            if events & POLLERR:
                context.warn(f"{view.subject}: an error that waits to be told is lost")
            if sockopts.number(view, IPPROTO.UDP, UDP.ENCAP) and kind == SOCK.DGRAM:
                raise refuse(ENCAPSULATION, view.subject)
            common["groups"] = multicast.read(view, family, context)
            common["queue"] = _datagrams(view, context, protocol)
            if sockopts.number(view, IPPROTO.UDP, UDP.CORK) and _queued_to_send(view):
                raise refuse(CORKED, view.subject)
            if kind == SOCK.RAW:
                _refuse_router(view, family, protocol)
            if kind == SOCK.RAW and not peer:
                common["peer"] = _raw_peer(view, family)
            if common["peer"]:
                common["options"] = _without_cpu(common["options"])
            state = TCPState.ESTABLISHED if common["peer"] else TCPState.CLOSE
            shut = _diag(view, context, family, protocol).get(view.st_ino) if peer else None
            return InetState(state=state, shutdown=shut.shutdown if shut else 0, **common)
        return _collect_tcp(view, context, events, common)

    def check(self, states: Mapping[FileId, InetState], context: DumpContext) -> Iterable[Refused]:
        """Refuse what leads outside if asked to, and what cannot be read."""
        traffic: Mapping[int, Traffic] = context.cache.get(TRAFFIC, {})
        pairs = mates(states)
        clients = waiting_clients(states, pairs)
        for file_id, state in states.items():
            view = context.views.get(file_id)
            subject = view.subject if view else state.label
            seen = traffic.get(state.inode)
            if state.state == TCPState.LISTEN:
                inside = sum(server == file_id for server in clients.values())
                yield from _check_listener(state, inside, subject, context)
            elif state.closed:
                context.warn(f"{subject}: {state.label} comes back closed")
            elif file_id in clients:
                if seen and seen.written > CONTROL_BYTES:
                    yield refuse(UNACCEPTED_DATA, subject, state.label)
            elif file_id in pairs:
                mate = traffic.get(states[pairs[file_id]].inode)
                yield from _check_pair(state, seen, mate, subject)
            elif leads_outside(state):
                yield from _check_outside(state, seen, subject, context)

    def encode(self, states: Mapping[FileId, InetState], images: ImageSink) -> None:
        """inet_sk_entry each, and a tcp_stream_entry for each connection."""
        from torpor.engine.sockets import inet_images

        pairs = mates(states)
        for file_id, state in states.items():
            message = inet_images.message(file_id, state)
            images.add("files", pb.file_entry(type=pb.INETSK, id=file_id, isk=message))
            if (state.connected or (state.calling and state.stream)) and not state.closed:
                low = min(file_id, pairs.get(file_id, file_id))
                images.add(*inet_images.stream(state, first=file_id == low))
            sockopts.keep(images, file_id, state.options)
            for entry, content in inet_images.packets(file_id, state):
                images.add("sk-queues", entry, content)
            unsaid = inet_images.unsaid(state)
            if unsaid:
                images.extra(inet_images.SECTION, str(file_id), unsaid)

    def decode(self, images: ImageSource) -> Mapping[FileId, InetState]:
        """Read back."""
        from torpor.engine.sockets import inet_images

        closed = any(inventory.tcp_close for inventory, _ in images.entries("inventory"))
        return {
            file_id: inet_images.state_of(images, file_id, entry, all_closed=closed)
            for file_id, entry in images.files("INETSK")
        }

    def plan(self, states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[Op]:
        """See `tcp`, `tcp_kept` and `udp`."""
        from torpor.engine.sockets import tcp, tcp_kept, udp

        kept = tcp_kept.kept(states, context)
        return [
            *tcp.plan({i: s for i, s in states.items() if s.tcp and i not in kept}, context),
            *tcp_kept.plan(kept, context),
            *udp.plan({i: s for i, s in states.items() if not s.tcp}, context),
        ]

    def late(self, states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners; what follows when the network is unlocked."""
        from torpor.engine.sockets import tcp_kept

        return [
            *late_owners({i: s.owner for i, s in states.items()}, context),
            *tcp_kept.late(tcp_kept.kept(states, context), context),
        ]


@cache
def _questions(family: int, kind: int, protocol: int) -> Questions:
    asked = (*OWNER, POLL, *NAMES, *sockopts.questions(family, protocol, kind))
    if kind != SOCK.STREAM:
        return Questions(*asked)
    more = option(IPPROTO.TCP, TCP.INFO, TCP_INFO_ROOM), option(IPPROTO.TCP, TCP.CONGESTION, 16)
    return Questions(*asked, *more)


def _collect_tcp(
    view: FdView, context: DumpContext, events: int, common: dict[str, Any]
) -> InetState:
    info = (view.getsockopt(IPPROTO.TCP, TCP.INFO, TCP_INFO_ROOM) or b"").ljust(
        TCP_INFO_ROOM, b"\0"
    )
    number = info[0] or TCPState.CLOSE
    listening = number == TCPState.LISTEN
    shut = number in SHUT_BY_ITSELF and bool(events & POLLRDHUP)
    congestion = view.getsockopt(IPPROTO.TCP, TCP.CONGESTION, 16) or b""
    state = InetState(
        state=number,
        backlog=_u32(info, SACKED_AT) if listening else 0,
        waiting=_u32(info, UNACKED_AT) if listening else 0,
        shutdown=int(shut),
        ended=number == TCPState.CLOSE and bool(events & (POLLIN | POLLERR)),
        congestion=congestion.rstrip(b"\0").decode("ascii", "replace"),
        **common,
    )
    if state.connected or state.calling:
        options = sockopts.without(state.options, IPPROTO.TCP, TCP.MAXSEG)
        state = replace(state, options=_without_cpu(options))
    if state.calling:
        state = replace(state, peer=_called(view, state, context))
    if state.state == TCPState.CLOSE and sockopts.number(view, IPPROTO.IP, IP.PROTOCOL) == 0:
        state = replace(state, source=replace(state.source, port=0))  # let go by a failed connect
    if listening or state.connected:
        known = _diag(view, context, state.family, IPPROTO.TCP).get(state.inode)
        if known is not None and known.is_signed:
            raise refuse(SIGNED, view.subject)
    if not (state.connected or state.calling):
        received = b"".join(m.data for m in view.peek_messages()) if state.ended else b""
        return replace(state, received=received)
    if context.tcp is TcpPolicy.CLOSE_ALL:
        return state.as_closed()
    if state.protocol == IPPROTO.MPTCP and context.tcp is not TcpPolicy.CLOSE:
        raise refuse(MPTCP, view.subject, state.label)
    if events & POLLPRI:
        raise refuse(URGENT, view.subject, state.label)
    if state.connected:
        context.cache.setdefault(TRAFFIC, {})[view.st_ino] = _traffic(view, info)
    return _with_queues(state, view, context, info)


def _datagrams(view: FdView, context: DumpContext, protocol: int) -> tuple[Message, ...]:
    """What waits to be read; of raw and ping sockets it is lost."""
    memory = view.getsockopt(SOL_SOCKET, SO.MEMINFO, 36) or b""
    if not int.from_bytes(memory[:4], "little"):
        return ()
    known = protocol in (IPPROTO.UDP, IPPROTO.UDPLITE)
    found = tuple(view.peek_messages()) if known else ()
    if not found:
        context.warn(f"{view.subject}: queued datagrams are dropped")
    return found


def _diag(
    view: FdView, context: DumpContext, family: int, protocol: int
) -> Mapping[int, netlink.InetSocket]:
    """What inet_diag knows, by inode; asked once, and again for another network namespace."""
    known: dict[int, netlink.InetSocket] = context.cache.setdefault(
        f"inet_diag.{family}.{protocol}", {}
    )
    if view.st_ino not in known:
        request = netlink.inet_diag_request(family, protocol, signed=protocol == IPPROTO.TCP)
        try:
            answer = view.netlink(AF.NETLINK, netlink.NETLINK_SOCK_DIAG, request)
        except KernelError:  # of raw and ping sockets many kernels tell nothing
            return known
        known.update({one.inode: one for one in netlink.inet_sockets(answer)})
    return known


def _called(view: FdView, state: InetState, context: DumpContext) -> Address | None:
    """Whom a socket has sent its SYN to: getpeername does not say."""
    one = _diag(view, context, state.family, IPPROTO.TCP).get(state.inode)
    return Address(state.family, one.peer, one.peer_port) if one else None


def _raw_peer(view: FdView, family: int) -> Address | None:
    """Whom a raw socket is connected to: getpeername wants a port, the table does not.

    Lines: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...`.
    """
    for line in view.net_table("raw" if family == AF.INET else "raw6").splitlines()[1:]:
        words = line.split()
        if len(words) > RAW_INODE and words[RAW_INODE] == str(view.st_ino):
            numbers, _, port = words[RAW_PEER].partition(":")
            raw = b"".join(
                int(numbers[at : at + 8], 16).to_bytes(4, "little")
                for at in range(0, len(numbers), 8)
            )
            return Address(family, raw, int(port, 16)) if any(raw) else None
    return None


def _refuse_router(view: FdView, family: int, protocol: int) -> None:
    """Which socket routes multicast is not told, only that one does."""
    if family == AF.INET6 and sockopts.number(view, IPPROTO.IPV6, IPV6.ROUTER_ALERT):
        raise refuse(ROUTER_ALERT, view.subject)
    name = ROUTES.get((family, protocol))
    if name and len(view.net_table(name).splitlines()) > 1:
        raise refuse(ROUTER, view.subject)


def _without_cpu(options: SocketOptions) -> SocketOptions:
    """SO_INCOMING_CPU of a connection is where its last packet came in."""
    return sockopts.without(options, SOL_SOCKET, SO.INCOMING_CPU)


def _queued_to_send(view: FdView) -> bool:
    return bool(int.from_bytes(view.ioctl(SIOCOUTQ, bytes(4)), "little"))


def _with_queues(state: InetState, view: FdView, context: DumpContext, info: bytes) -> InetState:
    """What waits in a connection; with TCP_REPAIR all of it."""
    lost = context.tcp is not TcpPolicy.KEEP
    repair = view.tcp_repair(connected=state.connected)
    if repair is None:
        received = b"".join(m.data for m in view.peek_messages()) if state.connected else b""
        return replace(state, received=received, lost=lost)
    return replace(
        state, received=repair.received, sent=repair.sent, stream=tcp_stream.of(repair, info),
        lost=lost,
    )  # fmt: skip


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


def _check_outside(
    state: InetState, seen: Traffic | None, subject: str, context: DumpContext
) -> Iterable[Refused]:
    if context.tcp is TcpPolicy.REFUSE:
        yield refuse(OUTSIDE, subject, state.label)
    elif context.tcp is TcpPolicy.CLOSE:
        context.warn(f"{subject}: {state.label} comes back closed by its peer")
    elif state.stream is None:
        yield refuse(NO_RIGHT, subject, state.label)
    elif seen and seen.ulp:
        yield refuse(ULP, subject, seen.ulp.decode("ascii", "replace"))


def _check_listener(
    state: InetState, inside: int, subject: str, context: DumpContext
) -> Iterable[Refused]:
    lost = state.waiting - inside
    may_lose = context.skip_in_flight or context.tcp is TcpPolicy.CLOSE
    if lost > 0 and not may_lose:
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
    if state.stream is None and (seen.unsent or seen.written - mate.received > CONTROL_BYTES):
        yield refuse(UNSENT, subject, f"{state.label}, {seen.unsent} bytes not sent")


KIND = Inet()
