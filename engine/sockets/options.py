# SPDX-License-Identifier: Apache-2.0
"""Socket options that all kinds of sockets share, and the table that reads and sets them.

Facts:
- An option is read by getsockopt(2) and kept only when it differs from a fresh socket's.
- SO_SNDBUF and SO_RCVBUF read twice what was set, and setting one switches off the kernel's
  own tuning; SO_BUF_LOCK (v5.15) tells which were set. They are set back only then.
- More than net.core.{w,r}mem_max takes CAP_NET_ADMIN: SO_SNDBUFFORCE is tried, and what the
  kernel grants without it is kept.
- A classic filter is read back as it was attached; of an eBPF one nothing can be read.
- Multicast memberships cannot be listed by socket: they are not seen and not restored.

CRIU: sk_opts_entry of each socket's message. What that cannot say is in torpor.json, section
`sockets`, key the file's id: `[[level, option, value], ...]`.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torpor.engine.errors import KernelError
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import (
    AF,
    IP,
    IPPROTO,
    IPV6,
    SO,
    SOCK,
    SOL_NETLINK,
    SOL_SOCKET,
    TCP,
    UDP,
    UDPLITE,
)
from torpor.engine.kernel.abi import NETLINK as NL
from torpor.engine.kind import FdView, FileId, ImageSink, ImageSource, Limit, refuse
from torpor.engine.program.ops import Arg, Data, Expect, Op

SECTION = "sockets"
NET_NS_ID = 2
"""Id of the network namespace in our images (ids-N.img); CRIU fails without it."""
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
IFNAMSIZ = 16
MOST_IP_OPTIONS = 40
ICMP_FILTER = 1
UNKNOWN = -(1 << 40)
"""A default that depends on the machine: the value is always kept."""

FILTER_UNREADABLE = Limit(
    case="ebpf-filter",
    what="its filter is an eBPF program, which cannot be read back",
    remedy="detach it before the checkpoint (SO_DETACH_FILTER)",
)


@dataclass(frozen=True, slots=True)
class Option:
    """An option whose value is an int. ``field`` is its name in sk_opts_entry."""

    level: int
    number: int
    name: str
    default: int = 0
    field: str = ""
    early: bool = False
    """To be set before bind(2)."""
    lenient: bool = False
    """Needs a right or a module that may be missing: tried, not insisted on."""


COMMON = (
    Option(SOL_SOCKET, SO.REUSEADDR, "SO_REUSEADDR", field="reuseaddr", early=True),
    Option(SOL_SOCKET, SO.REUSEPORT, "SO_REUSEPORT", field="so_reuseport", early=True),
    Option(SOL_SOCKET, SO.PRIORITY, "SO_PRIORITY", field="so_priority", lenient=True),
    Option(SOL_SOCKET, SO.RCVLOWAT, "SO_RCVLOWAT", 1, field="so_rcvlowat"),
    Option(SOL_SOCKET, SO.MARK, "SO_MARK", field="so_mark", early=True),
    Option(SOL_SOCKET, SO.PASSCRED, "SO_PASSCRED", field="so_passcred"),
    Option(SOL_SOCKET, SO.PASSSEC, "SO_PASSSEC", field="so_passsec"),
    Option(SOL_SOCKET, SO.DONTROUTE, "SO_DONTROUTE", field="so_dontroute"),
    Option(SOL_SOCKET, SO.NO_CHECK, "SO_NO_CHECK", field="so_no_check"),
    Option(SOL_SOCKET, SO.BROADCAST, "SO_BROADCAST", field="so_broadcast"),
    Option(SOL_SOCKET, SO.KEEPALIVE, "SO_KEEPALIVE", field="so_keepalive"),
    Option(SOL_SOCKET, SO.OOBINLINE, "SO_OOBINLINE", field="so_oobinline"),
    Option(SOL_SOCKET, SO.TIMESTAMP, "SO_TIMESTAMP"),
    Option(SOL_SOCKET, SO.TIMESTAMPNS, "SO_TIMESTAMPNS"),
    Option(SOL_SOCKET, SO.DEBUG, "SO_DEBUG", lenient=True),
    Option(SOL_SOCKET, SO.RXQ_OVFL, "SO_RXQ_OVFL"),
    Option(SOL_SOCKET, SO.PEEK_OFF, "SO_PEEK_OFF", -1),
    Option(SOL_SOCKET, SO.SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE"),
    Option(SOL_SOCKET, SO.PASSPIDFD, "SO_PASSPIDFD"),
    Option(SOL_SOCKET, SO.ZEROCOPY, "SO_ZEROCOPY"),
    Option(SOL_SOCKET, SO.WIFI_STATUS, "SO_WIFI_STATUS"),
    Option(SOL_SOCKET, SO.NOFCS, "SO_NOFCS"),
    Option(SOL_SOCKET, SO.BUSY_POLL, "SO_BUSY_POLL", UNKNOWN, lenient=True),
    Option(SOL_SOCKET, SO.MAX_PACING_RATE, "SO_MAX_PACING_RATE", -1),
    Option(SOL_SOCKET, SO.TIMESTAMP_NEW, "SO_TIMESTAMP_NEW"),
    Option(SOL_SOCKET, SO.TIMESTAMPNS_NEW, "SO_TIMESTAMPNS_NEW"),
    Option(SOL_SOCKET, SO.PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL", lenient=True),
    Option(SOL_SOCKET, SO.BUSY_POLL_BUDGET, "SO_BUSY_POLL_BUDGET", lenient=True),
    Option(SOL_SOCKET, SO.TXREHASH, "SO_TXREHASH", UNKNOWN, lenient=True),
    Option(SOL_SOCKET, SO.RCVMARK, "SO_RCVMARK", lenient=True),
    Option(SOL_SOCKET, SO.RCVPRIORITY, "SO_RCVPRIORITY"),
    Option(SOL_SOCKET, SO.PASSRIGHTS, "SO_PASSRIGHTS", 1),
)
IPV4_OPTIONS = (
    Option(IPPROTO.IP, IP.FREEBIND, "IP_FREEBIND", early=True),
    Option(IPPROTO.IP, IP.TRANSPARENT, "IP_TRANSPARENT", early=True),
    Option(IPPROTO.IP, IP.BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT", early=True),
    Option(IPPROTO.IP, IP.TOS, "IP_TOS"),
    Option(IPPROTO.IP, IP.TTL, "IP_TTL", 64),
    Option(IPPROTO.IP, IP.PKTINFO, "IP_PKTINFO"),
    Option(IPPROTO.IP, IP.MTU_DISCOVER, "IP_MTU_DISCOVER", 1),
    Option(IPPROTO.IP, IP.RECVERR, "IP_RECVERR"),
    Option(IPPROTO.IP, IP.RECVTTL, "IP_RECVTTL"),
    Option(IPPROTO.IP, IP.RECVTOS, "IP_RECVTOS"),
    Option(IPPROTO.IP, IP.RECVORIGDSTADDR, "IP_RECVORIGDSTADDR"),
    Option(IPPROTO.IP, IP.MINTTL, "IP_MINTTL"),
    Option(IPPROTO.IP, IP.RECVOPTS, "IP_RECVOPTS"),
    Option(IPPROTO.IP, IP.RETOPTS, "IP_RETOPTS"),
    Option(IPPROTO.IP, IP.PASSSEC, "IP_PASSSEC"),
    Option(IPPROTO.IP, IP.CHECKSUM, "IP_CHECKSUM"),
    Option(IPPROTO.IP, IP.RECVFRAGSIZE, "IP_RECVFRAGSIZE"),
    Option(IPPROTO.IP, IP.RECVERR_RFC4884, "IP_RECVERR_RFC4884"),
    Option(IPPROTO.IP, IP.LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE", early=True),
)
IPV6_OPTIONS = (
    Option(IPPROTO.IPV6, IPV6.V6ONLY, "IPV6_V6ONLY", early=True),
    Option(IPPROTO.IPV6, IPV6.FREEBIND, "IPV6_FREEBIND", early=True),
    Option(IPPROTO.IPV6, IPV6.UNICAST_HOPS, "IPV6_UNICAST_HOPS", 64),
    Option(IPPROTO.IPV6, IPV6.MTU_DISCOVER, "IPV6_MTU_DISCOVER", 1),
    Option(IPPROTO.IPV6, IPV6.RECVERR, "IPV6_RECVERR"),
    Option(IPPROTO.IPV6, IPV6.RECVPKTINFO, "IPV6_RECVPKTINFO"),
    Option(IPPROTO.IPV6, IPV6.RECVHOPLIMIT, "IPV6_RECVHOPLIMIT"),
    Option(IPPROTO.IPV6, IPV6.RECVTCLASS, "IPV6_RECVTCLASS"),
    Option(IPPROTO.IPV6, IPV6.TCLASS, "IPV6_TCLASS"),
    Option(IPPROTO.IPV6, IPV6.OLD_PKTINFO, "IPV6_OLD_PKTINFO"),
    Option(IPPROTO.IPV6, IPV6.OLD_HOPOPTS, "IPV6_OLD_HOPOPTS"),
    Option(IPPROTO.IPV6, IPV6.OLD_DSTOPTS, "IPV6_OLD_DSTOPTS"),
    Option(IPPROTO.IPV6, IPV6.OLD_RTHDR, "IPV6_OLD_RTHDR"),
    Option(IPPROTO.IPV6, IPV6.OLD_HOPLIMIT, "IPV6_OLD_HOPLIMIT"),
    Option(IPPROTO.IPV6, IPV6.RECVERR_RFC4884, "IPV6_RECVERR_RFC4884"),
    Option(IPPROTO.IPV6, IPV6.FLOWINFO, "IPV6_FLOWINFO"),
    Option(IPPROTO.IPV6, IPV6.FLOWINFO_SEND, "IPV6_FLOWINFO_SEND"),
    Option(IPPROTO.IPV6, IPV6.RECVHOPOPTS, "IPV6_RECVHOPOPTS"),
    Option(IPPROTO.IPV6, IPV6.RECVRTHDR, "IPV6_RECVRTHDR"),
    Option(IPPROTO.IPV6, IPV6.RECVDSTOPTS, "IPV6_RECVDSTOPTS"),
    Option(IPPROTO.IPV6, IPV6.RECVPATHMTU, "IPV6_RECVPATHMTU"),
    Option(IPPROTO.IPV6, IPV6.DONTFRAG, "IPV6_DONTFRAG"),
    Option(IPPROTO.IPV6, IPV6.AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", UNKNOWN, lenient=True),
    Option(IPPROTO.IPV6, IPV6.ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES", UNKNOWN, lenient=True),
    Option(IPPROTO.IPV6, IPV6.MINHOPCOUNT, "IPV6_MINHOPCOUNT"),
    Option(IPPROTO.IPV6, IPV6.RECVORIGDSTADDR, "IPV6_RECVORIGDSTADDR"),
    Option(IPPROTO.IPV6, IPV6.TRANSPARENT, "IPV6_TRANSPARENT", early=True),
    Option(IPPROTO.IPV6, IPV6.RECVFRAGSIZE, "IPV6_RECVFRAGSIZE"),
    Option(IPPROTO.IPV6, IPV6.ROUTER_ALERT_ISOLATE, "IPV6_ROUTER_ALERT_ISOLATE"),
)
TCP_OPTIONS = (
    Option(IPPROTO.TCP, TCP.MAXSEG, "TCP_MAXSEG", 536, lenient=True),
    Option(IPPROTO.TCP, TCP.NODELAY, "TCP_NODELAY"),
    Option(IPPROTO.TCP, TCP.CORK, "TCP_CORK"),
    Option(IPPROTO.TCP, TCP.KEEPIDLE, "TCP_KEEPIDLE", 7200),
    Option(IPPROTO.TCP, TCP.KEEPINTVL, "TCP_KEEPINTVL", 75),
    Option(IPPROTO.TCP, TCP.KEEPCNT, "TCP_KEEPCNT", 9),
    Option(IPPROTO.TCP, TCP.SYNCNT, "TCP_SYNCNT", 6),
    Option(IPPROTO.TCP, TCP.LINGER2, "TCP_LINGER2", 60),
    Option(IPPROTO.TCP, TCP.DEFER_ACCEPT, "TCP_DEFER_ACCEPT"),
    Option(IPPROTO.TCP, TCP.WINDOW_CLAMP, "TCP_WINDOW_CLAMP", lenient=True),
    Option(IPPROTO.TCP, TCP.USER_TIMEOUT, "TCP_USER_TIMEOUT"),
    Option(IPPROTO.TCP, TCP.FASTOPEN, "TCP_FASTOPEN", lenient=True),
    Option(IPPROTO.TCP, TCP.NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT"),
    Option(IPPROTO.TCP, TCP.THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS"),
    Option(IPPROTO.TCP, TCP.SAVE_SYN, "TCP_SAVE_SYN"),
    Option(IPPROTO.TCP, TCP.FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT", lenient=True),
    Option(IPPROTO.TCP, TCP.FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE", lenient=True),
    Option(IPPROTO.TCP, TCP.INQ, "TCP_INQ"),
    Option(IPPROTO.TCP, TCP.TX_DELAY, "TCP_TX_DELAY"),
    Option(IPPROTO.TCP, TCP.RTO_MAX_MS, "TCP_RTO_MAX_MS", UNKNOWN, lenient=True),
    Option(IPPROTO.TCP, TCP.RTO_MIN_US, "TCP_RTO_MIN_US", UNKNOWN, lenient=True),
    Option(IPPROTO.TCP, TCP.DELACK_MAX_US, "TCP_DELACK_MAX_US", UNKNOWN, lenient=True),
)
MULTICAST_OPTIONS = (
    Option(IPPROTO.IP, IP.MULTICAST_ALL, "IP_MULTICAST_ALL", UNKNOWN, lenient=True),
    Option(IPPROTO.IP, IP.MULTICAST_TTL, "IP_MULTICAST_TTL", 1, lenient=True),
    Option(IPPROTO.IP, IP.MULTICAST_LOOP, "IP_MULTICAST_LOOP", 1),
)
MULTICAST6_OPTIONS = (
    Option(IPPROTO.IPV6, IPV6.MULTICAST_ALL, "IPV6_MULTICAST_ALL", 1),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", 1, lenient=True),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", 1),
)
UDP_OPTIONS = (
    Option(IPPROTO.UDP, UDP.CORK, "UDP_CORK"),
    Option(IPPROTO.UDP, UDP.NO_CHECK6_TX, "UDP_NO_CHECK6_TX"),
    Option(IPPROTO.UDP, UDP.NO_CHECK6_RX, "UDP_NO_CHECK6_RX"),
    Option(IPPROTO.UDP, UDP.SEGMENT, "UDP_SEGMENT"),
    Option(IPPROTO.UDP, UDP.GRO, "UDP_GRO"),
)
UDPLITE_OPTIONS = (
    Option(
        IPPROTO.UDPLITE,
        UDPLITE.SEND_CSCOV,
        "UDPLITE_SEND_CSCOV",
    ),
    Option(IPPROTO.UDPLITE, UDPLITE.RECV_CSCOV, "UDPLITE_RECV_CSCOV"),
)
RAW_OPTIONS = (
    Option(IPPROTO.IP, IP.HDRINCL, "IP_HDRINCL", UNKNOWN),
    Option(IPPROTO.IP, IP.NODEFRAG, "IP_NODEFRAG"),
    Option(IPPROTO.RAW, ICMP_FILTER, "ICMP_FILTER"),
)
RAW6_OPTIONS = (
    Option(IPPROTO.IPV6, IPV6.HDRINCL, "IPV6_HDRINCL"),
    Option(IPPROTO.IPV6, IPV6.CHECKSUM, "IPV6_CHECKSUM", UNKNOWN, lenient=True),
)
NETLINK_OPTIONS = (
    Option(SOL_NETLINK, NL.PKTINFO, "NETLINK_PKTINFO"),
    Option(SOL_NETLINK, NL.BROADCAST_ERROR, "NETLINK_BROADCAST_ERROR"),
    Option(SOL_NETLINK, NL.NO_ENOBUFS, "NETLINK_NO_ENOBUFS"),
    Option(SOL_NETLINK, NL.LISTEN_ALL_NSID, "NETLINK_LISTEN_ALL_NSID", lenient=True),
    Option(SOL_NETLINK, NL.CAP_ACK, "NETLINK_CAP_ACK"),
    Option(SOL_NETLINK, NL.EXT_ACK, "NETLINK_EXT_ACK"),
    Option(SOL_NETLINK, NL.GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK"),
)
ALL = {
    (o.level, o.number): o
    for o in (
        *COMMON,
        *IPV4_OPTIONS,
        *IPV6_OPTIONS,
        *TCP_OPTIONS,
        *UDP_OPTIONS,
        *UDPLITE_OPTIONS,
        *RAW_OPTIONS,
        *RAW6_OPTIONS,
        *MULTICAST_OPTIONS,
        *MULTICAST6_OPTIONS,
        *NETLINK_OPTIONS,
    )
}


def table(family: int, protocol: int, kind: int = SOCK.STREAM) -> Sequence[Option]:
    """The options that a socket may have."""
    found = [*COMMON]
    if family in (AF.INET, AF.INET6):
        found += IPV4_OPTIONS
    if family == AF.INET6:
        found += IPV6_OPTIONS
    if protocol in (IPPROTO.TCP, IPPROTO.MPTCP):
        found += TCP_OPTIONS
    if kind == SOCK.RAW and family in (AF.INET, AF.INET6):
        found += RAW_OPTIONS if family == AF.INET else RAW6_OPTIONS
    if protocol in (IPPROTO.UDP, IPPROTO.UDPLITE):
        found += UDP_OPTIONS
    if protocol == IPPROTO.UDPLITE:
        found += UDPLITE_OPTIONS
    if family in (AF.INET, AF.INET6):
        found += MULTICAST_OPTIONS
        if family == AF.INET6:
            found += MULTICAST6_OPTIONS
    if family == AF.NETLINK:
        found += NETLINK_OPTIONS
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """Options of one socket. Sizes as read (twice the set ones), times in µs."""

    sndbuf_bytes: int = 0
    rcvbuf_bytes: int = 0
    buf_lock: int | None = None
    """Bits of SO_BUF_LOCK; None when the kernel or the image does not say."""
    send_timeout_us: int = 0
    receive_timeout_us: int = 0
    linger_s: int | None = None
    device: str = ""
    filter: bytes = b""
    """Instructions of a classic filter."""
    ip_options: bytes = b""
    """IP_OPTIONS, as the kernel has compiled them."""
    values: tuple[tuple[int, int, int], ...] = ()
    """(level, option, value) of each that is not a fresh socket's."""

    def value(self, level: int, number: int) -> int:
        """Value of an option of the tables."""
        for each in self.values:
            if each[:2] == (level, number):
                return each[2]
        option = ALL.get((level, number))
        return option.default if option and option.default != UNKNOWN else 0


def number(view: FdView, level: int, option: int) -> int | None:
    """Value of an int option, None when the socket does not know it."""
    raw = view.getsockopt(level, option, 4)
    if raw is None:
        return None
    return int.from_bytes(raw, "little", signed=len(raw) == 4)


def read(view: FdView, family: int, protocol: int, kind: int = SOCK.STREAM) -> SocketOptions:
    """All options. Raises Refused when the filter cannot be read."""
    known = table(family, protocol, kind)
    sizes = [(SOL_SOCKET, SO.SNDBUF), (SOL_SOCKET, SO.RCVBUF), (SOL_SOCKET, SO.BUF_LOCK)]
    sndbuf, rcvbuf, lock, *found = view.int_options(
        [*sizes, *((option.level, option.number) for option in known)]
    )
    values = [
        (option.level, option.number, value)
        for option, value in zip(known, found, strict=True)
        if value is not None and value != option.default
    ]
    linger = view.getsockopt(SOL_SOCKET, SO.LINGER, 8)
    on, seconds = struct.unpack("<ii", linger) if linger else (0, 0)
    device = view.getsockopt(SOL_SOCKET, SO.BINDTODEVICE, IFNAMSIZ) or b""
    try:
        attached = view.getsockopt(SOL_SOCKET, SO.ATTACH_FILTER, 0) or b""
    except KernelError as error:
        raise refuse(FILTER_UNREADABLE, view.subject, error.cause) from error
    ip_options = b""
    if family in (AF.INET, AF.INET6):
        ip_options = view.getsockopt(IPPROTO.IP, IP.OPTIONS, MOST_IP_OPTIONS) or b""
    return SocketOptions(
        ip_options=ip_options,
        sndbuf_bytes=sndbuf or 0,
        rcvbuf_bytes=rcvbuf or 0,
        buf_lock=lock,
        send_timeout_us=_time(view.getsockopt(SOL_SOCKET, SO.SNDTIMEO, 16)),
        receive_timeout_us=_time(view.getsockopt(SOL_SOCKET, SO.RCVTIMEO, 16)),
        linger_s=seconds if on else None,
        device=device.rstrip(b"\0").decode("ascii", "replace"),
        filter=attached,
        values=tuple(values),
    )


def without(options: SocketOptions, level: int, number: int) -> SocketOptions:
    """The same but for one that says something else in the socket's state."""
    values = tuple(one for one in options.values if one[:2] != (level, number))
    return replace(options, values=values)


def encode(options: SocketOptions) -> Any:  # noqa: ANN401
    """CRIU's sk_opts_entry."""
    message = pb.sk_opts_entry(
        so_sndbuf=options.sndbuf_bytes,
        so_rcvbuf=options.rcvbuf_bytes,
        so_snd_tmo_sec=options.send_timeout_us // 1_000_000,
        so_snd_tmo_usec=options.send_timeout_us % 1_000_000,
        so_rcv_tmo_sec=options.receive_timeout_us // 1_000_000,
        so_rcv_tmo_usec=options.receive_timeout_us % 1_000_000,
    )
    for option in COMMON:
        if option.field:
            kind = type(getattr(message, option.field))
            setattr(message, option.field, kind(options.value(option.level, option.number)))
    if options.buf_lock is not None:
        message.so_buf_lock = options.buf_lock
    if options.linger_s is not None:
        message.so_linger = options.linger_s
    if options.device:
        message.so_bound_dev = options.device.encode() + b"\0"
    message.so_filter.extend(struct.unpack(f"<{len(options.filter) // 8}Q", options.filter))
    return message


def keep(images: ImageSink, file_id: FileId, options: SocketOptions) -> None:
    """What `encode` could not say."""
    unsaid: list[list[Any]] = [list(v) for v in options.values if not ALL[v[0], v[1]].field]
    if options.ip_options:
        unsaid.append([int(IPPROTO.IP), int(IP.OPTIONS), options.ip_options.hex()])
    if unsaid:
        images.extra(SECTION, str(file_id), unsaid)


def decode(
    message: Any,  # noqa: ANN401
    images: ImageSource,
    file_id: FileId,
    more: Iterable[tuple[int, int, int]] = (),
) -> SocketOptions:
    """Back from the message, from what `keep` kept, and ``more`` from the kind's own fields."""
    found: dict[tuple[int, int], int] = {(level, n): value for level, n, value in more}
    for option in COMMON:
        if option.field and message.HasField(option.field):
            found[option.level, option.number] = int(getattr(message, option.field))
    ip_options = b""
    for level, n, value in images.extra(SECTION, str(file_id)) or ():
        if (level, n) == (IPPROTO.IP, IP.OPTIONS):
            ip_options = bytes.fromhex(value)
        elif (level, n) in ALL:
            found[level, n] = int(value)
    values = (
        (option.level, option.number, found[option.level, option.number])
        for option in ALL.values()
        if found.get((option.level, option.number), option.default) != option.default
    )
    return SocketOptions(
        ip_options=ip_options,
        sndbuf_bytes=message.so_sndbuf,
        rcvbuf_bytes=message.so_rcvbuf,
        buf_lock=message.so_buf_lock if message.HasField("so_buf_lock") else None,
        send_timeout_us=message.so_snd_tmo_sec * 1_000_000 + message.so_snd_tmo_usec,
        receive_timeout_us=message.so_rcv_tmo_sec * 1_000_000 + message.so_rcv_tmo_usec,
        linger_s=message.so_linger if message.HasField("so_linger") else None,
        device=message.so_bound_dev.rstrip(b"\0").decode("ascii", "replace"),
        filter=struct.pack(f"<{len(message.so_filter)}Q", *message.so_filter),
        values=tuple(values),
    )


def set_value(fd: Arg, option: Option, value: int, subject: str) -> Op:
    """One setsockopt(2)."""
    return Op(
        call="setsockopt",
        args=(
            fd,
            option.level,
            option.number,
            Data(struct.pack("<i", value), 4, (), str(value)),
            4,
        ),
        subject=subject,
        note=f"{option.name} = {value}",
        expect=Expect.ANY if option.lenient else Expect.OK,
    )


def early_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    """What must be set before bind(2)."""
    ops = [
        set_value(fd, ALL[level, n], value, subject)
        for level, n, value in options.values
        if ALL[level, n].early
    ]
    if options.device:
        note = f"SO_BINDTODEVICE = {options.device}"
        ops.append(_set(fd, SO.BINDTODEVICE, options.device.encode(), subject, note))
    return ops


def late_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    """The other options; `buffer_ops` come when nothing is left to be queued."""
    ops = [
        set_value(fd, ALL[level, n], value, subject)
        for level, n, value in options.values
        if not ALL[level, n].early
    ]
    if options.ip_options:
        data = Data(options.ip_options, 4, (), options.ip_options.hex())
        ops.append(
            Op(
                call="setsockopt",
                args=(fd, IPPROTO.IP, IP.OPTIONS, data, len(options.ip_options)),
                subject=subject,
                note="IP_OPTIONS",
            )
        )
    if options.linger_s is not None:
        raw = struct.pack("<ii", 1, options.linger_s)
        ops.append(_set(fd, SO.LINGER, raw, subject, f"SO_LINGER = {options.linger_s} s"))
    for option, time_us, name in (
        (SO.SNDTIMEO, options.send_timeout_us, "SO_SNDTIMEO"),
        (SO.RCVTIMEO, options.receive_timeout_us, "SO_RCVTIMEO"),
    ):
        if time_us:
            raw = struct.pack("<qq", time_us // 1_000_000, time_us % 1_000_000)
            ops.append(_set(fd, option, raw, subject, f"{name} = {time_us} µs"))
    if options.filter:
        code = Data(options.filter, 8, (), f"filter of {len(options.filter) // 8} instructions")
        head = struct.pack("<HxxxxxxQ", len(options.filter) // 8, 0)
        program = Data(head, 8, ((8, code),), "struct sock_fprog")
        args = (fd, SOL_SOCKET, SO.ATTACH_FILTER, program, len(head))
        ops.append(
            Op(
                call="setsockopt",
                args=args,
                subject=subject,
                note="SO_ATTACH_FILTER",
                remedy="this kernel may want CAP_NET_ADMIN for socket filters",
            )
        )
    return ops


def buffer_ops(options: SocketOptions, fd: Arg, subject: str, *, raised: bool = False) -> list[Op]:
    """Sizes of the buffers that the program had set; all of them if we ``raised`` them."""
    ops: list[Op] = []
    unlocked = options.buf_lock is not None and not raised
    for bit, size, option, force, name in (
        (SNDBUF_LOCK, options.sndbuf_bytes, SO.SNDBUF, SO.SNDBUFFORCE, "SO_SNDBUF"),
        (RCVBUF_LOCK, options.rcvbuf_bytes, SO.RCVBUF, SO.RCVBUFFORCE, "SO_RCVBUF"),
    ):
        if not size or (unlocked and not (options.buf_lock or 0) & bit):
            continue
        raw = struct.pack("<i", size // 2)
        note = f"{name} = {size // 2}"
        ops.append(_set(fd, option, raw, subject, note))
        ops.append(_set(fd, force, raw, subject, f"{note}, beyond the limit", expect=Expect.ANY))
    if ops and options.buf_lock is not None:
        raw = struct.pack("<i", options.buf_lock)
        note = f"SO_BUF_LOCK = {options.buf_lock}"
        ops.append(_set(fd, SO.BUF_LOCK, raw, subject, note, expect=Expect.ANY))
    return ops


def raise_send_buffer(fd: Arg, size_bytes: int, subject: str) -> list[Op]:
    """Room for what is queued again, as far as the kernel allows it."""
    raw = struct.pack("<i", min(4 * size_bytes + 65536, 1 << 30))
    note = "room to queue again"
    return [
        _set(fd, SO.SNDBUF, raw, subject, note),
        _set(fd, SO.SNDBUFFORCE, raw, subject, note, expect=Expect.ANY),
    ]


def raise_receive_buffer(fd: Arg, size_bytes: int, subject: str) -> list[Op]:
    """As `raise_send_buffer`, before connect(2)."""
    raw = struct.pack("<i", min(4 * size_bytes + 65536, 1 << 30))
    note = "room to receive again"
    return [
        _set(fd, SO.RCVBUF, raw, subject, note),
        _set(fd, SO.RCVBUFFORCE, raw, subject, note, expect=Expect.ANY),
    ]


def _set(
    fd: Arg, option: int, raw: bytes, subject: str, note: str, *, expect: Expect = Expect.OK
) -> Op:
    data = Data(raw, 8, (), f"<{len(raw)} bytes>")
    return Op(
        call="setsockopt", args=(fd, SOL_SOCKET, option, data, len(raw)), subject=subject,
        note=note, expect=expect,
    )  # fmt: skip


def _time(raw: bytes | None) -> int:
    """Microseconds of a struct timeval."""
    if raw is None or len(raw) < 16:
        return 0
    seconds, microseconds = struct.unpack("<qq", raw[:16])
    return int(seconds * 1_000_000 + microseconds)
