# SPDX-License-Identifier: Apache-2.0
"""The tables of socket options: what each family and protocol has.

Facts (probed on v6.18 by asking every number from 1 to 139 of every sort of socket; the workload
`sockets_options` does so again each time): what is set and cannot be read is in docs/limits.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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

ICMP_FILTER, ICMPV6_FILTER = 1, 1
UNKNOWN = -(1 << 40)
"""A default that depends on the machine: the value is always kept."""


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


@dataclass(frozen=True, slots=True)
class Raw:
    """An option whose value is bytes. ``room``: what it takes nearly always; ``most``: ever."""

    level: int
    number: int
    name: str
    room: int
    default: bytes = b""
    most: int = 0
    remedy: str = ""
    lenient: bool = False
    """Tried, not insisted on."""


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
    Option(SOL_SOCKET, SO.LOCK_FILTER, "SO_LOCK_FILTER"),
    Option(SOL_SOCKET, SO.SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE"),
    Option(SOL_SOCKET, SO.PASSPIDFD, "SO_PASSPIDFD"),
    Option(SOL_SOCKET, SO.ZEROCOPY, "SO_ZEROCOPY"),
    Option(SOL_SOCKET, SO.WIFI_STATUS, "SO_WIFI_STATUS"),
    Option(SOL_SOCKET, SO.NOFCS, "SO_NOFCS"),
    Option(SOL_SOCKET, SO.BUSY_POLL, "SO_BUSY_POLL", UNKNOWN, lenient=True),
    Option(SOL_SOCKET, SO.INCOMING_CPU, "SO_INCOMING_CPU", -1),
    Option(SOL_SOCKET, SO.RESERVE_MEM, "SO_RESERVE_MEM", lenient=True),
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
    Option(IPPROTO.IP, IP.MULTICAST_IF, "IP_MULTICAST_IF", lenient=True),
    Option(IPPROTO.IP, IP.UNICAST_IF, "IP_UNICAST_IF", lenient=True),
)
MULTICAST6_OPTIONS = (
    Option(IPPROTO.IPV6, IPV6.MULTICAST_ALL, "IPV6_MULTICAST_ALL", 1),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", 1, lenient=True),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", 1),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_IF, "IPV6_MULTICAST_IF", lenient=True),
    Option(IPPROTO.IPV6, IPV6.UNICAST_IF, "IPV6_UNICAST_IF", lenient=True),
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
    Option(IPPROTO.IP, IP.ROUTER_ALERT, "IP_ROUTER_ALERT"),
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
RAW_RIGHT = "restore with CAP_NET_RAW over its network namespace"
RAW_COMMON = (
    Raw(SOL_SOCKET, SO.TXTIME, "SO_TXTIME", 8, bytes(8),
        remedy="restore with CAP_NET_ADMIN over its network namespace"),
    Raw(SOL_SOCKET, SO.MAX_PACING_RATE, "SO_MAX_PACING_RATE", 8, b"\xff" * 8),
    Raw(SOL_SOCKET, SO.TIMESTAMPING, "SO_TIMESTAMPING", 8, bytes(8), lenient=True),
    Raw(SOL_SOCKET, SO.TIMESTAMPING_NEW, "SO_TIMESTAMPING_NEW", 8, bytes(8), lenient=True),
)  # fmt: skip
RAW_IPV4 = (Raw(IPPROTO.IP, IP.OPTIONS, "IP_OPTIONS", 40),)
RAW_IPV6 = tuple(
    Raw(IPPROTO.IPV6, IPV6[name], f"IPV6_{name}", 64, most=2048, remedy=RAW_RIGHT)
    for name in ("HOPOPTS", "RTHDRDSTOPTS", "RTHDR", "DSTOPTS")
)
RAW_ICMPV6 = (Raw(IPPROTO.ICMPV6, ICMPV6_FILTER, "ICMPV6_FILTER", 32, bytes(32)),)
RAW_TCP = (Raw(IPPROTO.TCP, TCP.FASTOPEN_KEY, "TCP_FASTOPEN_KEY", 32),)
ALL_RAW = {
    (o.level, o.number): o for o in (*RAW_COMMON, *RAW_IPV4, *RAW_IPV6, *RAW_ICMPV6, *RAW_TCP)
}
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
PLACES = {key: place for place, key in enumerate(ALL)}
BY_FIELD = {option.field: option for option in COMMON if option.field}


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


def raw_table(family: int, protocol: int, kind: int = SOCK.STREAM) -> Sequence[Raw]:
    """Those whose values are bytes."""
    found = [*RAW_COMMON]
    if family in (AF.INET, AF.INET6):
        found += RAW_IPV4
    if family == AF.INET6:
        found += RAW_IPV6
        if kind == SOCK.RAW and protocol == IPPROTO.ICMPV6:
            found += RAW_ICMPV6
    if protocol == IPPROTO.TCP and kind == SOCK.STREAM:
        found += RAW_TCP
    return found
