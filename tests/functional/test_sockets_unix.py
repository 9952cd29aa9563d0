# SPDX-License-Identifier: Apache-2.0
"""Unix sockets of a live child, through the images, to a plan that is run."""

import fcntl
import os
import select
import socket
import stat
import struct
from pathlib import Path

import pytest

from torpor.engine.sockets import unix

from .sockets_round import look, replay

pytestmark = pytest.mark.functional

NUMBERS = (50, 51, 52, 53, 54, 55)


def at(fd: int) -> socket.socket:
    made = socket.socket(fileno=fd)
    made.settimeout(5)
    return made


def put(*sockets: socket.socket) -> list[int]:
    """Move sockets to the test's numbers."""
    for i, each in enumerate(sockets):
        os.dup2(each.detach(), NUMBERS[i])
    return list(NUMBERS[: len(sockets)])


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_pair_with_queued_data(kind: int) -> None:
    def prepare() -> list[int]:
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        a.send(b"first")
        a.send(b"second")
        b.send(b"back")
        b.setblocking(False)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
        return put(a, b)

    def check() -> None:
        a, b = at(50), at(51)
        assert os.get_blocking(50) is True or a.gettimeout() == 5
        if kind == socket.SOCK_STREAM:
            assert b.recv(100, socket.MSG_WAITALL * 0) == b"firstsecond"
        else:
            assert [b.recv(100), b.recv(100)] == [b"first", b"second"]
        assert a.recv(100) == b"back"
        a.send(b"new")
        assert b.recv(100) == b"new"
        assert a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100000
        assert a.getsockname() == ""
        assert a.type == kind

    done = look(unix.KIND, prepare)
    assert done.states == done.decoded or kind != socket.SOCK_STREAM
    replay(done, check)


def test_large_queue_fits_again() -> None:
    size = 0

    def prepare() -> list[int]:
        a, b = socket.socketpair()
        a.setblocking(False)
        sent = 0
        try:
            while True:
                sent += a.send(b"x" * 1000)
        except BlockingIOError:
            pass
        a.setblocking(True)
        b.send(struct.pack("i", sent))
        return put(a, b)

    def check() -> None:
        a, b = at(50), at(51)
        (size,) = struct.unpack("i", a.recv(4))
        assert size > 50000
        got = b""
        while len(got) < size:
            got += b.recv(1 << 20)
        assert got == b"x" * size
        assert a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 212992

    assert size == 0
    replay(look(unix.KIND, prepare), check)


def test_listener_accepted_and_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        os.chmod(path, 0o640)
        server.listen(7)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        accepted, _ = server.accept()
        client.send(b"hello")
        second, third = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        second.connect(path)
        third.connect(path)
        return put(server, client, accepted, second, third)

    def check() -> None:
        server, client, accepted, second, third = (at(n) for n in NUMBERS[:5])
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
        assert server.getsockname() == accepted.getsockname() == client.getpeername() == path
        assert accepted.recv(10) == b"hello"
        accepted.send(b"x")
        assert client.recv(10) == b"x"
        second.send(b"two")
        third.send(b"three")
        for text in (b"two", b"three"):
            late, _ = server.accept()
            assert late.recv(10) == text
        new = socket.socket(socket.AF_UNIX)
        new.connect(path)
        assert server.accept()

    done = look(unix.KIND, prepare)
    assert len(done.states[1].pending) == 2
    assert done.states[1].backlog == 7
    replay(done, check)


def test_accepted_without_listener_and_deleted_path(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(7)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        accepted, _ = server.accept()
        server.close()
        os.unlink(path)
        client.send(b"hello")
        return put(client, accepted)

    def check() -> None:
        client, accepted = at(50), at(51)
        assert accepted.getsockname() == client.getpeername() == path
        assert accepted.recv(10) == b"hello"
        assert not os.path.exists(path) or Path(path).read_text() == "precious"

    done = look(unix.KIND, prepare)
    assert done.states[2].place.deleted
    replay(done, check)
    Path(path).write_text("precious")
    replay(done, check)
    assert Path(path).read_text() == "precious"
    assert os.listdir(tmp_path) == ["s"]


def test_other_file_at_the_path_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen(7)
        return put(server)

    done = look(unix.KIND, prepare)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(AssertionError, match="a socket gives ENXIO"):
        replay(done, lambda: None)
    assert path.read_text() == "precious"


def test_abstract_and_autobind() -> None:
    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(b"\0torpor\0test")
        server.listen(1)
        auto = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        auto.bind("")
        auto.sendto(b"self", auto.getsockname())
        return put(server, auto)

    def check() -> None:
        server, auto = at(50), at(51)
        assert server.getsockname() == b"\0torpor\0test"
        assert auto.getsockname() == name
        assert auto.recvfrom(10) == (b"self", name)
        client = socket.socket(socket.AF_UNIX)
        client.connect(b"\0torpor\0test")
        assert server.accept()

    done = look(unix.KIND, prepare)
    name = done.states[2].name
    assert name.startswith(b"\0")
    replay(done, check)


def test_other_end_is_closed() -> None:
    def prepare() -> list[int]:
        a, b = socket.socketpair()
        b.send(b"last words")
        b.close()
        c, d = socket.socketpair()
        c.send(b"never read")
        d.send(b"then reset")
        d.close()
        return put(a, c)

    def check() -> None:
        a, c = at(50), at(51)
        assert a.recv(100) == b"last words"
        assert a.recv(100) == b""
        with pytest.raises(BrokenPipeError):
            a.send(b"x")
        assert c.recv(100) == b"then reset"
        with pytest.raises(ConnectionResetError):
            c.recv(100)

    done = look(unix.KIND, prepare)
    assert not done.states[1].reset
    assert done.states[2].reset
    replay(done, check)


def test_client_whose_server_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(7)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        accepted, _ = server.accept()
        other = socket.socket(socket.AF_UNIX)
        other.connect(path)
        left, _ = server.accept()
        other.send(b"unread")
        other.close()
        accepted.send(b"bye")
        accepted.close()
        return put(server, client, left)

    def check() -> None:
        server, client, left = (at(n) for n in NUMBERS[:3])
        assert client.getpeername() == path == left.getsockname() == server.getsockname()
        assert client.recv(10) == b"bye"
        assert client.recv(10) == b""
        assert left.recv(10) == b"unread"
        assert left.recv(10) == b""

    replay(look(unix.KIND, prepare), check)


def test_half_shut() -> None:
    def prepare() -> list[int]:
        a, b = socket.socketpair()
        a.send(b"before")
        a.shutdown(socket.SHUT_WR)
        return put(a, b)

    def check() -> None:
        a, b = at(50), at(51)
        assert b.recv(10) == b"before"
        assert b.recv(10) == b""
        b.send(b"answer")
        assert a.recv(10) == b"answer"
        with pytest.raises(BrokenPipeError):
            a.send(b"x")

    replay(look(unix.KIND, prepare), check)


def test_datagrams_with_names(tmp_path: Path) -> None:
    server_path, client_path = str(tmp_path / "server"), str(tmp_path / "client")

    def prepare() -> list[int]:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(server_path)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.bind(client_path)
        client.connect(server_path)
        client.send(b"one")
        nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        nameless.sendto(b"two", server_path)
        nameless.close()
        client.send(b"three")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return put(server, client)

    def check() -> None:
        server, client = at(50), at(51)
        assert server.recvfrom(10) == (b"one", client_path)
        assert server.recvfrom(10)[0] == b"two"
        assert server.recvfrom(10) == (b"three", client_path)
        assert client.getpeername() == server_path
        server.sendto(b"back", client_path)
        assert client.recv(10) == b"back"
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1

    replay(look(unix.KIND, prepare), check)


def test_dumped_twice_gives_the_same(tmp_path: Path) -> None:
    """Nothing is consumed and no option changes while we look."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for text in (b"1", b"22", b"333"):
        a.send(text)

    def prepare() -> list[int]:
        return put(a.dup(), b.dup())

    first, second = look(unix.KIND, prepare), look(unix.KIND, prepare)
    assert [m.data for m in first.states[2].queue] == [b"1", b"22", b"333"]
    assert first.states == second.states
    assert b.getsockopt(socket.SOL_SOCKET, 42) == -1


def test_outside_is_refused() -> None:
    ours, theirs = socket.socketpair()
    done = look(unix.KIND, lambda: put(theirs.dup()))
    assert [r.what for r in done.refusals] == [unix.OUTSIDE.what]
    assert "fd 50" in done.refusals[0].subject
    ours.close()


def test_unaccepted_with_data_is_refused(tmp_path: Path) -> None:
    def prepare() -> list[int]:
        server = socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX)
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        client.send(b"early")
        return put(server, client)

    done = look(unix.KIND, prepare)
    assert [r.what for r in done.refusals] == [unix.UNACCEPTED_DATA.what]


def test_poll_state_of_a_pair() -> None:
    def prepare() -> list[int]:
        a, b = socket.socketpair()
        b.close()
        return put(a)

    def check() -> None:
        poller = select.poll()
        poller.register(50, select.POLLIN | select.POLLRDHUP)
        ((_, events),) = poller.poll(0)
        assert events & select.POLLHUP
        assert events & select.POLLIN

    replay(look(unix.KIND, prepare), check)


def test_signal_driven() -> None:
    """O_ASYNC comes back; the owner is set late, by a holder."""

    def prepare() -> list[int]:
        a, b = socket.socketpair()
        fcntl.fcntl(a, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(a, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC | os.O_NONBLOCK)
        return put(a, b)

    def check() -> None:
        flags = fcntl.fcntl(50, fcntl.F_GETFL)
        assert flags & os.O_ASYNC
        assert flags & os.O_NONBLOCK

    done = look(unix.KIND, prepare)
    assert done.states[1].owner.pid != 0
    replay(done, check)
