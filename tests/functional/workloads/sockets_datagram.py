# SPDX-License-Identifier: Apache-2.0
"""Datagram sockets of Internet protocols; the second argument says what of them."""

import os
import socket
import struct
import sys

from files_base import workload

V4, V6 = socket.AF_INET, socket.AF_INET6
UDPLITE = 136


def bound(family=V4, protocol=0):
    one = socket.socket(family, socket.SOCK_DGRAM, protocol)
    one.bind(("127.0.0.1" if family == V4 else "::1", 0))
    one.settimeout(10)
    return one


def connected(family, protocol):
    def body(_):
        one, two = bound(family, protocol), bound(family, protocol)
        one.connect(two.getsockname())
        two.connect(one.getsockname())
        if protocol == UDPLITE:
            one.setsockopt(UDPLITE, 10, 8)
            two.setsockopt(UDPLITE, 11, 8)
        names = one.getsockname(), two.getsockname()
        yield
        assert names == (one.getsockname(), two.getsockname())
        one.send(b"from one")
        assert two.recv(100) == b"from one"
        two.send(b"from two")
        assert one.recv(100) == b"from two"

    return body


def shut(how, tcp):
    def body(_):
        if tcp:
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                server.listen(1)
                one = socket.create_connection(server.getsockname())
                two, _ = server.accept()
        else:
            one, two = bound(), bound()
            one.connect(two.getsockname())
            two.connect(one.getsockname())
        one.shutdown(how)
        yield
        if how != socket.SHUT_RD:
            try:
                one.send(b"x")
                raise AssertionError
            except BrokenPipeError:
                pass
        if how != socket.SHUT_WR:
            one.setblocking(True)
            assert one.recv(1) == b""
        if how == socket.SHUT_RD:
            one.send(b"still")
            assert two.recv(10) == b"still"

    return body


def raw(_):
    """A packet of our own protocol number, with addresses, filters and headers included."""
    one = socket.socket(V4, socket.SOCK_RAW, 253)
    one.bind(("127.0.0.1", 0))
    two = socket.socket(V4, socket.SOCK_RAW, 253)
    two.connect(("127.0.0.1", 0))
    two.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    any_icmp = socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    any_icmp.setsockopt(255, 1, struct.pack("I", 1 << 8))
    six = socket.socket(V6, socket.SOCK_RAW, 253)
    six.bind(("::1", 0))
    yield
    one.settimeout(10)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 24, 0, 0, 64, 253, 0, *[bytes([127, 0, 0, 1])] * 2
    )
    two.send(header + b"data")
    assert one.recv(100)[20:] == b"data"
    six.settimeout(10)
    six.sendto(b"six", ("::1", 0))
    assert six.recv(100) == b"six"


def corked(_):
    one, two = bound(), bound()
    one.connect(two.getsockname())
    one.setsockopt(socket.IPPROTO_UDP, 1, 1)
    one.send(b"held ")
    yield
    one.send(b"back")
    one.setsockopt(socket.IPPROTO_UDP, 1, 0)
    assert two.recv(100) == b"held back"


BODIES = {
    "udp4": connected(V4, 0), "udp6": connected(V6, 0), "udplite4": connected(V4, UDPLITE),
    "udplite6": connected(V6, UDPLITE), "shut_receiving": shut(socket.SHUT_RD, tcp=False),
    "shut_sending": shut(socket.SHUT_WR, tcp=False), "shut_both": shut(socket.SHUT_RDWR, tcp=False),
    "tcp_shut_receiving": shut(socket.SHUT_RD, tcp=True), "raw": raw, "corked": corked,
}  # fmt: skip

if __name__ == "__main__":
    assert os.path.isdir(sys.argv[1])
    workload(BODIES[sys.argv[2]])
