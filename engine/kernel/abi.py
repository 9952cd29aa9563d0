# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernel's interface which kinds use; kinds may not import socket or os.

Only ever append. Values are those of x86-64 and aarch64 (include/uapi, v6.8).
"""

from enum import IntEnum


class AF(IntEnum):
    """Address families (include/linux/socket.h)."""

    UNSPEC = 0
    UNIX = 1
    INET = 2
    AX25 = 3
    INET6 = 10
    NETLINK = 16
    PACKET = 17
    RDS = 21
    CAN = 29
    TIPC = 30
    BLUETOOTH = 31
    IUCV = 32
    ALG = 38
    NFC = 39
    VSOCK = 40
    KCM = 41
    QIPCRTR = 42
    SMC = 43
    XDP = 44
    MCTP = 45


class SOCK(IntEnum):
    """Types of sockets (include/linux/net.h)."""

    STREAM = 1
    DGRAM = 2
    RAW = 3
    RDM = 4
    SEQPACKET = 5
    DCCP = 6
    PACKET = 10


class IPPROTO(IntEnum):
    """Protocols of AF_INET."""

    IP = 0
    ICMP = 1
    IGMP = 2
    TCP = 6
    UDP = 17
    IPV6 = 41
    ICMPV6 = 58
    SCTP = 132
    UDPLITE = 136
    RAW = 255
    MPTCP = 262


PID_END = 1 << 22
"""PID_MAX_LIMIT of include/linux/threads.h: no pid, tid, group or session has a higher number."""
SOL_SOCKET = 1
SOL_NETLINK = 270


class SO(IntEnum):
    """Options of SOL_SOCKET (asm-generic/socket.h)."""

    DEBUG = 1
    REUSEADDR = 2
    TYPE = 3
    DONTROUTE = 5
    BROADCAST = 6
    SNDBUF = 7
    RCVBUF = 8
    KEEPALIVE = 9
    OOBINLINE = 10
    NO_CHECK = 11
    PRIORITY = 12
    LINGER = 13
    REUSEPORT = 15
    PASSCRED = 16
    PEERCRED = 17
    RCVLOWAT = 18
    RCVTIMEO = 20
    SNDTIMEO = 21
    BINDTODEVICE = 25
    ATTACH_FILTER = 26
    """Also SO_GET_FILTER when read."""
    TIMESTAMP = 29
    ACCEPTCONN = 30
    SNDBUFFORCE = 32
    RCVBUFFORCE = 33
    PASSSEC = 34
    TIMESTAMPNS = 35
    MARK = 36
    TIMESTAMPING = 37
    PROTOCOL = 38
    DOMAIN = 39
    RXQ_OVFL = 40
    WIFI_STATUS = 41
    PEEK_OFF = 42
    NOFCS = 43
    LOCK_FILTER = 44
    SELECT_ERR_QUEUE = 45
    BUSY_POLL = 46
    MAX_PACING_RATE = 47
    INCOMING_CPU = 49
    MEMINFO = 55
    PEERGROUPS = 59
    ZEROCOPY = 60
    TXTIME = 61
    TIMESTAMP_NEW = 63
    TIMESTAMPNS_NEW = 64
    TIMESTAMPING_NEW = 65
    PREFER_BUSY_POLL = 69
    BUSY_POLL_BUDGET = 70
    NETNS_COOKIE = 71
    BUF_LOCK = 72
    RESERVE_MEM = 73
    TXREHASH = 74
    RCVMARK = 75
    PASSPIDFD = 76
    RCVPRIORITY = 82
    PASSRIGHTS = 83


class IP(IntEnum):
    """Options of IPPROTO_IP."""

    TOS = 1
    TTL = 2
    HDRINCL = 3
    OPTIONS = 4
    ROUTER_ALERT = 5
    RECVOPTS = 6
    RETOPTS = 7
    PKTINFO = 8
    MTU_DISCOVER = 10
    RECVERR = 11
    RECVTTL = 12
    RECVTOS = 13
    FREEBIND = 15
    PASSSEC = 18
    TRANSPARENT = 19
    RECVORIGDSTADDR = 20
    MINTTL = 21
    NODEFRAG = 22
    CHECKSUM = 23
    BIND_ADDRESS_NO_PORT = 24
    RECVFRAGSIZE = 25
    RECVERR_RFC4884 = 26
    MULTICAST_IF = 32
    MULTICAST_TTL = 33
    MULTICAST_LOOP = 34
    MULTICAST_ALL = 49
    UNICAST_IF = 50
    LOCAL_PORT_RANGE = 51
    PROTOCOL = 52
    """The port that is really had, of a socket that is not raw."""


class IPV6(IntEnum):
    """Options of IPPROTO_IPV6."""

    OLD_PKTINFO = 2
    OLD_HOPOPTS = 3
    OLD_DSTOPTS = 4
    OLD_RTHDR = 5
    CHECKSUM = 7
    OLD_HOPLIMIT = 8
    FLOWINFO = 11
    UNICAST_HOPS = 16
    MULTICAST_IF = 17
    MULTICAST_HOPS = 18
    MULTICAST_LOOP = 19
    ROUTER_ALERT = 22
    MTU_DISCOVER = 23
    RECVERR = 25
    V6ONLY = 26
    MULTICAST_ALL = 29
    UNICAST_IF = 76
    ROUTER_ALERT_ISOLATE = 30
    RECVERR_RFC4884 = 31
    FLOWINFO_SEND = 33
    HDRINCL = 36
    RECVPKTINFO = 49
    RECVHOPLIMIT = 51
    RECVHOPOPTS = 53
    HOPOPTS = 54
    RTHDRDSTOPTS = 55
    RECVRTHDR = 56
    RTHDR = 57
    RECVDSTOPTS = 58
    DSTOPTS = 59
    RECVPATHMTU = 60
    DONTFRAG = 62
    RECVTCLASS = 66
    TCLASS = 67
    AUTOFLOWLABEL = 70
    ADDR_PREFERENCES = 72
    MINHOPCOUNT = 73
    RECVORIGDSTADDR = 74
    TRANSPARENT = 75
    RECVFRAGSIZE = 77
    FREEBIND = 78


class TCP(IntEnum):
    """Options of IPPROTO_TCP."""

    NODELAY = 1
    MAXSEG = 2
    CORK = 3
    KEEPIDLE = 4
    KEEPINTVL = 5
    KEEPCNT = 6
    SYNCNT = 7
    LINGER2 = 8
    DEFER_ACCEPT = 9
    WINDOW_CLAMP = 10
    INFO = 11
    CONGESTION = 13
    THIN_LINEAR_TIMEOUTS = 16
    USER_TIMEOUT = 18
    REPAIR = 19
    REPAIR_QUEUE = 20
    QUEUE_SEQ = 21
    REPAIR_OPTIONS = 22
    FASTOPEN = 23
    TIMESTAMP = 24
    NOTSENT_LOWAT = 25
    SAVE_SYN = 27
    REPAIR_WINDOW = 29
    FASTOPEN_CONNECT = 30
    ULP = 31
    FASTOPEN_KEY = 33
    FASTOPEN_NO_COOKIE = 34
    INQ = 36
    TX_DELAY = 37
    RTO_MAX_MS = 44
    RTO_MIN_US = 45
    DELACK_MAX_US = 46


class TCPState(IntEnum):
    """States of TCP, used by other families too (net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class NETLINK(IntEnum):
    """Options of SOL_NETLINK."""

    ADD_MEMBERSHIP = 1
    PKTINFO = 3
    BROADCAST_ERROR = 4
    NO_ENOBUFS = 5
    LISTEN_ALL_NSID = 8
    LIST_MEMBERSHIPS = 9
    CAP_ACK = 10
    EXT_ACK = 11
    GET_STRICT_CHK = 12


SIOCINQ = 0x541B
SIOCOUTQ = 0x5411
FIONREAD = 0x541B
SOCK_CLOEXEC = 0o2000000
MSG_DONTWAIT = 0x40
MSG_NOSIGNAL = 0x4000
POLLIN = 1
POLLPRI = 2
POLLERR = 8
POLLHUP = 16
POLLRDHUP = 0x2000
S_IFSOCK = 0o140000
O_PATH = 0o10000000
ENXIO = 6
RENAME_NOREPLACE = 1
SIOCOUTQNSD = 0x894B


class UDP(IntEnum):
    """Options of IPPROTO_UDP."""

    CORK = 1
    ENCAP = 100
    NO_CHECK6_TX = 101
    NO_CHECK6_RX = 102
    SEGMENT = 103
    GRO = 104


class UDPLITE(IntEnum):
    """Options of IPPROTO_UDPLITE."""

    SEND_CSCOV = 10
    RECV_CSCOV = 11
