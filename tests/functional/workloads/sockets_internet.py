# SPDX-License-Identifier: Apache-2.0
"""Internet sockets in odd states that stay inside the tree; the second argument says which."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time

from files_base import LackingError, child, chosen, ended, number, state

V4, V6, STREAM, DGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
TCP, IP, IPV6, SOL = socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.SOL_SOCKET
HOSTS = {V4: "127.0.0.1", V6: "::1"}


def bound(family=V4, kind=STREAM, **options):
    one = socket.socket(family, kind)
    for option in options.get("early", ()):
        one.setsockopt(SOL, option, 1)
    one.bind((options.get("host", HOSTS[family]), options.get("port", 0)))
    if kind == STREAM and options.get("backlog", 5):
        one.listen(options.get("backlog", 5))
    return one


def pair(family=V4):
    with bound(family) as server:
        one = socket.create_connection(server.getsockname()[:2])
        return one, server.accept()[0]


def info(one):
    return one.getsockopt(TCP, socket.TCP_INFO, 8)[0]


def talks(one, two):
    one.send(b"to two")
    assert two.recv(10) == b"to two"
    two.send(b"to one")
    assert one.recv(10) == b"to one"


@state
def backlog(place):
    """Clients in the tree that wait to be accepted."""
    server = bound()
    clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
    yield
    for n, client in enumerate(clients):
        client.send(b"%d" % n)
        accepted, name = server.accept()
        assert name == client.getsockname()
        assert accepted.recv(5) == b"%d" % n


@state
def backlog_data(place):
    """They have sent something already, and one has shut its side."""
    server = bound()
    clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
    for n, client in enumerate(clients):
        client.send(b"early %d" % n)
    clients[2].shutdown(socket.SHUT_WR)
    time.sleep(0.1)
    yield
    for n, client in enumerate(clients):
        accepted, name = server.accept()
        assert name == client.getsockname()
        assert accepted.recv(10) == b"early %d" % n
        if n == 2:
            assert accepted.recv(10) == b""
        accepted.send(b"answer")
        assert client.recv(10) == b"answer"


@state
def backlog_gone(place):
    """One has sent something and is closed."""
    server = bound()
    with socket.create_connection(server.getsockname()) as client:
        client.send(b"bye")
    time.sleep(0.1)
    yield
    accepted, _ = server.accept()
    assert accepted.recv(10) == b"bye"
    assert accepted.recv(10) == b""


@state
def deferred(place):
    """TCP_DEFER_ACCEPT: a client that has sent nothing does not wait."""
    server = bound()
    server.setsockopt(TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = socket.create_connection(server.getsockname())
    time.sleep(0.1)
    yield
    client.send(b"x")
    server.settimeout(10)
    assert server.accept()[0].recv(1) == b"x"


@state
def dual(place):
    """Listening for both families, and for each alone on one port."""
    both = socket.create_server(("::", 0), family=V6, dualstack_ipv6=True)
    port = both.getsockname()[1]
    four = bound(V4, early=(socket.SO_REUSEADDR,))
    six = socket.socket(V6)
    six.setsockopt(IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::1", four.getsockname()[1]))
    six.listen(1)
    client = socket.create_connection(("127.0.0.1", port))
    accepted, name = both.accept()
    yield
    assert accepted.getsockname()[0] == "::ffff:127.0.0.1"
    assert accepted.getpeername() == name
    talks(client, accepted)
    for host, server in (("127.0.0.1", both), ("::1", both), ("127.0.0.1", four), ("::1", six)):
        again = socket.create_connection((host, server.getsockname()[1]))
        talks(again, server.accept()[0])


@state
def reuseport(place):
    """A group of one port."""
    first = bound(early=(socket.SO_REUSEPORT,), backlog=50)
    port = first.getsockname()[1]
    group = [first, *(bound(early=(socket.SO_REUSEPORT,), port=port, backlog=50) for _ in range(2))]
    yield
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    for one in group:
        one.settimeout(0.2)
    accepted = 0
    for one in group:
        while not number_of(one.accept):
            accepted += 1
    assert accepted == len(clients)


def number_of(call):
    try:
        call()
    except TimeoutError:
        return errno.ETIMEDOUT
    return 0


@state
def unconnected(place):
    """Fresh, bound and not listening, failed to connect, shut before connecting."""
    fresh, failed, shut = socket.socket(), socket.socket(), socket.socket()
    bare = bound(backlog=0)
    with bound() as gone:
        nobody = gone.getsockname()
    assert number(failed.connect, nobody) == errno.ECONNREFUSED
    name = bare.getsockname()
    six = socket.socket(V6)
    yield
    assert fresh.getsockname() == ("0.0.0.0", 0)
    assert six.getsockname()[:2] == ("::", 0)
    assert bare.getsockname() == name
    bare.listen(1)
    for each in (fresh, failed):
        each.connect(name)
        talks(each, bare.accept()[0])
    assert shut


@state
def error_pending(place):
    """A connect(2) that has failed, of which nobody was told yet; a datagram too."""
    with bound() as gone:
        nobody = gone.getsockname()
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(nobody)
    udp = socket.socket(V4, DGRAM)
    udp.connect(nobody)
    udp.send(b"x")
    time.sleep(0.1)
    assert select.select([], [one], [], 5)[1]
    yield
    assert one.getsockopt(SOL, socket.SO_ERROR) == 111
    assert udp.getsockopt(SOL, socket.SO_ERROR) == 111


@state
def settings(place):
    """Options of connections inside the tree, of each end its own."""
    one, two = pair()
    for option, value in (
        (socket.TCP_NODELAY, 1), (socket.TCP_CORK, 1), (socket.TCP_KEEPIDLE, 33),
        (socket.TCP_KEEPINTVL, 7), (socket.TCP_KEEPCNT, 4), (socket.TCP_USER_TIMEOUT, 30000),
        (socket.TCP_LINGER2, 17), (socket.TCP_SYNCNT, 3),
    ):  # fmt: skip
        one.setsockopt(TCP, option, value)
    one.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
    two.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 5))
    two.setsockopt(IP, socket.IP_TOS, 8)
    two.setsockopt(SOL, socket.SO_PRIORITY, 5)
    two.setsockopt(SOL, socket.SO_MARK, 77)
    two.setsockopt(IP, socket.IP_TTL, 9)
    two.setsockopt(SOL, socket.SO_BINDTODEVICE, b"lo")
    yield
    assert one.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    assert two.getsockopt(SOL, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
    assert [two.getsockopt(SOL, n) for n in (socket.SO_PRIORITY, socket.SO_MARK)] == [5, 77]
    assert [two.getsockopt(IP, n) for n in (socket.IP_TOS, socket.IP_TTL)] == [8, 9]
    one.setsockopt(TCP, socket.TCP_CORK, 0)
    talks(one, two)


@state
def corked(place):
    """Bytes that TCP_CORK holds back."""
    one, two = pair()
    one.setsockopt(TCP, socket.TCP_CORK, 1)
    one.send(b"held")
    yield
    assert one.getsockopt(TCP, socket.TCP_CORK) == 1
    one.send(b" back")
    one.setsockopt(TCP, socket.TCP_CORK, 0)
    got = b""
    while len(got) < 9:
        got += two.recv(20)
    assert got == b"held back"


@state
def urgent(place):
    """A byte out of band, waiting; and one that is inline."""
    one, two = pair()
    two.setsockopt(SOL, socket.SO_OOBINLINE, 1)
    one.send(b"ab")
    one.send(b"!", socket.MSG_OOB)
    time.sleep(0.1)
    yield
    assert two.recv(10) == b"ab"
    assert two.recv(10) == b"!"


@state
def locked_filter(place):
    """A filter that cannot be taken off again (SO_LOCK_FILTER)."""
    one = bound(kind=DGRAM)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    one.setsockopt(SOL, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    one.setsockopt(SOL, 44, 1)
    yield
    assert one.getsockopt(SOL, 44) == 1
    assert number(one.setsockopt, SOL, 27, 0) == errno.EPERM


@state
def closes(place):
    """Both ends closed in turn, TIME_WAIT behind, the listener's port still had."""
    server = bound(early=(socket.SO_REUSEADDR,))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.close()
    client.recv(1)
    client.close()
    yield
    again = socket.create_connection(server.getsockname())
    talks(again, server.accept()[0])


@state
def closes_plainly(place):
    """The same without SO_REUSEADDR: nobody could bind the port now, but it is bound."""
    server = bound()
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    accepted.close()
    client.recv(1)
    client.close()
    yield
    assert server.getsockopt(SOL, socket.SO_REUSEADDR) == 0
    again = socket.create_connection(server.getsockname())
    talks(again, server.accept()[0])


@state
def lingering(place):
    """Half closed by the peer that is gone, with an answer in its queue (CLOSE_WAIT, orphan)."""
    one, two = pair()
    two.send(b"bye")
    two.close()
    yield
    assert one.recv(10) == b"bye"
    assert one.recv(10) == b""
    one.send(b"x")


@state
def reset(place):
    """Reset by the peer, unread bytes before it."""
    one, two = pair()
    two.send(b"last")
    time.sleep(0.05)
    two.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    two.close()
    time.sleep(0.05)
    yield
    assert one.recv(10) == b"last"
    assert number(one.recv, 10) == errno.ECONNRESET


@state
def datagrams(place):
    """Datagrams that wait, of several senders, in an IPv4 and an IPv6 socket."""
    made = []
    for family in (V4, V6):
        server = bound(family, DGRAM)
        one, two = bound(family, DGRAM), bound(family, DGRAM)
        one.sendto(b"first", server.getsockname())
        two.sendto(b"second", server.getsockname())
        one.sendto(b"", server.getsockname())
        one.sendto(b"third" * 1000, server.getsockname())
        made.append((server, one, two))
    time.sleep(0.05)
    yield
    for server, one, two in made:
        server.settimeout(5)
        got = [server.recvfrom(6000) for _ in range(4)]
        assert got == [
            (b"first", one.getsockname()), (b"second", two.getsockname()),
            (b"", one.getsockname()), (b"third" * 1000, one.getsockname()),
        ]  # fmt: skip


@state
def datagram_named(place):
    """Bound to everything, connected and disconnected, broadcast, reused."""
    wild = socket.socket(V4, DGRAM)
    wild.bind(("", 0))
    chosen_by = socket.socket(V4, DGRAM)
    chosen_by.sendto(b"x", wild.getsockname())
    one = bound(kind=DGRAM)
    one.connect(wild.getsockname())
    assert ctypes.CDLL(None).connect(one.fileno(), struct.pack("H14x", 0), 16) == 0
    twice = [bound(kind=DGRAM, early=(socket.SO_REUSEADDR, socket.SO_BROADCAST))]
    twice.append(bound(kind=DGRAM, early=(socket.SO_REUSEADDR,), port=twice[0].getsockname()[1]))
    one.bind(("127.0.0.1", 0))
    names = [each.getsockname() for each in (wild, chosen_by, one, *twice)]
    wild.recv(1)
    yield
    assert [each.getsockname() for each in (wild, chosen_by, one, *twice)] == names
    assert number(one.send, b"x") == errno.EDESTADDRREQ
    one.sendto(b"y", ("127.0.0.1", names[0][1]))
    assert wild.recvfrom(5) == (b"y", names[2])


@state
def freebind(place):
    """Bound to an address that nobody has."""
    made = []
    for family, level, option, host in ((V4, IP, 15, "192.0.2.77"), (V6, IPV6, 78, "2001:db8::7")):
        for kind in (STREAM, DGRAM):
            one = socket.socket(family, kind)
            one.setsockopt(level, option, 1)
            one.bind((host, 0))
            made.append(one)
    transparent = socket.socket()
    transparent.setsockopt(IP, 19, 1)
    transparent.bind(("192.0.2.78", 0))
    transparent.listen(1)
    made.append(transparent)
    names = [one.getsockname() for one in made]
    yield
    assert [one.getsockname() for one in made] == names


@state
def ping(place):
    """Echo sockets: fresh, bound, connected."""
    try:
        one = socket.socket(V4, DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        raise LackingError("the right to ping (net.ipv4.ping_group_range)") from None
    one.bind(("127.0.0.1", 4711))
    two = socket.socket(V4, DGRAM, socket.IPPROTO_ICMP)
    two.connect(("127.0.0.1", 0))
    name = two.getsockname()
    yield
    assert two.getsockname() == name
    one.settimeout(5)
    one.sendto(b"\x08\0\0\0\0\0\0\1", ("127.0.0.1", 0))
    assert one.recv(100)[0] == 0


@state
def waits(place):
    """Tasks that wait in accept, recv, connect and recvfrom."""
    server = bound()
    one, two = pair()
    udp = bound(kind=DGRAM)
    pids = [
        child(lambda: server.accept()[0].recv(5) != b"x"),
        child(lambda: two.recv(5) != b"y"),
        child(lambda: udp.recv(5) != b"z"),
    ]
    time.sleep(0.2)
    yield
    client = socket.create_connection(server.getsockname())
    client.send(b"x")
    one.send(b"y")
    with socket.socket(V4, DGRAM) as sender:
        sender.sendto(b"z", udp.getsockname())
    assert [ended(pid) for pid in pids] == [0, 0, 0]


@state
def polled(place):
    """An epoll over connections, edges and one shots, spent and not."""
    pairs = [pair() for _ in range(4)]
    level, edge, spent, armed = (two for _, two in pairs)
    poll = select.epoll()
    poll.register(level, select.EPOLLIN)
    poll.register(edge, select.EPOLLIN | select.EPOLLET)
    poll.register(spent, select.EPOLLIN | select.EPOLLONESHOT)
    poll.register(armed, select.EPOLLIN | select.EPOLLONESHOT)
    pairs[0][0].send(b"x")
    pairs[2][0].send(b"x")
    time.sleep(0.05)
    assert len(poll.poll(1)) == 2
    yield
    assert {fd for fd, _ in poll.poll(1)} == {level.fileno()}
    pairs[1][0].send(b"x")
    pairs[3][0].send(b"x")
    time.sleep(0.05)
    assert {fd for fd, _ in poll.poll(1)} == {level.fileno(), edge.fileno(), armed.fileno()}


@state
def owned(place):
    one, two = pair()
    fcntl.fcntl(two, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(two, 10, 40)
    fcntl.fcntl(two, fcntl.F_SETFL, os.O_ASYNC)
    signal.pthread_sigmask(signal.SIG_BLOCK, {40})
    yield
    one.send(b"x")
    assert signal.sigtimedwait({40}, 5).si_signo == 40


@state
def of_user(place):
    """Sockets that another user has made."""
    os.setegid(1234)
    os.seteuid(1234)
    made = [bound(), bound(kind=DGRAM), *pair(), *socket.socketpair()]
    os.seteuid(0)
    os.setegid(0)
    assert {os.fstat(one.fileno()).st_uid for one in made} <= {1234}
    yield
    assert {os.fstat(one.fileno()).st_uid for one in made} <= {1234}


@state
def written(place):
    """A writer in the midst of eight megabytes."""
    one, two = pair()
    data = os.urandom(8 << 20)

    def body():
        sent = 0
        while sent < len(data):
            sent += one.send(data[sent:])

    pid = child(body)
    time.sleep(0.3)
    yield
    got = bytearray()
    while len(got) < len(data):
        got += two.recv(1 << 20)
    assert got == data
    assert ended(pid) == 0


if __name__ == "__main__":
    chosen()
