# SPDX-License-Identifier: Apache-2.0
"""Interfaces of tun and tap, with addresses and routes; their packets are only ours.

The addresses are of those for documentation (RFC 5737, RFC 3849); most interfaces get a name from
the kernel.
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

from files_base import child, chosen, number, state

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
TUNSETOFFLOAD, TUNGETIFF, TUNSETSNDBUF, TUNSETVNETHDRSZ = (
    0x400454D0, 0x800454D2, 0x400454D4, 0x400454D8,
)  # fmt: skip
TUNSETQUEUE, TUNSETCARRIER, TUNATTACHFILTER = 0x400454D9, 0x400454E2, 0x401054D5
TUN, TAP, MULTI_QUEUE, NO_PI, VNET_HDR = 0x1, 0x2, 0x100, 0x1000, 0x4000
ATTACH, DETACH = 0x200, 0x400
PORT = 4711


def attached(flags, name=b"torpor%d", more=0):
    device = os.open("/dev/net/tun", os.O_RDWR | more)
    raw = fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name, flags))
    return device, raw[:16].rstrip(b"\0").decode()


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def link(name):
    """What ip says of it; nothing when it is gone. (sysfs is that of who mounted it.)"""
    words = ["ip", "-o", "-d", "link", "show", name]
    return subprocess.run(words, capture_output=True, check=False, text=True).stdout


def name_of(device):
    return fcntl.ioctl(device, TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source, target, text):
    udp = struct.pack(">HHHH", PORT, PORT, 8 + len(text), 0) + text
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(target))  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + udp


def next_packet(device, wanted, skip=0):
    """The first packet of IPv4 that has these bytes; the kernel sends others besides."""
    for _ in range(50):
        assert select.select([device], [], [], 5)[0], "no packet comes"
        packet = os.read(device, 4096)[skip:]
        if wanted in packet:
            return packet
    raise AssertionError(f"{wanted} does not come")


@state
def tun(place):
    """With addresses, routes, a socket bound to it, and a reader that waits."""
    device, name = attached(TUN | NO_PI)
    ip("addr", "add", "203.0.113.1/28", "dev", name)
    ip("addr", "add", "203.0.113.2/28", "dev", name)
    ip("-6", "addr", "add", "2001:db8:7::1/64", "dev", name)
    ip("link", "set", name, "mtu", "1380", "txqueuelen", "77", "alias", "of a test", "up")
    ip("route", "add", "198.51.100.0/25", "dev", name)
    ip("route", "add", "198.51.100.128/25", "via", "203.0.113.5", "metric", "7", "mtu", "1300")
    ip("-6", "route", "add", "2001:db8:8::/48", "via", "2001:db8:7::9")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("203.0.113.1", PORT))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    while select.select([device], [], [], 0)[0]:
        os.read(device, 4096)
    yield
    assert name_of(device) == name
    os.write(device, datagram("203.0.113.9", "203.0.113.1", b"into it"))
    server.settimeout(5)
    assert server.recvfrom(100) == (b"into it", ("203.0.113.9", PORT))
    server.sendto(b"out of it", ("198.51.100.200", PORT))
    packet = next_packet(device, b"out of it")
    assert packet[12:16] == socket.inet_aton("203.0.113.1")
    os.close(device)
    assert not link(name)


@state
def tap(place):
    """With headers, offloads, an owner, a group, no carrier; it is down."""
    device, name = attached(TAP | NO_PI | VNET_HDR, more=os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETVNETHDRSZ, struct.pack("i", 12))
    fcntl.ioctl(device, TUNSETSNDBUF, struct.pack("i", 1 << 20))
    fcntl.ioctl(device, TUNSETOFFLOAD, 0x1 | 0x2 | 0x4 | 0x8)
    fcntl.ioctl(device, TUNSETOWNER, 1234)
    fcntl.ioctl(device, TUNSETGROUP, 5678)
    fcntl.ioctl(device, TUNSETCARRIER, struct.pack("i", 0))
    ip("link", "set", name, "address", "02:00:5e:00:53:01", "group", "7")
    yield
    assert name_of(device) == name
    assert number(os.read, device, 4096) in (errno.EIO, errno.EAGAIN)
    fcntl.ioctl(device, TUNSETCARRIER, struct.pack("i", 1))


@state
def info(place):
    """With the four bytes before each packet that say what it is."""
    device, name = attached(TUN)
    ip("addr", "add", "203.0.113.33/28", "dev", name)
    ip("link", "set", name, "up")
    while select.select([device], [], [], 0)[0]:
        os.read(device, 4096)
    yield
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"with a head", ("203.0.113.34", PORT))
    assert next_packet(device, b"with a head")[:4] == b"\0\0\x08\0"


@state
def queues(place):
    """Three of one interface, one of them detached, one held by a child as well."""
    first, name = attached(TUN | NO_PI | MULTI_QUEUE)
    second, _ = attached(TUN | NO_PI | MULTI_QUEUE, name.encode())
    third, _ = attached(TUN | NO_PI | MULTI_QUEUE, name.encode())
    fcntl.ioctl(second, TUNSETQUEUE, struct.pack("16sH22x", b"", DETACH))
    go, told = os.pipe(), os.pipe()

    def waits():
        os.close(go[1])
        os.read(go[0], 1)
        os.write(told[1], name_of(third).encode())

    child(waits)
    os.close(go[0])
    yield
    assert name_of(first) == name
    os.write(go[1], b"x")
    assert os.read(told[0], 16).decode() == name
    flags = struct.unpack_from("H", fcntl.ioctl(second, TUNGETIFF, bytes(40)), 16)[0]
    assert flags & DETACH
    fcntl.ioctl(second, TUNSETQUEUE, struct.pack("16sH22x", b"", ATTACH))
    assert "numqueues 3" in link(name)


@state
def filtered(place):
    """A tap with a filter of packets."""
    device, _ = attached(TAP | NO_PI)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFF))
    head = struct.pack("H6xQ", 1, ctypes.addressof(code))
    fcntl.ioctl(device, TUNATTACHFILTER, head)
    yield
    assert name_of(device)


@state
def lasting(place):
    """One that persists, in a bridge; only in a network namespace of a test."""
    device, name = attached(TAP | NO_PI, b"torpor-tap")
    fcntl.ioctl(device, TUNSETPERSIST, 1)
    ip("link", "add", "torpor-bridge", "type", "bridge")
    ip("link", "set", name, "master", "torpor-bridge", "up")
    yield
    assert name_of(device) == name == "torpor-tap"
    assert " master torpor-bridge " in link(name)
    os.close(device)
    assert link(name)


if __name__ == "__main__":
    if not os.access("/dev/net/tun", os.R_OK):
        (Path(sys.argv[1]) / "ready").write_text("lacking: /dev/net/tun")
        sys.exit(0)
    chosen()
