# SPDX-License-Identifier: Apache-2.0
"""Datagram sockets of Internet protocols; the second argument says what of them."""

import ctypes
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


def storage(address):
    family = V6 if ":" in address else V4
    head = struct.pack("HHI", family, 0, 0) if family == V6 else struct.pack("HH", family, 0)
    return (head + socket.inet_pton(family, address)).ljust(128, b"\0")


def joined(one, level, group):
    """What MCAST_MSFILTER tells: mode and sources; None for no member."""
    head = struct.pack("I4x", socket.if_nametoindex("lo")) + storage(group)
    room = ctypes.create_string_buffer(head + struct.pack("II", 0, 4) + bytes(4 * 128))
    size = ctypes.c_uint32(len(room.raw) - 1)
    if ctypes.CDLL(None).getsockopt(one.fileno(), level, 48, room, ctypes.byref(size)):
        return None
    mode, count = struct.unpack_from("II", room.raw, 136)
    return mode, {room.raw[144 + 128 * n : 160 + 128 * n] for n in range(count)}


def multicast(_):
    """Members of groups: of any source, of all but one, of some; both families."""
    head = struct.pack("I4x", socket.if_nametoindex("lo"))
    four, six, none = bound(), socket.socket(V6, socket.SOCK_DGRAM), bound()
    wanted = [
        (four, 0, 42, "239.1.2.3", ()), (four, 0, 42, "239.1.2.4", ()),
        (four, 0, 43, "239.1.2.4", ("10.9.9.1",)), (four, 0, 46, "239.1.2.5", ("10.9.9.2",)),
        (six, 41, 42, "ff15::5", ()), (six, 41, 46, "ff15::6", ("2001:db8::1",)),
        (six, 0, 42, "239.1.2.6", ()),
    ]  # fmt: skip
    for one, level, option, group, sources in wanted:
        raw = head + storage(group) + b"".join(map(storage, sources))
        one.setsockopt(level, option, raw)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 3)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    six.setsockopt(41, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("lo"))
    look = [(one, level, group) for one, level, _, group, _ in wanted]
    before = [joined(*each) for each in look]
    assert None not in before
    yield
    assert [joined(*each) for each in look] == before
    assert joined(none, 0, "239.1.2.3") is None
    assert four.getsockopt(0, socket.IP_MULTICAST_IF, 4) == socket.inet_aton("127.0.0.1")
    assert six.getsockopt(41, socket.IPV6_MULTICAST_IF) == socket.if_nametoindex("lo")
    wild = socket.socket(V4, socket.SOCK_DGRAM)
    wild.bind(("", 0))
    wild.settimeout(10)
    wild.setsockopt(0, 42, head + storage("239.1.2.3"))
    four.sendto(b"to the group", ("239.1.2.3", wild.getsockname()[1]))
    assert wild.recv(100) == b"to the group"


def waiting(family, protocol=0):
    """Datagrams that wait, of several senders, of which one is gone; of none bytes, and large."""

    def body(_):
        server, one = bound(family, protocol), bound(family, protocol)
        wild = socket.socket(family, socket.SOCK_DGRAM, protocol)
        wild.bind(("", 0))
        wild.settimeout(10)
        texts = [b"first", b"", b"large " * 3000, b"last"]
        with bound(family, protocol) as gone:
            gone.sendto(b"of one who is gone", server.getsockname())
            name = gone.getsockname()
        for text in texts:
            one.sendto(text, server.getsockname())
        one.sendto(b"to all", (one.getsockname()[0], wild.getsockname()[1]))
        server.connect(one.getsockname())
        yield
        got = [server.recvfrom(20000) for _ in range(5)]
        assert got[0] == (b"of one who is gone", name), got[0]
        assert got[1:] == [(text, one.getsockname()) for text in texts]
        assert wild.recvfrom(100) == (b"to all", one.getsockname())
        one.sendto(b"new", server.getsockname())
        assert server.recv(10) == b"new"

    return body


BODIES = {
    "multicast": multicast, "waiting4": waiting(V4), "waiting6": waiting(V6),
    "waiting_lite": waiting(V4, UDPLITE),
    "udp4": connected(V4, 0), "udp6": connected(V6, 0), "udplite4": connected(V4, UDPLITE),
    "udplite6": connected(V6, UDPLITE), "shut_receiving": shut(socket.SHUT_RD, tcp=False),
    "shut_sending": shut(socket.SHUT_WR, tcp=False), "shut_both": shut(socket.SHUT_RDWR, tcp=False),
    "tcp_shut_receiving": shut(socket.SHUT_RD, tcp=True), "raw": raw, "corked": corked,
}  # fmt: skip

if __name__ == "__main__":
    assert os.path.isdir(sys.argv[1])
    workload(BODIES[sys.argv[2]])
