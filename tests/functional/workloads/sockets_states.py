# SPDX-License-Identifier: Apache-2.0
"""Unix sockets in odd states of their ends; the second argument says which."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time

from files_base import child, chosen, ended, number, state
from sockets_base import DGRAM, SEQPACKET, SOL, STREAM, UNIX, call, listener, pair

SO_RCVLOWAT = 18


@state
def shut(place):
    """Shut in every way, by either end, with something queued."""
    made = {}
    for kind in (STREAM, DGRAM, SEQPACKET):
        for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            one, two = pair(kind)
            one.send(b"from one")
            two.send(b"from two")
            one.shutdown(how)
            made[kind, how] = one, two
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def tried(which):
        try:
            return which.send(b"more")
        except OSError as error:
            return error.errno

    def got(which):
        try:
            return which.recv(100, socket.MSG_DONTWAIT)
        except OSError as error:
            return error.errno

    def told(which):
        poller = select.poll()
        poller.register(which, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        return poller.poll(0)[0][1] if poller.poll(0) else 0

    events = {key: [told(each) for each in ends] for key, ends in made.items()}
    yield
    assert events == {key: [told(each) for each in ends] for key, ends in made.items()}
    for (kind, how), (one, two) in made.items():
        fresh = pair(kind)
        fresh[0].send(b"from one")
        fresh[1].send(b"from two")
        fresh[0].shutdown(how)
        for mine, theirs in ((one, fresh[0]), (two, fresh[1])):
            assert [got(mine), tried(mine)] == [got(theirs), tried(theirs)], (kind, how)
        for mine, theirs in ((one, fresh[0]), (two, fresh[1])):
            assert [got(mine), got(mine)] == [got(theirs), got(theirs)], (kind, how)


@state
def to_itself(place):
    """A datagram socket connected to its own name, with something for itself."""
    one = socket.socket(UNIX, DGRAM)
    one.bind(str(place / "me"))
    one.connect(str(place / "me"))
    one.send(b"first")
    one.send(b"second")
    yield
    assert one.getpeername() == str(place / "me")
    assert one.recvfrom(10) == (b"first", str(place / "me"))
    assert one.recv(10) == b"second"
    one.send(b"third")
    assert one.recv(10) == b"third"


@state
def one_way(place):
    """Connected to a nameless receiver that does not send back."""
    one, two = pair(DGRAM)
    libc_connect(two, struct.pack("H", 0))
    one.send(b"queued")
    yield
    assert two.recv(10) == b"queued"
    one.send(b"more")
    assert two.recv(10) == b"more"


@state
def pair_gone(place):
    """Ends of pairs whose other end is closed: datagrams and packets."""
    ends = []
    for kind in (DGRAM, SEQPACKET, STREAM):
        one, two = pair(kind)
        two.send(b"last")
        two.close()
        ends.append(one)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield
    for one in ends:
        assert one.recv(10) == b"last"
        wanted = (errno.ECONNREFUSED, errno.ENOTCONN) if one.type == DGRAM else (errno.EPIPE,)
        assert number(one.send, b"x") in wanted


@state
def datagram_gone(place):
    """A datagram socket whose other end is closed, and nothing was sent."""
    one, two = pair(DGRAM)
    two.close()
    yield
    assert one.getpeername() == ""
    assert number(one.send, b"x") == errno.ECONNREFUSED


@state
def disconnected(place):
    """A datagram socket that was connected and is not any more (AF_UNSPEC)."""
    server = socket.socket(UNIX, DGRAM)
    server.bind(str(place / "server"))
    one = socket.socket(UNIX, DGRAM)
    one.connect(str(place / "server"))
    libc_connect(one, struct.pack("H", 0))
    yield
    assert number(one.send, b"x") == errno.ENOTCONN
    one.sendto(b"x", str(place / "server"))
    assert server.recv(5) == b"x"


def libc_connect(one, address):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(one.fileno(), address, len(address)) == 0


@state
def waits(place):
    """Tasks that wait in recv, accept, and poll; timeouts; low water mark."""
    one, two = pair()
    two.setsockopt(SOL, SO_RCVLOWAT, 5)
    server = listener(place)
    idle = pair()
    idle[0].settimeout(None)
    idle[0].setsockopt(SOL, 20, struct.pack("ll", 3600, 250000))
    pids = [
        child(lambda: two.recv(100) != b"12345"),
        child(lambda: server.accept()[0].recv(5) != b"x"),
        child(lambda: idle[0].recv(5) != b"y"),
    ]
    time.sleep(0.2)
    yield
    one.send(b"123")
    one.send(b"45")
    client = call(place)
    client.send(b"x")
    idle[1].send(b"y")
    assert struct.unpack("ll", idle[0].getsockopt(SOL, 20, 16)) == (3600, 252000)
    assert [ended(pid) for pid in pids] == [0, 0, 0]


@state
def polled(place):
    """An epoll over sockets: level, edge with nothing new, one shot that is spent and one armed."""
    level, edge, spent, armed = pair(), pair(), pair(), pair()
    poll = select.epoll()
    poll.register(level[1], select.EPOLLIN)
    poll.register(edge[1], select.EPOLLIN | select.EPOLLET)
    poll.register(spent[1], select.EPOLLIN | select.EPOLLONESHOT)
    poll.register(armed[1], select.EPOLLIN | select.EPOLLONESHOT)
    for each in (level, spent):
        each[0].send(b"x")
    seen = dict(poll.poll(1))
    assert set(seen) == {level[1].fileno(), spent[1].fileno()}
    yield
    seen = dict(poll.poll(1))
    assert set(seen) == {level[1].fileno()}, seen
    edge[0].send(b"x")
    armed[0].send(b"x")
    seen = dict(poll.poll(1))
    assert set(seen) == {each[1].fileno() for each in (level, edge, armed)}, seen


@state
def owned(place):
    """SIGIO for a process, a thread and a group, with a signal of its own."""
    made = [pair() for _ in range(3)]
    for n, (one, _) in enumerate(made):
        kind, pid = ((1, os.getpid()), (0, os.getpid()), (2, os.getpgid(0)))[n]
        fcntl.fcntl(one, 15, struct.pack("ii", kind, pid))
        fcntl.fcntl(one, 10, 34 + n)
        fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    signal.pthread_sigmask(signal.SIG_BLOCK, {34, 35, 36})
    yield
    for n, (_, two) in enumerate(made):
        two.send(b"x")
        assert signal.sigtimedwait({34 + n}, 5).si_signo == 34 + n


@state
def shared(place):
    """Ends held by three tasks under several numbers."""
    one, two = pair()
    pids = []
    gone, told = os.pipe()
    for n in range(2):

        def body(n=n):
            os.close(told)
            os.dup2(one.fileno(), 400 + n)
            os.read(gone, 1)
            os.write(400 + n, b"%d" % n)

        pids.append(child(body))
    time.sleep(0.1)
    yield
    os.close(told)
    assert [ended(pid) for pid in pids] == [0, 0]
    assert sorted(two.recv(2, socket.MSG_WAITALL)) == sorted(b"01")


if __name__ == "__main__":
    chosen()
