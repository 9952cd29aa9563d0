# SPDX-License-Identifier: Apache-2.0
"""Socket options that all kinds of sockets share, read by the tables of `option_tables`.

Facts:
- An option is read by getsockopt(2) and kept only when it differs from a fresh socket's.
- SO_SNDBUF and SO_RCVBUF read twice what was set, and setting one switches off the kernel's
  own tuning; SO_BUF_LOCK (v5.15) tells which were set. They are set back only then.
- More than net.core.{w,r}mem_max takes CAP_NET_ADMIN: SO_SNDBUFFORCE is tried, and what the
  kernel grants without it is kept.
- A classic filter is read back as it was attached; of an eBPF one nothing can be read.

CRIU: sk_opts_entry of each socket's message. What that cannot say is in torpor.json, section
`sockets`, key the file's id: `[[level, option, value], ...]`.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from torpor.engine import asking
from torpor.engine.asking import Question
from torpor.engine.errors import KernelError
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import IPPROTO, SO, SOCK, SOL_SOCKET, TCP
from torpor.engine.kind import FdView, FileId, ImageSink, ImageSource, Limit, refuse
from torpor.engine.sockets.option_tables import (
    ALL,
    ALL_RAW,
    BY_FIELD,
    COMMON,
    PLACES,
    UNKNOWN,
    Raw,
    raw_table,
    table,
)

SECTION = "sockets"
NET_NS_ID = 2
"""Id of the network namespace in our images (ids-N.img); CRIU fails without it."""
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
IFNAMSIZ = 16
KINDS = ((SOL_SOCKET, SO.DOMAIN), (SOL_SOCKET, SO.TYPE), (SOL_SOCKET, SO.PROTOCOL))
SIZES = ((SOL_SOCKET, SO.SNDBUF), (SOL_SOCKET, SO.RCVBUF), (SOL_SOCKET, SO.BUF_LOCK))
FASTOPEN, FASTOPEN_KEY = (IPPROTO.TCP, TCP.FASTOPEN), (IPPROTO.TCP, TCP.FASTOPEN_KEY)
FRESH_MODE = 0o777
NODE = (-1, 0)
"""In place of level and option: mode, owner and group."""

FILTER_UNREADABLE = Limit(
    case="ebpf-filter",
    what="its filter is an eBPF program, which cannot be read back",
    remedy="detach it before the checkpoint (SO_DETACH_FILTER)",
)
OTHER_NETWORK = Limit(
    case="socket-of-another-network",
    what="this socket is of another network namespace than its task",
    remedy="close it before the checkpoint, or have a task inside that namespace hold it",
)
DEVICE_GONE = Limit(
    case="bound-device-gone",
    what="this socket is bound to a network interface that is gone (SO_BINDTODEVICE)",
    remedy="close it before the checkpoint, or bind it to another interface",
)
LIMITS = (FILTER_UNREADABLE, OTHER_NETWORK, DEVICE_GONE)


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
    raws: tuple[tuple[int, int, bytes], ...] = ()
    """(level, option, bytes) of each of ALL_RAW that is not; IP_OPTIONS as the kernel has them."""
    mode: int = FRESH_MODE
    uid: int = 0
    gid: int = 0
    """Of the socket itself: whose it is in /proc/net, and what its file gets."""
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


@cache
def questions(family: int, protocol: int, kind: int = SOCK.STREAM) -> tuple[Question, ...]:
    """What `read` asks, and what tells the kinds of sockets apart."""
    plain = (*KINDS, *SIZES, *((o.level, o.number) for o in table(family, protocol, kind)))
    sized: list[tuple[int, int, int]] = [
        (SOL_SOCKET, SO.NETNS_COOKIE, 8),
        (SOL_SOCKET, SO.LINGER, 8),
        (SOL_SOCKET, SO.BINDTODEVICE, IFNAMSIZ),
        (SOL_SOCKET, SO.ATTACH_FILTER, 0),
        (SOL_SOCKET, SO.SNDTIMEO, 16),
        (SOL_SOCKET, SO.RCVTIMEO, 16),
    ]
    sized += [(one.level, one.number, one.room) for one in raw_table(family, protocol, kind)]
    return tuple(asking.option(*one) for one in (*plain, *sized))


def read(view: FdView, family: int, protocol: int, kind: int = SOCK.STREAM) -> SocketOptions:
    """All options. Raises Refused: what cannot be read, a socket that is not from here."""
    if not view.is_of_own_network():
        raise refuse(OTHER_NETWORK, view.subject)
    known = table(family, protocol, kind)
    sndbuf, rcvbuf, lock, *found = view.int_options(
        [*SIZES, *((one.level, one.number) for one in known)]
    )
    values = [
        (one.level, one.number, value)
        for one, value in zip(known, found, strict=True)
        if value is not None and value != one.default
    ]
    linger = view.getsockopt(SOL_SOCKET, SO.LINGER, 8)
    on, seconds = struct.unpack("<ii", linger) if linger else (0, 0)
    device = _or_refused(view, SO.BINDTODEVICE, IFNAMSIZ, DEVICE_GONE)
    attached = _or_refused(view, SO.ATTACH_FILTER, 0, FILTER_UNREADABLE)
    return SocketOptions(
        raws=_raws(view, raw_table(family, protocol, kind), values),
        sndbuf_bytes=sndbuf or 0,
        rcvbuf_bytes=rcvbuf or 0,
        buf_lock=lock,
        send_timeout_us=_time(view.getsockopt(SOL_SOCKET, SO.SNDTIMEO, 16)),
        receive_timeout_us=_time(view.getsockopt(SOL_SOCKET, SO.RCVTIMEO, 16)),
        linger_s=seconds if on else None,
        device=device.rstrip(b"\0").decode("ascii", "replace"),
        filter=attached,
        mode=view.st_mode & 0o7777,
        uid=view.st_uid,
        gid=view.st_gid,
        values=tuple(values),
    )


def _or_refused(view: FdView, option: int, room: int, limit: Limit) -> bytes:
    try:
        return view.getsockopt(SOL_SOCKET, option, room) or b""
    except KernelError as error:
        raise refuse(limit, view.subject, error.cause) from error


def _raws(
    view: FdView, table: Sequence[Raw], values: Sequence[tuple[int, int, int]]
) -> tuple[tuple[int, int, bytes], ...]:
    """Those that are not a fresh socket's. Where TCP_FASTOPEN is off the key is the machine's."""
    is_open = any(one[:2] == FASTOPEN for one in values)
    found = []
    for one in table:
        if (one.level, one.number) == FASTOPEN_KEY and not is_open:
            continue
        value = view.getsockopt(one.level, one.number, one.most or one.room)
        if value and value != one.default:
            found.append((one.level, one.number, value))
    return tuple(found)


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
    unsaid += [[level, n, value.hex()] for level, n, value in options.raws]
    node = (options.mode, options.uid, options.gid)
    if node != (FRESH_MODE, 0, 0):
        unsaid.append([*NODE, list(node)])
    if unsaid:
        images.extra(SECTION, str(file_id), unsaid)


def decode(
    message: Any,  # noqa: ANN401
    images: ImageSource,
    file_id: FileId,
    more: Iterable[tuple[int, int, int]] = (),
) -> SocketOptions:
    """Back from the message, from what `keep` kept, and ``more`` from the kind's own fields."""
    unsaid = images.extra(SECTION, str(file_id)) or ()
    raw = message.SerializeToString()
    return _decoded(
        raw, tuple((level, n, _hashable(value)) for level, n, value in unsaid), tuple(more)
    )


@lru_cache(maxsize=256)
def _decoded(
    raw: bytes, unsaid: tuple[tuple[int, int, Any], ...], more: tuple[tuple[int, int, int], ...]
) -> SocketOptions:
    """Most sockets of a program have the same options."""
    message = pb.sk_opts_entry.FromString(raw)
    found: dict[tuple[int, int], int] = {(level, n): value for level, n, value in more}
    for field, value in message.ListFields():
        if (option := BY_FIELD.get(field.name)) is not None:
            found[option.level, option.number] = int(value)
    raws: list[tuple[int, int, bytes]] = []
    node = FRESH_MODE, 0, 0
    for level, n, value in unsaid:
        if (level, n) in ALL_RAW:
            raws.append((level, n, _raw(value)))
        elif (level, n) == NODE:
            node = (int(value[0]), int(value[1]), int(value[2]))
        elif (level, n) in ALL:
            found[level, n] = int(value)
    values = [(*key, v) for key, v in found.items() if key in ALL and v != ALL[key].default]
    return SocketOptions(
        raws=tuple(raws),
        sndbuf_bytes=message.so_sndbuf,
        rcvbuf_bytes=message.so_rcvbuf,
        buf_lock=message.so_buf_lock if message.HasField("so_buf_lock") else None,
        send_timeout_us=message.so_snd_tmo_sec * 1_000_000 + message.so_snd_tmo_usec,
        receive_timeout_us=message.so_rcv_tmo_sec * 1_000_000 + message.so_rcv_tmo_usec,
        linger_s=message.so_linger if message.HasField("so_linger") else None,
        device=message.so_bound_dev.rstrip(b"\0").decode("ascii", "replace"),
        filter=struct.pack(f"<{len(message.so_filter)}Q", *message.so_filter),
        mode=node[0],
        uid=node[1],
        gid=node[2],
        values=tuple(sorted(values, key=_place)),
    )


def _hashable(value: Any) -> Any:  # noqa: ANN401
    return tuple(value) if isinstance(value, list) else value


def _place(value: tuple[int, int, int]) -> int:
    """Where an option stands among all: some must be set before others."""
    return PLACES[value[:2]]


def _raw(value: str | int) -> bytes:
    """In hexadecimal; a number where an earlier version had the first four bytes only."""
    return value.to_bytes(8, "little") if isinstance(value, int) else bytes.fromhex(value)


def _time(raw: bytes | None) -> int:
    """Microseconds of a struct timeval."""
    if raw is None or len(raw) < 16:
        return 0
    seconds, microseconds = struct.unpack("<qq", raw[:16])
    return int(seconds * 1_000_000 + microseconds)
