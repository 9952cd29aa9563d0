# SPDX-License-Identifier: Apache-2.0
"""Every option of a sort of socket that can be set and read back, set to what is not its default.

The second argument names the sort. Options are tried by number, known or not.
"""

import socket
import struct
import sys
from contextlib import suppress

from files_base import LackingError, workload

TCP, UDP, UDPLITE, ICMP, ICMPV6, RAW = 6, 17, 136, 1, 58, 255
V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
ROOM = 512
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
SORTS = {
    "tcp4": (V4, STREAM, TCP), "tcp6": (V6, STREAM, TCP), "udp4": (V4, DGRAM, UDP),
    "udp6": (V6, DGRAM, UDP), "udplite4": (V4, DGRAM, UDPLITE), "udplite6": (V6, DGRAM, UDPLITE),
    "raw4": (V4, socket.SOCK_RAW, ICMP), "raw6": (V6, socket.SOCK_RAW, ICMPV6),
    "rawip4": (V4, socket.SOCK_RAW, RAW), "ping4": (V4, DGRAM, ICMP), "ping6": (V6, DGRAM, ICMPV6),
    "unix": (UNIX, STREAM, 0), "unixgram": (UNIX, DGRAM, 0),
    "netlink": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
}  # fmt: skip
HOP, DESTINATION = bytes([0, 0, 1, 4, 0, 0, 0, 0]), bytes([0, 15, 1, 124]) + bytes(124)
RAWS = (
    (1, 61, struct.pack("iI", 11, 3)),  # SO_TXTIME
    (1, 47, struct.pack("Q", 5 << 32)),  # SO_MAX_PACING_RATE
    (1, 37, struct.pack("iI", 0x58, 0)),  # SO_TIMESTAMPING
    (41, 54, HOP), (41, 55, HOP), (41, 59, DESTINATION),
    (41, 57, bytes([0, 2, 2, 1, 0, 0, 0, 0]) + socket.inet_pton(V6, "fd00::1")),
    (58, 1, bytes(range(32))),  # ICMPV6_FILTER
    (TCP, 33, bytes(range(1, 17))),  # TCP_FASTOPEN_KEY
)  # fmt: skip
"""Options whose values are bytes; the headers of DESTINATION are longer than usual."""
LEFT_ALONE = {
    (1, 7), (1, 8),  # buffers: a size of their own below
    (1, 30), (1, 26), (1, 27), (1, 50), (1, 51), (1, 52), (1, 44),  # filters
    (1, 73),  # SO_RESERVE_MEM takes memory of the cgroup
    (TCP, 19), (TCP, 20), (TCP, 21), (TCP, 22), (TCP, 29),  # repair
    (UDP, 100),  # UDP_ENCAP: refused
    (0, 32), (41, 17),  # the interface of multicast
    (0, 16), (0, 17), (41, 34), (41, 35),  # IPsec
    (41, 1),  # IPV6_ADDRFORM makes it another socket
    (41, 20), (41, 21), (41, 27), (41, 28),  # memberships
    (41, 22),  # IPV6_ROUTER_ALERT is told to all
    (TCP, 12), (TCP, 31), (TCP, 38),
}  # fmt: skip


def levels(family, kind, protocol):
    found = [1]
    if family in (V4, V6):
        found.append(0)
    if family == V6:
        found.append(41)
    found += {TCP: [TCP], UDP: [UDP], UDPLITE: [UDP, UDPLITE]}.get(protocol, [])
    if kind == socket.SOCK_RAW and family == V4:
        found.append(RAW)
    if family == socket.AF_NETLINK:
        found = [1, 270]
    if family == socket.AF_PACKET:
        found = [1, 263]
    return found


def change(one, level, number):
    before = one.getsockopt(level, number)
    for value in (before ^ 1, 1, 2, 7, 100):
        if value == before:
            continue
        with suppress(OSError):
            one.setsockopt(level, number, value)
            if one.getsockopt(level, number) == value:
                return value
            one.setsockopt(level, number, before)
    return None


def body(_):
    family, kind, protocol = SORTS[sys.argv[2]]
    try:
        one = socket.socket(family, kind, protocol)
    except PermissionError:
        raise LackingError("the right to ping (net.ipv4.ping_group_range)") from None
    changed = {}
    for level in levels(family, kind, protocol):
        for number in range(1, 90):
            if (level, number) in LEFT_ALONE:
                continue
            with suppress(OSError):
                value = change(one, level, number)
                if value is not None:
                    changed[level, number] = value
    one.setsockopt(1, socket.SO_RCVBUF, 50000)
    one.setsockopt(1, socket.SO_SNDBUF, 60000)
    assert len(changed) > 5
    raws = {}
    for level, number, value in RAWS:
        with suppress(OSError):
            one.setsockopt(level, number, value)
            raws[level, number] = one.getsockopt(level, number, ROOM)
            assert raws[level, number] == value
    assert len(raws) >= {V6: 4}.get(family, 1), raws
    now = {which: one.getsockopt(*which) for which in changed}
    yield
    after = {which: one.getsockopt(*which) for which in changed}
    assert raws == {which: one.getsockopt(*which, ROOM) for which in raws}
    assert now == after, {k: (now[k], after[k]) for k in now if now[k] != after[k]}


if __name__ == "__main__":
    workload(body)
