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
from dataclasses import dataclass
from typing import Any

from torpor.engine.errors import KernelError
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import AF, IP, IPPROTO, IPV6, SO, SOL_NETLINK, SOL_SOCKET, TCP, UDP
from torpor.engine.kernel.abi import NETLINK as NL
from torpor.engine.kind import FdView, FileId, ImageSink, ImageSource, Limit, refuse
from torpor.engine.program.ops import Arg, Data, Expect, Op

SECTION = "sockets"
NET_NS_ID = 2
"""Id of the network namespace in our images (ids-N.img); CRIU fails without it."""
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
IFNAMSIZ = 16

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
    Option(SOL_SOCKET, SO.RXQ_OVFL, "SO_RXQ_OVFL"),
    Option(SOL_SOCKET, SO.PEEK_OFF, "SO_PEEK_OFF", -1),
    Option(SOL_SOCKET, SO.SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE"),
    Option(SOL_SOCKET, SO.PASSPIDFD, "SO_PASSPIDFD"),
    Option(SOL_SOCKET, SO.ZEROCOPY, "SO_ZEROCOPY"),
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
)
TCP_OPTIONS = (
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
)
MULTICAST_OPTIONS = (
    Option(IPPROTO.IP, IP.MULTICAST_TTL, "IP_MULTICAST_TTL", 1),
    Option(IPPROTO.IP, IP.MULTICAST_LOOP, "IP_MULTICAST_LOOP", 1),
)
MULTICAST6_OPTIONS = (
    Option(IPPROTO.IPV6, IPV6.MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", 1),
    Option(IPPROTO.IPV6, IPV6.MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", 1),
)
UDP_OPTIONS = (
    Option(IPPROTO.UDP, UDP.CORK, "UDP_CORK"),
    Option(IPPROTO.UDP, UDP.NO_CHECK6_TX, "UDP_NO_CHECK6_TX"),
    Option(IPPROTO.UDP, UDP.NO_CHECK6_RX, "UDP_NO_CHECK6_RX"),
    Option(IPPROTO.UDP, UDP.SEGMENT, "UDP_SEGMENT"),
    Option(IPPROTO.UDP, UDP.GRO, "UDP_GRO"),
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
        *MULTICAST_OPTIONS,
        *MULTICAST6_OPTIONS,
        *NETLINK_OPTIONS,
    )
}


def table(family: int, protocol: int) -> Sequence[Option]:
    """The options that a socket may have."""
    found = [*COMMON]
    if family in (AF.INET, AF.INET6):
        found += IPV4_OPTIONS
    if family == AF.INET6:
        found += IPV6_OPTIONS
    if protocol in (IPPROTO.TCP, IPPROTO.MPTCP):
        found += TCP_OPTIONS
    if protocol == IPPROTO.UDP:
        found += (*UDP_OPTIONS, *MULTICAST_OPTIONS)
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
    values: tuple[tuple[int, int, int], ...] = ()
    """(level, option, value) of each that is not a fresh socket's."""

    def value(self, level: int, number: int) -> int:
        """Value of an option of the tables."""
        for each in self.values:
            if each[:2] == (level, number):
                return each[2]
        option = ALL.get((level, number))
        return option.default if option else 0


def number(view: FdView, level: int, option: int) -> int | None:
    """Value of an int option, None when the socket does not know it."""
    raw = view.getsockopt(level, option, 4)
    if raw is None:
        return None
    return int.from_bytes(raw, "little", signed=len(raw) == 4)


def read(view: FdView, family: int, protocol: int) -> SocketOptions:
    """All options. Raises Refused when the filter cannot be read."""
    known = table(family, protocol)
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
    return SocketOptions(
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
    unsaid = [list(v) for v in options.values if not ALL[v[0], v[1]].field]
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
    for level, n, value in images.extra(SECTION, str(file_id)) or ():
        if (level, n) in ALL:
            found[level, n] = int(value)
    values = (
        (option.level, option.number, found[option.level, option.number])
        for option in ALL.values()
        if found.get((option.level, option.number), option.default) != option.default
    )
    return SocketOptions(
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
    return [
        set_value(fd, ALL[level, n], value, subject)
        for level, n, value in options.values
        if ALL[level, n].early
    ]


def late_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    """The other options; `buffer_ops` come when nothing is left to be queued."""
    ops = [
        set_value(fd, ALL[level, n], value, subject)
        for level, n, value in options.values
        if not ALL[level, n].early
    ]
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
    if options.device:
        note = f"SO_BINDTODEVICE = {options.device}"
        ops.append(_set(fd, SO.BINDTODEVICE, options.device.encode(), subject, note))
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
