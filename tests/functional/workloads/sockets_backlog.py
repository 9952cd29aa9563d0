# SPDX-License-Identifier: Apache-2.0
"""Unix listeners and those who wait for them; the second argument says which."""

import array
import errno
import os
import socket
import time

from files_base import child, chosen, ended, number, state
from sockets_base import SEQPACKET, SOL, UNIX, call, listener


@state
def backlog(place):
    """Clients that wait to be accepted, one of which has ended."""
    server = listener(place)
    clients = [call(place) for _ in range(3)]
    yield
    for n, client in enumerate(clients):
        accepted, _ = server.accept()
        client.send(b"%d" % n)
        assert accepted.recv(5) == b"%d" % n


@state
def backlog_data(place):
    """What they have sent waits too, and one has shut its side."""
    server = listener(place)
    clients = [call(place) for _ in range(3)]
    for n, client in enumerate(clients):
        client.send(b"early %d" % n)
    clients[1].shutdown(socket.SHUT_WR)
    yield
    for n, client in enumerate(clients):
        accepted, _ = server.accept()
        assert accepted.recv(10) == b"early %d" % n
        if n == 1:
            assert accepted.recv(10) == b""
        accepted.send(b"answer")
        assert client.recv(10) == b"answer"


@state
def backlog_packets(place):
    server = listener(place, SEQPACKET)
    client = call(place, SEQPACKET)
    client.send(b"one")
    client.send(b"two")
    yield
    accepted, _ = server.accept()
    assert (accepted.recv(10), accepted.recv(10)) == (b"one", b"two")


@state
def backlog_rights(place):
    """A descriptor sent before the connection is accepted."""
    server = listener(place)
    client = call(place)
    reader, writer = os.pipe()
    client.sendmsg([b"take"], [(SOL, socket.SCM_RIGHTS, array.array("i", [reader]))])
    os.close(reader)
    yield
    accepted, _ = server.accept()
    data, (fd,), _, _ = socket.recv_fds(accepted, 10, 5)
    os.write(writer, b"through")
    assert (data, os.read(fd, 10)) == (b"take", b"through")


@state
def backlog_gone(place):
    """A client that has sent something and closed before it was accepted."""
    server = listener(place)
    with call(place) as client:
        client.send(b"bye")
    yield
    accepted, _ = server.accept()
    assert accepted.recv(10) == b"bye"
    assert accepted.recv(10) == b""


@state
def backlog_full(place):
    """A full backlog, and a task that waits in connect(2)."""
    server = listener(place, backlog=0)
    first = call(place)

    def body():
        client = call(place)
        client.send(b"second")

    pid = child(body)
    time.sleep(0.2)
    yield
    first.send(b"first")
    assert server.accept()[0].recv(10) == b"first"
    assert server.accept()[0].recv(10) == b"second"
    assert ended(pid) == 0


@state
def shut_listener(place):
    """A listener that is shut, and one that was never made to listen."""
    server = listener(place)
    server.shutdown(socket.SHUT_RDWR)
    fresh = socket.socket(UNIX)
    packets = socket.socket(UNIX, SEQPACKET)
    yield
    assert number(call, place) == errno.ECONNREFUSED
    assert number(server.accept) == errno.EINVAL
    for each in (fresh, packets):
        assert number(each.getpeername) == errno.ENOTCONN


if __name__ == "__main__":
    chosen()
