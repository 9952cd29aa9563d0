# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets in images: CRIU's inet_sk_entry, and what it cannot say.

torpor.json, section `inet`, key the file's id: see `unsaid`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torpor.engine.files.common import decode_owner, encode_owner
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import AF, IP, IPPROTO, IPV6, SOCK, TCP, TCPState
from torpor.engine.kind import FileId, ImageSource, Message
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import multicast, option_tables, tcp_stream
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.inet_state import SHUT_BY_ITSELF, InetState

SECTION = "inet"


def message(file_id: FileId, state: InetState) -> Any:  # noqa: ANN401
    """inet_sk_entry."""
    value = state.options.value
    entry = pb.inet_sk_entry(
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
    if state.shutdown:
        entry.shutdown = cast(Any, state.shutdown)
    if state.kind == SOCK.RAW and state.family == AF.INET:
        raw = entry.ip_opts.raw
        raw.hdrincl = bool(value(IPPROTO.IP, IP.HDRINCL))
        raw.nodefrag = bool(value(IPPROTO.IP, IP.NODEFRAG))
        if state.protocol == IPPROTO.ICMP:
            raw.icmpv_filter.append(value(IPPROTO.RAW, option_tables.ICMP_FILTER) & 0xFFFFFFFF)
    if state.family == AF.INET6:
        entry.v6only = bool(value(IPPROTO.IPV6, IPV6.V6ONLY))
    if state.tcp:
        entry.tcp_opts.CopyFrom(
            pb.tcp_opts_entry(
                cork=bool(value(IPPROTO.TCP, TCP.CORK)),
                nodelay=bool(value(IPPROTO.TCP, TCP.NODELAY)),
                keepcnt=value(IPPROTO.TCP, TCP.KEEPCNT),
                keepidle=value(IPPROTO.TCP, TCP.KEEPIDLE),
                keepintvl=value(IPPROTO.TCP, TCP.KEEPINTVL),
            )
        )
    return entry


def stream(state: InetState, *, first: bool) -> tuple[str, Any, bytes]:
    """Name, message and bytes of tcp-stream-N."""
    found = state.stream or tcp_stream.invented(first=first)
    entry = tcp_stream.encode(found, state.received, state.sent)
    entry.cork = bool(state.options.value(IPPROTO.TCP, TCP.CORK))
    entry.nodelay = bool(state.options.value(IPPROTO.TCP, TCP.NODELAY))
    return f"tcp-stream-{state.inode:x}", entry, state.received + state.sent


def unsaid(state: InetState) -> dict[str, Any]:
    """What CRIU's messages have no room for; JSON-able."""
    found: dict[str, Any] = {}
    if state.ended:
        found["ended"] = True
        found["received"] = state.received.hex()
    if state.connected and not state.closed and state.stream is None:
        found["invented"] = True
    for name in ("reset", "closed", "lost"):
        if getattr(state, name):
            found[name] = True
    if state.source.scope:
        found["scope"] = state.source.scope
    if state.peer and state.peer.scope:
        found["peer_scope"] = state.peer.scope
    if state.congestion:
        found["congestion"] = state.congestion
    if state.waiting:
        found["waiting"] = state.waiting
    if state.groups:
        found["groups"] = multicast.encode(state.groups)
    if state.queue:
        found["senders"] = [m.address.hex() for m in state.queue]
    return found


def packets(file_id: FileId, state: InetState) -> Iterator[tuple[Any, bytes]]:
    """sk_packet_entry and content of each datagram that waits."""
    for one in state.queue:
        yield pb.sk_packet_entry(id_for=file_id, length=len(one.data)), one.data


def _queue(images: ImageSource, file_id: FileId, senders: Sequence[str]) -> tuple[Message, ...]:
    if not senders:
        return ()
    waiting = (data for entry, data in images.entries("sk-queues") if entry.id_for == file_id)
    return tuple(
        Message(data=data, address=bytes.fromhex(sender))
        for data, sender in zip(waiting, senders, strict=False)
    )


def state_of(
    images: ImageSource,
    file_id: FileId,
    entry: Any,  # noqa: ANN401
    *,
    all_closed: bool,
) -> InetState:
    """Back; ``all_closed`` if the inventory says that connections are not in the images."""
    kept = images.extra(SECTION, str(file_id)) or {}
    received, sent, found = bytes.fromhex(kept.get("received", "")), b"", None
    for one, payload in images.entries(f"tcp-stream-{entry.ino:x}"):
        received = payload[: one.inq_len]
        sent = payload[one.inq_len : one.inq_len + one.outq_len]
        if not kept.get("invented"):
            found = tcp_stream.decode(one)
    scope, peer_scope = int(kept.get("scope", 0)), int(kept.get("peer_scope", 0))
    peer = None
    portless = entry.type == SOCK.RAW and entry.state == TCPState.ESTABLISHED
    if portless or (entry.dst_port and entry.state != TCPState.LISTEN):
        peer = addresses.from_words(entry.family, entry.dst_addr, entry.dst_port, peer_scope)
    state = InetState(
        inode=entry.ino,
        family=entry.family,
        kind=entry.type,
        protocol=entry.proto,
        state=entry.state,
        flags=entry.flags,
        source=addresses.from_words(entry.family, entry.src_addr, entry.src_port, scope),
        peer=peer,
        backlog=entry.backlog,
        waiting=int(kept.get("waiting", 0)),
        ended=bool(kept.get("ended", False)),
        reset=bool(kept.get("reset", False)),
        shutdown=entry.shutdown & _may_be_shut(entry),
        lost=bool(kept.get("lost", False)),
        groups=multicast.decode(kept.get("groups", ())),
        queue=_queue(images, file_id, kept.get("senders", ())),
        received=received,
        sent=sent,
        stream=found,
        owner=decode_owner(entry.fown),
        options=sockopts.decode(entry.opts, images, file_id, _own_options(entry)),
        congestion=str(kept.get("congestion", "")),
    )
    return state.as_closed() if all_closed and state.connected else state


def _may_be_shut(entry: Any) -> int:  # noqa: ANN401
    """What of a shutdown is not told by the state already."""
    if entry.type != SOCK.STREAM:
        return 3
    return int(entry.state in SHUT_BY_ITSELF)


def _own_options(entry: Any) -> list[tuple[int, int, int]]:  # noqa: ANN401
    """Options that inet_sk_entry has fields for."""
    found = []
    for part, level, numbers in (
        ("ip_opts", IPPROTO.IP,
         {"freebind": IP.FREEBIND, "pktinfo": IP.PKTINFO, "tos": IP.TOS, "ttl": IP.TTL}),
        ("tcp_opts", IPPROTO.TCP,
         {"cork": TCP.CORK, "nodelay": TCP.NODELAY, "keepcnt": TCP.KEEPCNT,
          "keepidle": TCP.KEEPIDLE, "keepintvl": TCP.KEEPINTVL}),
    ):  # fmt: skip
        inner = getattr(entry, part)
        for name, number in numbers.items():
            if inner.HasField(name):
                found.append((int(level), int(number), int(getattr(inner, name))))
    raw = entry.ip_opts.raw
    for name, number in {"hdrincl": IP.HDRINCL, "nodefrag": IP.NODEFRAG}.items():
        if entry.family == AF.INET and raw.HasField(name):
            found.append((int(IPPROTO.IP), int(number), int(getattr(raw, name))))
    if entry.family == AF.INET and raw.icmpv_filter:
        found.append((int(IPPROTO.RAW), option_tables.ICMP_FILTER, raw.icmpv_filter[0]))
    if entry.HasField("v6only"):
        found.append((int(IPPROTO.IPV6), int(IPV6.V6ONLY), int(entry.v6only)))
    return found
