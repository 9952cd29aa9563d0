# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets of a live child, through the images, to a plan that is run."""

import contextlib
import multiprocessing
import os
import select
import socket
import struct
import threading

import pytest

from torpor.engine.options import TcpPolicy
from torpor.engine.sockets import inet

from .sockets_round import look, replay

pytestmark = pytest.mark.functional

NUMBERS = (50, 51, 52, 53, 54, 55)
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = [socket.AF_INET, socket.AF_INET6]


def at(fd: int) -> socket.socket:
    made = socket.socket(fileno=fd)
    made.settimeout(5)
    return made


def put(*sockets: socket.socket) -> list[int]:
    for i, each in enumerate(sockets):
        os.dup2(each.detach(), NUMBERS[i])
    return list(NUMBERS[: len(sockets)])


def server_at(family: int, backlog: int = 5) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind((LOOPBACK[family], 0))
    server.listen(backlog)
    return server


@pytest.mark.parametrize("family", FAMILIES)
def test_listener_with_options(family: int) -> None:
    ports: list[int] = []

    def prepare() -> list[int]:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("", 0))
        server.listen(77)
        server.setblocking(False)
        return put(server)

    def check() -> None:
        server = socket.socket(fileno=50)
        assert not os.get_blocking(50)
        assert server.getsockname()[1] == ports[0]
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 33
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 3
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 80000
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        info = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        assert (info[0], struct.unpack_from("I", info, 28)[0]) == (10, 77)
        client = socket.create_connection((LOOPBACK[family], ports[0]))
        client.send(b"x")
        server.setblocking(True)
        assert server.accept()[0].recv(1) == b"x"

    done = look(inet.KIND, prepare)
    assert done.states == done.decoded
    ports.append(done.states[1].source.port)
    replay(done, check)


@pytest.mark.parametrize("family", FAMILIES)
def test_connection_inside(family: int) -> None:
    def prepare() -> list[int]:
        server = server_at(family)
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        client.send(b"to the server")
        accepted.send(b"to the ")
        accepted.send(b"client")
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return put(server, client, accepted)

    def check() -> None:
        server, client, accepted = (at(n) for n in NUMBERS[:3])
        assert accepted.recv(100) == b"to the server"
        assert client.recv(100) == b"to the client"
        assert client.getpeername() == server.getsockname() == accepted.getsockname()
        assert client.getsockname() == accepted.getpeername()
        assert client.getsockname()[1] == done.states[2].source.port
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        client.send(b"more")
        assert accepted.recv(10) == b"more"
        again = socket.create_connection(server.getsockname()[:2])
        assert server.accept()
        accepted.close()
        assert client.recv(10) == b""
        again.close()

    done = look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE)
    assert done.states == done.decoded
    replay(done, check)


@pytest.mark.parametrize("first", ["client", "server"])
def test_idle_connection_leaves_no_time_wait(first: str) -> None:
    """The ends close in the order of their numbers; the first one would be in TIME_WAIT."""

    def prepare() -> list[int]:
        server = server_at(socket.AF_INET)
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        server.close()
        return put(client, accepted) if first == "client" else put(accepted, client)

    def check() -> None:
        one, two = at(50), at(51)
        one.send(b"x")
        assert two.recv(10) == b"x"

    replay(look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE), check)


def test_client_outside_has_closed_the_servers_port_is_free() -> None:
    outside: list[socket.socket] = []

    def prepare() -> list[int]:
        server = socket.socket()
        server.bind(("127.0.0.1", port))
        server.listen(5)
        connect.set()
        accepted, _ = server.accept()
        return put(server, accepted)

    def check() -> None:
        assert at(50).getsockname() == ("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            at(51).recv(1)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    connect = multiprocessing.Event()

    def call() -> None:
        connect.wait(5)
        outside.append(socket.create_connection(("127.0.0.1", port)))

    thread = threading.Thread(target=call)
    thread.start()
    done = look(inet.KIND, prepare)
    thread.join()
    assert outside[0].recv(1) == b""
    outside[0].close()
    replay(done, check)


def test_mixed_families_and_listener_gone() -> None:
    def prepare() -> list[int]:
        server = socket.socket(socket.AF_INET6)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        server.listen(1)
        client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        accepted, _ = server.accept()
        server.close()
        accepted.send(b"hi")
        return put(client, accepted)

    def check() -> None:
        client, accepted = at(50), at(51)
        assert client.recv(10) == b"hi"
        assert accepted.getsockname()[0] == "::ffff:127.0.0.1"
        assert accepted.getpeername()[1] == client.getsockname()[1]

    replay(look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE), check)


def test_half_shut_inside() -> None:
    def prepare() -> list[int]:
        server = server_at(socket.AF_INET)
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        client.send(b"request")
        client.shutdown(socket.SHUT_WR)
        return put(client, accepted)

    def check() -> None:
        client, accepted = at(50), at(51)
        assert accepted.recv(10) == b"request"
        assert accepted.recv(10) == b""
        accepted.send(b"answer")
        assert client.recv(10) == b"answer"
        with pytest.raises(BrokenPipeError):
            client.send(b"x")

    replay(look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE), check)


def test_much_queued_inside() -> None:
    size = 300_000

    def prepare() -> list[int]:
        server = server_at(socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        client = socket.socket()
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 100_000:
                sent += client.send(b"z" * min(10_000, 100_000 - sent))
        assert sent == 100_000
        client.setblocking(True)
        return put(client, accepted)

    def check() -> None:
        client, accepted = at(50), at(51)
        got = 0
        while got < 100_000:
            got += len(accepted.recv(size))
        client.send(b"!")
        assert accepted.recv(10) == b"!"

    replay(look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE), check)


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_is_reset_after_what_was_queued(family: int) -> None:
    server = server_at(family)
    ends: list[socket.socket] = []

    def prepare() -> list[int]:
        client = socket.create_connection(server.getsockname()[:2])
        client.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL)
        client.setblocking(False)
        return put(client)

    def accept() -> None:
        pass

    def check() -> None:
        client = socket.socket(fileno=50)
        poller = select.epoll()
        poller.register(50, select.EPOLLIN | select.EPOLLRDHUP)
        ((_, events),) = poller.poll(5)
        wanted = select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
        assert events & wanted == wanted
        assert client.recv(10) == b"hello"
        with pytest.raises(ConnectionResetError):
            client.recv(10)
        assert client.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            client.send(b"x")
        with pytest.raises(OSError, match="not connected"):
            client.getpeername()

    def serve() -> None:
        end, _ = server.accept()
        end.send(b"hello")
        ends.append(end)

    thread = threading.Thread(target=serve)
    thread.start()
    done = look(inet.KIND, prepare)
    thread.join()
    assert any("closed by its peer" in w for w in done.warnings)
    for each in (*ends, server):
        each.close()
    replay(done, check)


def test_outside_is_refused_if_asked() -> None:
    server = server_at(socket.AF_INET)

    def prepare() -> list[int]:
        return put(socket.create_connection(server.getsockname()))

    done = look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE)
    assert [r.what for r in done.refusals] == [inet.OUTSIDE.what]
    assert f"to 127.0.0.1:{server.getsockname()[1]}" in done.refusals[0].cause
    server.close()


def test_peer_that_had_closed() -> None:
    def prepare() -> list[int]:
        server = server_at(socket.AF_INET)
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.send(b"bye")
        accepted.close()
        done = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        done.shutdown(socket.SHUT_WR)
        accepted.recv(1)
        accepted.close()
        done.recv(1)
        broken = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        return put(client, done, broken)

    def check() -> None:
        client, done, broken = (at(n) for n in NUMBERS[:3])
        assert client.recv(10) == b"bye"
        assert client.recv(10) == b""
        assert done.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            done.send(b"x")
        with pytest.raises(ConnectionResetError):
            broken.recv(10)

    done = look(inet.KIND, prepare)
    assert [(s.ended, s.reset) for s in done.states.values()] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    replay(done, check)


def test_waits_to_be_accepted() -> None:
    def prepare() -> list[int]:
        server = server_at(socket.AF_INET)
        client = socket.create_connection(server.getsockname())
        return put(server, client)

    def check() -> None:
        server, client = at(50), at(51)
        client.send(b"x")
        accepted, name = server.accept()
        assert accepted.recv(1) == b"x"
        assert name == client.getsockname()

    replay(look(inet.KIND, prepare, tcp=TcpPolicy.REFUSE), check)


def test_fresh_bound_and_exclusive() -> None:
    def prepare() -> list[int]:
        fresh, bound = socket.socket(), socket.socket()
        bound.bind(("127.0.0.1", 0))
        return put(fresh, bound)

    def check() -> None:
        fresh, bound = at(50), at(51)
        assert fresh.getsockname() == ("0.0.0.0", 0)
        with pytest.raises(OSError, match="not connected"):
            fresh.recv(1)
        assert bound.getsockname()[1] == done.states[2].source.port
        bound.listen(1)
        fresh.connect(bound.getsockname())

    done = look(inet.KIND, prepare)
    replay(done, check)


def test_udp() -> None:
    def prepare() -> list[int]:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 16)
        server.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 7)
        server.bind(("127.0.0.1", 0))
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(server.getsockname())
        client.send(b"lost")
        six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        six.bind(("::", 0))
        return put(server, client, six)

    def check() -> None:
        server, client, six = (at(n) for n in NUMBERS[:3])
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        assert server.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 16
        assert server.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 7
        client.send(b"new")
        assert server.recvfrom(10) == (b"new", client.getsockname())
        assert client.getpeername() == server.getsockname()
        assert client.getsockname()[1] == done.states[2].source.port
        assert six.getsockname()[:2] == ("::", done.states[3].source.port)

    done = look(inet.KIND, prepare)
    assert any("queued datagrams are dropped" in w for w in done.warnings)
    replay(done, check)


def test_addresses_that_are_gone() -> None:
    """Bound to an address that the new place does not have: mapped, or over loopback."""

    def prepare() -> list[int]:
        server = socket.socket()
        server.bind(("127.9.9.9", 0))
        server.listen(1)
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        return put(server, client, accepted)

    def check() -> None:
        server, client, accepted = (at(n) for n in NUMBERS[:3])
        assert server.getsockname()[0] == client.getpeername()[0] == "127.8.8.8"
        client.send(b"x")
        assert accepted.recv(1) == b"x"

    mapping = {"127.9.9.9": "127.8.8.8"}
    replay(look(inet.KIND, prepare, plan={"address_map": mapping}), check)
