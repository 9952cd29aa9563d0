# SPDX-License-Identifier: Apache-2.0
"""Descriptors on their way through unix sockets (SCM_RIGHTS); the second argument says which."""

import array
import os
import socket
import sys
from pathlib import Path

from files_base import workload

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


def send(one, data, *fds):
    rights = array.array("i", fds)
    one.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])


def receive(one, size=1000):
    data, fds, flags, _ = socket.recv_fds(one, size, 30)
    assert not flags & socket.MSG_CTRUNC
    return data, fds


def pair(kind=STREAM):
    return socket.socketpair(socket.AF_UNIX, kind)


def pipe(kind):
    def body(_):
        one, two = pair(kind)
        reader, writer = os.pipe()
        os.write(writer, b"in the pipe")
        send(one, b"take", reader, writer)
        os.close(reader)
        os.close(writer)
        yield
        data, (reader, writer) = receive(two)
        assert data == b"take"
        os.write(writer, b", more")
        assert os.read(reader, 100) == b"in the pipe, more"

    return body


def mixed(_):
    """Bytes without descriptors between those with some."""
    one, two = pair()
    fds = [os.memfd_create(str(n)) for n in range(4)]
    for n, fd in enumerate(fds):
        os.write(fd, b"%d" % n)
    send(one, b"plain ")
    send(one, b"first", fds[0])
    send(one, b"second", fds[1], fds[2])
    send(one, b"tail ")
    send(one, b"tail ")
    send(one, b"last", fds[3])
    for fd in fds:
        os.close(fd)
    yield
    got = [receive(two) for _ in range(3)]
    assert [data for data, _ in got] == [b"plain first", b"second", b"tail tail last"]
    content = [[os.pread(fd, 1, 0) for fd in fds] for _, fds in got]
    assert content == [[b"0"], [b"1", b"2"], [b"3"]], content


def shared(place):
    """A file that is held and on its way has one position."""
    one, two = pair()
    (place / "file").write_bytes(b"0123456789")
    fd = os.open(place / "file", os.O_RDWR)
    os.lseek(fd, 3, os.SEEK_SET)
    send(one, b"x", fd)
    yield
    _, (again,) = receive(two)
    assert os.read(again, 2) == b"34"
    assert os.read(fd, 2) == b"56"


def many(place):
    """One of each sort."""
    one, two = pair(SEQPACKET)
    (place / "file").write_bytes(b"0123456789")
    fd = os.open(place / "file", os.O_RDONLY)
    os.lseek(fd, 4, os.SEEK_SET)
    event = os.eventfd(7)
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    name = server.getsockname()
    udp = socket.socket(socket.AF_INET, DGRAM)
    send(one, b"", fd, event, server.fileno(), udp.fileno())
    for each in (server, udp):
        each.close()
    os.close(fd)
    os.close(event)
    yield
    _, (fd, event, server, udp) = receive(two)
    assert os.read(fd, 10) == b"456789"
    assert os.eventfd_read(event) == 7
    with socket.socket(fileno=server) as server:
        assert server.getsockname() == name
        client = socket.create_connection(name)
        assert server.accept()
        client.close()
    with socket.socket(fileno=udp) as udp:
        assert udp.type == DGRAM


def nested(_):
    """A socket on its way, in whose queue another one is on its way, in whose queue ..."""
    outer, inner, last = pair(), pair(), pair(DGRAM)
    reader, writer = os.pipe()
    send(last[0], b"deepest", reader)
    send(inner[0], b"deeper", last[1].fileno())
    send(outer[0], b"deep", inner[1].fileno())
    os.close(reader)
    inner[1].close()
    last[1].close()
    yield
    data, (fd,) = receive(outer[1])
    assert data == b"deep"
    with socket.socket(fileno=fd) as one:
        data, (fd,) = receive(one)
    assert data == b"deeper"
    with socket.socket(fileno=fd) as one:
        data, (fd,) = receive(one)
    assert data == b"deepest"
    os.write(writer, b"through")
    assert os.read(fd, 10) == b"through"


def circle(_):
    """Each end is on its way to the other."""
    one, two = pair()
    send(one, b"you", two.fileno())
    send(two, b"me", one.fileno(), two.fileno())
    yield
    data, (fd,) = receive(two)
    with socket.socket(fileno=fd) as other:
        assert data == b"you"
        other.send(b"from two")
    data, fds = receive(one, 2)
    assert data == b"me"
    assert one.recv(10) == b"from two"
    os.close(fds[0])


def epoll(_):
    import select

    one, two = pair()
    with select.epoll() as polled:
        send(one, b"x", polled.fileno())
        yield
    assert receive(two)[0] == b"x"


BODIES = {
    "stream": pipe(STREAM), "dgram": pipe(DGRAM), "seqpacket": pipe(SEQPACKET), "mixed": mixed,
    "shared": shared, "many": many, "nested": nested, "circle": circle,
    "epoll": epoll,
}  # fmt: skip

if __name__ == "__main__":
    assert Path(sys.argv[1])
    workload(BODIES[sys.argv[2]])
