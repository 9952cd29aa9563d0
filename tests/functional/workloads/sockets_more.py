# SPDX-License-Identifier: Apache-2.0
"""Sockets that are neither unix nor TCP nor UDP, and odd ones; the second argument says which."""

import ctypes
import mmap
import os
import socket
import struct
from pathlib import Path

from files_base import LackingError, chosen, state

AF_PACKET, SOL_PACKET = 17, 263
SOL_NETLINK = 270


def made(*which):
    try:
        return socket.socket(*which)
    except OSError as error:
        raise LackingError(f"sockets of family {which[0]} ({error.strerror})") from None


@state
def part_of_rings(place):
    """A packet socket of whose mapped rings a part was unmapped."""
    one = socket.socket(AF_PACKET, socket.SOCK_RAW, 0)
    one.setsockopt(SOL_PACKET, 5, struct.pack("4I", 4096, 4, 2048, 8))
    area = mmap.mmap(one.fileno(), 4 * 4096)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    assert libc.munmap(ctypes.c_void_p(at + 3 * 4096), ctypes.c_size_t(4096)) == 0
    yield
    assert len(area[:4096]) == 4096


@state
def closed_ring(place):
    """The mapped rings of a packet socket that is closed."""
    with socket.socket(AF_PACKET, socket.SOCK_RAW, 0) as one:
        one.setsockopt(SOL_PACKET, 5, struct.pack("4I", 4096, 4, 2048, 8))
        file = os.dup(one.fileno())
        area = mmap.mmap(file, 4 * 4096)
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and "socket:" in os.readlink(link):
            os.close(int(link.name))
    yield
    assert len(area[:]) == 4 * 4096


@state
def old_packet(place):
    """SOCK_PACKET, bound by the name of a device."""
    one = socket.socket(AF_PACKET, 10, socket.htons(0x0003))
    libc_bind(one, struct.pack("<H14s", AF_PACKET, b"lo"))
    yield
    assert one.getsockopt(1, 3) == 10


def libc_bind(one, address):
    assert ctypes.CDLL(None).bind(one.fileno(), address, len(address)) == 0


@state
def netlink(place):
    """Netlink sockets: of many protocols, bound, in groups, connected, with options."""
    ones = []
    for protocol in (0, 2, 4, 12, 15, 16):
        one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        one.bind((0, 0))
        ones.append(one)
    ones[0].setsockopt(SOL_NETLINK, 1, 5)
    ones[0].setsockopt(SOL_NETLINK, 1, 33)
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
    events.bind((os.getpid() + 5, 1))
    user = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)
    user.bind((os.getpid() + 7, 0))
    user.connect((ones[1].getsockname()[0], 0))
    names = [one.getsockname() for one in (*ones, events, user)]
    yield
    assert [one.getsockname() for one in (*ones, events, user)] == names
    user.send(b"between users")
    assert ones[1].recv(100) == b"between users"


@state
def netlink_queued(place):
    """Between users: a message that waits."""
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)
    one.bind((0, 0))
    two = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)
    two.bind((0, 0))
    two.sendto(b"waits", (one.getsockname()[0], 0))
    yield
    assert one.recvfrom(100) == (b"waits", two.getsockname())


@state
def vsock(place):
    one = made(socket.AF_VSOCK, socket.SOCK_STREAM)
    yield
    assert one


@state
def alg(place):
    one = made(socket.AF_ALG, socket.SOCK_SEQPACKET)
    yield
    assert one


@state
def can(place):
    one = made(29, socket.SOCK_RAW, 1)
    yield
    assert one


@state
def bluetooth(place):
    one = made(31, socket.SOCK_SEQPACKET, 0)
    yield
    assert one


@state
def xdp(place):
    one = made(44, socket.SOCK_RAW, 0)
    yield
    assert one


@state
def kcm(place):
    one = made(41, socket.SOCK_DGRAM, 0)
    yield
    assert one


@state
def smc(place):
    one = made(43, socket.SOCK_STREAM, 0)
    yield
    assert one


@state
def tipc(place):
    one = made(30, socket.SOCK_RDM, 0)
    yield
    assert one


@state
def sctp(place):
    one = made(socket.AF_INET, socket.SOCK_STREAM, 132)
    yield
    assert one


@state
def mptcp(place):
    server = made(socket.AF_INET, socket.SOCK_STREAM, 262)
    server.bind(("127.0.0.1", 0))
    server.listen(2)
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    yield
    client.send(b"x")
    assert accepted.recv(5) == b"x"


@state
def mptcp_listening(place):
    server = made(socket.AF_INET, socket.SOCK_STREAM, 262)
    server.bind(("127.0.0.1", 0))
    server.listen(2)
    yield
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.send(b"x")
    assert accepted.recv(5) == b"x"


@state
def tls(place):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    try:
        client.setsockopt(6, 31, b"tls")
    except OSError as error:
        raise LackingError(f"TLS in the kernel ({error.strerror})") from None
    yield
    assert accepted


@state
def md5(place):
    """A listener with a key for a peer (TCP_MD5SIG)."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    key = struct.pack("<HH4s120x", 2, 0, socket.inet_aton("127.0.0.9")) + struct.pack(
        "<BBHI80s", 0, 0, 4, 0, b"word"
    )
    try:
        server.setsockopt(6, 14, key)
    except OSError as error:
        raise LackingError(f"TCP_MD5SIG ({error.strerror})") from None
    server.listen(1)
    yield
    assert server


@state
def other_namespace(place):
    """A socket of another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(0x40000000) == 0
    theirs = socket.socket()
    theirs.bind(("127.0.0.1", 4711))
    theirs.listen(1)
    gram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert libc.setns(ours, 0) == 0
    os.close(ours)
    yield
    assert theirs.getsockname()
    assert gram


if __name__ == "__main__":
    chosen()
