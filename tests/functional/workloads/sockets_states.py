# SPDX-License-Identifier: Apache-2.0
"""Unix sockets in odd states: queues, ends, credentials; the second argument says which."""

import array
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

UNIX, STREAM, DGRAM, SEQPACKET = (
    socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET,
)  # fmt: skip
SOL, PEERCRED = socket.SOL_SOCKET, 17
SO_PEEK_OFF, SO_PEERGROUPS, SO_PEERPIDFD, SO_RCVLOWAT = 42, 59, 77, 18
MSG_OOB = socket.MSG_OOB


def pair(kind=STREAM):
    return socket.socketpair(UNIX, kind)


def listener(place, kind=STREAM, backlog=5):
    one = socket.socket(UNIX, kind)
    one.bind(str(place / "server"))
    one.listen(backlog)
    return one


def call(place, kind=STREAM):
    client = socket.socket(UNIX, kind)
    client.connect(str(place / "server"))
    return client


def credentials(one):
    return struct.unpack("iII", one.getsockopt(SOL, PEERCRED, 12))


def as_user(uid, body):
    """Run with other ids for the moment."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        return body()
    finally:
        os.seteuid(0)
        os.setegid(0)


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
def peer_credentials(place):
    """SO_PEERCRED of connections and pairs that other users have made."""
    made = as_user(1234, pair)
    server = as_user(1111, lambda: listener_in(place))
    client = as_user(2222, lambda: call_in(place))
    accepted, _ = server.accept()
    waiting = as_user(3333, lambda: call_in(place))
    whole = [credentials(each)[1:] for each in (*made, client, accepted, waiting)]
    assert whole == [(1234, 1234)] * 2 + [(1111, 1111), (2222, 2222), (1111, 1111)], whole
    yield
    accepted2, _ = server.accept()
    ends = (*made, client, accepted, waiting)
    assert [credentials(each)[1:] for each in ends] == whole
    assert credentials(accepted2)[1:] == (3333, 3333)


def listener_in(place):
    one = socket.socket(UNIX)
    one.bind(b"\0peer" + os.fsencode(place))
    one.listen(5)
    return one


def call_in(place):
    one = socket.socket(UNIX)
    one.connect(b"\0peer" + os.fsencode(place))
    return one


@state
def peer_pid(place):
    """SO_PEERCRED names the tasks that called, listened, made the pair."""
    server = listener(place)
    reader, writer = os.pipe()

    def body():
        client = call(place)
        os.write(writer, b"x")
        client.recv(10)

    pid = child(body)
    os.read(reader, 1)
    accepted, _ = server.accept()
    mine = pair()
    assert credentials(accepted)[0] == pid
    yield
    assert credentials(accepted) == (pid, 0, 0)
    assert credentials(mine[0]) == credentials(mine[1]) == (os.getpid(), 0, 0)
    accepted.send(b"end")
    assert ended(pid) == 0


@state
def peer_groups(place):
    os.setgroups([10, 20, 30])
    one, two = pair()
    wanted = one.getsockopt(SOL, SO_PEERGROUPS, 100)
    assert array.array("I", wanted).tolist() == [10, 20, 30]
    os.setgroups([])
    yield
    assert one.getsockopt(SOL, SO_PEERGROUPS, 100) == wanted
    assert two.getsockopt(SOL, SO_PEERGROUPS, 100) == wanted


@state
def message_credentials(place):
    """SCM_CREDENTIALS of queued messages: of their senders, and as they were told."""
    one, two = pair(DGRAM)
    two.setsockopt(SOL, socket.SO_PASSCRED, 1)
    told = struct.pack("iII", os.getpid(), 77, 88)
    one.sendmsg([b"told"], [(SOL, socket.SCM_CREDENTIALS, told)])
    one.send(b"plain")
    pid = child(lambda: one.send(b"child") - 5)
    assert ended(pid) == 0
    stream = pair()
    stream[1].setsockopt(SOL, socket.SO_PASSCRED, 1)
    stream[0].send(b"mine")
    stream[0].sendmsg([b"told"], [(SOL, socket.SCM_CREDENTIALS, told)])
    yield

    def received(which):
        data, control, _, _ = which.recvmsg(100, 100)
        return data, struct.unpack("iII", control[0][2])

    assert received(two) == (b"told", (os.getpid(), 77, 88))
    assert received(two) == (b"plain", (os.getpid(), 0, 0))
    assert received(two)[0] == b"child"
    assert received(stream[1]) == (b"mine", (os.getpid(), 0, 0))
    assert received(stream[1]) == (b"told", (os.getpid(), 77, 88))


@state
def living_sender(place):
    """Credentials of a message that a living child has sent."""
    one, two = pair(DGRAM)
    two.setsockopt(SOL, socket.SO_PASSCRED, 1)

    def body():
        one.send(b"child")
        signal.pause()

    pid = child(body)
    time.sleep(0.1)
    yield
    data, control, _, _ = two.recvmsg(100, 100)
    assert (data, struct.unpack("iII", control[0][2])) == (b"child", (pid, 0, 0))
    os.kill(pid, 9)
    ended(pid)


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


@state
def passing(place):
    """SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS, and what they do."""
    one, two = pair()
    for option in (16, 34, 76):
        two.setsockopt(SOL, option, 1)
    server = listener(place)
    server.setsockopt(SOL, 16, 1)
    yield
    assert [two.getsockopt(SOL, option) for option in (16, 34, 76)] == [1, 1, 1]
    one.send(b"x")
    _, control, _, _ = two.recvmsg(10, 200)
    kinds = {kind for _, kind, _ in control}
    assert {2, 4} <= kinds, control
    with call(place):
        assert server.accept()[0].getsockopt(SOL, 16) == 1


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
