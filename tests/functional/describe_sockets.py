# SPDX-License-Identifier: Apache-2.0
"""What can be read of a socket: names, every option, queues, the kernel's own word on TCP.

Options are asked for by number, known or not: whatever answers is compared.
"""

import ctypes
import fcntl
import math
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

OF_STREAMS = {
    (41, 17): "IPV6_MULTICAST_IF of an accepted socket: where the request came from",
    (41, 18): "IPV6_MULTICAST_HOPS of an accepted socket: what the request had",
    (0, 9): "IP_PKTOPTIONS: of what was received last",
    (41, 6): "IPV6_2292PKTOPTIONS: as IP_PKTOPTIONS",
    (0, 33): "IP_MULTICAST_TTL of an accepted socket is what the listener's request had",
}
LEVELS = {
    socket.AF_UNIX: (1,),
    socket.AF_INET: (1, 0),
    socket.AF_INET6: (1, 0, 41),
    socket.AF_NETLINK: (1, 270),
    socket.AF_PACKET: (1, 263),
}
TCP, UDP, UDPLITE, RAW = 6, 17, 136, 255
NUMBERS = range(1, 140)
ROOM = 512
NOT_COMPARED = {
    (1, 4): "SO_ERROR takes the error away",
    (1, 17): "SO_PEERCRED: compared by name below",
    (1, 26): "SO_GET_FILTER counts in instructions: below",
    (1, 31): "SO_PEERSEC",
    (1, 49): "SO_INCOMING_CPU: history",
    (1, 55): "SO_MEMINFO: how the kernel packs what is queued",
    (1, 56): "SO_INCOMING_NAPI_ID: history",
    (1, 57): "SO_COOKIE: a number of order",
    (1, 59): "SO_PEERGROUPS: as SO_PEERCRED",
    (1, 77): "SO_PEERPIDFD is a descriptor",
    (6, 2): "TCP_MAXSEG follows the window: its order below",
    (6, 11): "TCP_INFO: below",
    (6, 12): "TCP_QUICKACK: the kernel turns it itself",
    (6, 24): "TCP_TIMESTAMP runs on",
    (6, 26): "TCP_CC_INFO: history",
    (6, 27): "TCP_SAVE_SYN of a listener",
    (6, 28): "TCP_SAVED_SYN: history",
    (6, 35): "TCP_ZEROCOPY_RECEIVE does something",
    (263, 11): "PACKET_HDRLEN answers what it was asked with",
    (263, 6): "PACKET_STATISTICS are taken away by a look",
    (270, 9): "memberships: told by fdinfo and by name",
    (0, 16): "IP_IPSEC_POLICY",
    (41, 34): "IPV6_IPSEC_POLICY",
    (41, 24): "IPV6_MTU of a path",
    (0, 14): "IP_MTU of a path",
}
TCP_INFO_FIELDS = {"state": (0, 1), "options": (5, 1), "scales": (6, 1)}
ESTABLISHED = 1
_libc = ctypes.CDLL(None, use_errno=True)


def describe(pid: int, fd: int) -> dict[str, str]:
    """All of it by name; empty when it is gone."""
    copy = copy_of(pid, fd)
    if copy < 0:
        return {}
    with socket.socket(fileno=copy) as one:
        return {name: str(value) for name, value in _facts(one)}


def copy_of(pid: int, fd: int) -> int:
    """A descriptor of ours of the same description; -1 when it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        return _libc.syscall(438, pidfd, fd, 0)
    finally:
        os.close(pidfd)


def _facts(one):
    family, protocol = one.family, one.getsockopt(1, 38)
    yield "family, type, protocol", (int(family), one.getsockopt(1, 3), protocol)
    told = os.fstat(one.fileno())
    yield "mode and owner", (oct(told.st_mode), told.st_uid, told.st_gid)
    yield "name", _name(one.getsockname)
    yield "peer", _name(one.getpeername)
    levels = [*LEVELS.get(family, (1,))]
    if family in (socket.AF_INET, socket.AF_INET6):
        levels += {TCP: [TCP], UDP: [UDP], UDPLITE: [UDP, UDPLITE]}.get(protocol, [])
        if one.getsockopt(1, 3) == socket.SOCK_RAW:
            levels.append(RAW)
    left_out = NOT_COMPARED | (OF_STREAMS if protocol == TCP else {})
    for level in levels:
        for number in NUMBERS:
            if (level, number) not in left_out:
                with suppress(OSError):
                    yield f"option {level}, {number}", one.getsockopt(level, number, ROOM).hex()
    with suppress(OSError):
        yield "filter", _filter(one)
    if family == socket.AF_UNIX:
        with suppress(OSError):
            yield "waiting", _count(one, 0x541B)
        yield "peer's user", struct.unpack("iII", one.getsockopt(1, 17, 12))[1:]
    if protocol == TCP and family != socket.AF_UNIX:
        yield from _tcp(one)
    elif family in (socket.AF_INET, socket.AF_INET6):
        yield "memberships", sorted([*_memberships(one, 0), *_memberships(one, 41)])


def _memberships(one, level):
    """What MCAST_MSFILTER tells of each group of our network namespace."""
    text = Path("/proc/net/igmp6" if level else "/proc/net/igmp").read_text()
    index, address = 0, b""
    for line in text.splitlines():
        words = line.split()
        if level:
            index, address = int(words[0]), struct.pack("HHI", 10, 0, 0) + bytes.fromhex(words[2])
        elif line[:1].isspace():
            address = struct.pack("HHI", 2, 0, int(words[0], 16))
        else:
            index, address = int(words[0]) if words[0].isdigit() else 0, b""
        asked = struct.pack("I4x128sII", index, address, 0, 16)
        room = ctypes.create_string_buffer(asked + bytes(16 * 128))
        size = ctypes.c_uint32(len(room.raw) - 1)
        if address and not _libc.getsockopt(one.fileno(), level, 48, room, ctypes.byref(size)):
            yield room.raw.rstrip(b"\0").hex()


def _tcp(one):
    info = one.getsockopt(TCP, 11, 256)
    for name, (at, size) in TCP_INFO_FIELDS.items():
        yield f"tcp {name}", info[at : at + size].hex()
    yield "order of segments", round(math.log2(max(one.getsockopt(TCP, 2), 1)))
    if info[0] == 10:
        yield "backlog", struct.unpack_from("II", info, 24)
    else:
        with suppress(OSError):
            yield "waiting", _count(one, 0x541B)


def _name(ask):
    try:
        return ask()
    except OSError as error:
        return error.strerror


def _count(one, request):
    return struct.unpack("i", fcntl.ioctl(one.fileno(), request, bytes(4)))[0]


def _filter(one):
    room, size = ctypes.create_string_buffer(8 * 4096), ctypes.c_uint32(4096)
    if _libc.getsockopt(one.fileno(), 1, 26, room, ctypes.byref(size)):
        return ""
    return room.raw[: 8 * size.value].hex()
