# SPDX-License-Identifier: Apache-2.0
"""What waits in unix sockets; the second argument says which."""

import array
import os
import socket
import struct
import time

from files_base import child, chosen, ended, state
from sockets_base import DGRAM, SEQPACKET, SOL, STREAM, UNIX, pair

SO_PEEK_OFF = 42
MSG_OOB = socket.MSG_OOB


@state
def partial(place):
    """A packet and a stream of which a part was read."""
    one, two = pair(SEQPACKET)
    one.send(b"a whole packet")
    one.send(b"the next")
    assert two.recv(3) == b"a w"  # the rest of it is gone
    left, right = pair()
    left.send(b"first")
    left.send(b"second")
    assert right.recv(7) == b"firstse"
    yield
    assert two.recv(100) == b"the next"
    assert right.recv(100) == b"cond"


@state
def empty_messages(place):
    """Messages without bytes, first, between and last."""
    one, two = pair(DGRAM)
    for text in (b"", b"x", b"", b"", b"y", b""):
        one.send(text)
    yield
    assert [two.recv(10) for _ in range(6)] == [b"", b"x", b"", b"", b"y", b""]


@state
def peek_offset(place):
    """SO_PEEK_OFF, moved on by a peek."""
    one, two = pair()
    one.send(b"0123456789")
    two.setsockopt(SOL, SO_PEEK_OFF, 2)
    assert two.recv(3, socket.MSG_PEEK) == b"234"
    gram = pair(DGRAM)
    gram[1].setsockopt(SOL, SO_PEEK_OFF, 0)
    gram[0].send(b"abcdef")
    assert gram[1].recv(2, socket.MSG_PEEK) == b"ab"
    yield
    assert two.getsockopt(SOL, SO_PEEK_OFF) == 5
    assert two.recv(2, socket.MSG_PEEK) == b"56"
    assert two.recv(5) == b"01234"
    assert gram[1].recv(2, socket.MSG_PEEK) == b"cd"


@state
def full(place):
    """Queues without any room, of all types; a task that waits to write."""
    made = []
    for kind, size in ((STREAM, 1000), (DGRAM, 300), (SEQPACKET, 5000)):
        one, two = pair(kind)
        one.setblocking(False)
        sent = 0
        try:
            while True:
                one.send(struct.pack("i", sent) * (size // 4))
                sent += 1
        except BlockingIOError:
            one.setblocking(True)
        made.append((one, two, sent, size))
    one = made[0][0]
    pid = child(lambda: one.send(b"last") - 4)
    time.sleep(0.1)
    yield
    for which, (_, two, sent, size) in enumerate(made):
        for n in range(sent):
            got = two.recv(size, socket.MSG_WAITALL)
            assert got == struct.pack("i", n) * (size // 4), n
        if which == 0:
            assert two.recv(10) == b"last"
    assert ended(pid) == 0


@state
def roomy(place):
    """Buffers far above the limit by SO_SNDBUFFORCE, and much in them."""
    one, two = pair()
    one.setsockopt(SOL, 32, 4 << 20)
    two.setsockopt(SOL, 33, 3 << 20)
    data = os.urandom(1 << 20)
    one.setblocking(False)
    assert one.send(data) == len(data)
    sizes = one.getsockopt(SOL, 7), two.getsockopt(SOL, 8)
    yield
    assert (one.getsockopt(SOL, 7), two.getsockopt(SOL, 8)) == sizes
    assert two.recv(len(data), socket.MSG_WAITALL) == data


@state
def in_itself(place):
    """A socket in flight in its own queue."""
    one = socket.socket(UNIX, DGRAM)
    one.bind(str(place / "me"))
    one.sendmsg(
        [b"me"], [(SOL, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))], 0,
        str(place / "me"),
    )  # fmt: skip
    yield
    data, (fd,), _, _ = socket.recv_fds(one, 10, 5)
    assert data == b"me"
    with socket.socket(fileno=fd) as again:
        again.sendto(b"x", str(place / "me"))
        assert one.recv(5) == b"x"


@state
def many_senders(place):
    """Datagrams of several senders in one queue: named, nameless, gone, disconnected."""
    server = socket.socket(UNIX, DGRAM)
    server.bind(str(place / "server"))
    named = [socket.socket(UNIX, DGRAM) for _ in range(3)]
    for n, one in enumerate(named):
        one.bind(str(place / f"c{n}"))
    named[0].connect(str(place / "server"))
    named[0].send(b"0")
    named[1].sendto(b"1", str(place / "server"))
    named[2].sendto(b"2", str(place / "server"))
    with socket.socket(UNIX, DGRAM) as one:
        one.sendto(b"nameless", str(place / "server"))
    hidden = socket.socket(UNIX, DGRAM)
    hidden.bind(b"")
    hidden.sendto(b"hidden", str(place / "server"))
    named[0].send(b"3")
    yield
    got = [server.recvfrom(100) for _ in range(6)]
    assert got == [
        (b"0", str(place / "c0")), (b"1", str(place / "c1")), (b"2", str(place / "c2")),
        (b"nameless", None), (b"hidden", hidden.getsockname()), (b"3", str(place / "c0")),
    ], got  # fmt: skip


@state
def sender_gone(place):
    """A datagram of a named sender that is closed."""
    server = socket.socket(UNIX, DGRAM)
    server.bind(str(place / "server"))
    with socket.socket(UNIX, DGRAM) as one:
        one.bind(str(place / "gone"))
        one.sendto(b"from one who is gone", str(place / "server"))
    yield
    assert server.recvfrom(100) == (b"from one who is gone", str(place / "gone"))


@state
def urgent(place):
    """A byte out of band."""
    one, two = pair()
    one.send(b"before")
    one.send(b"!", MSG_OOB)
    one.send(b"after")
    yield
    assert two.recv(1, MSG_OOB) == b"!"
    assert two.recv(100) == b"before"
    assert two.recv(100) == b"after"


if __name__ == "__main__":
    chosen()
