# SPDX-License-Identifier: Apache-2.0
"""Live views of a child's descriptors; the child is ours, so no right is needed."""

import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torpor.engine.errors import Vanished
from torpor.engine.files import pipe
from torpor.engine.kernel import fdview, netlink
from torpor.engine.kernel.fdview import Views, open_views
from torpor.engine.kernel.livefd import LiveFd
from torpor.engine.kind import FdView

SO_PEEK_OFF = 42
SO_ATTACH_FILTER = 26


@contextmanager
def child(prepare: Callable[[], object]) -> Iterator[int]:
    """A child that has run ``prepare`` and then sleeps."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = prepare()
            os.write(tell, b"!")
            while kept is not None:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"!"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def view_of(views: Views, pid: int, fd: int) -> LiveFd:
    view: FdView = views.get(pid, fd)
    assert isinstance(view, LiveFd)
    return view


def our_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_pipe_content_stays_queued() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    os.set_blocking(reader, False)
    before = our_descriptors()
    with child(lambda: True) as pid, open_views([pid]) as views:
        for fd in (reader, writer):
            view = view_of(views, pid, fd)
            assert view.pipe_pieces() == [b"hello"]
            assert view.link.startswith("pipe:[")
        assert view_of(views, pid, reader).flags & os.O_NONBLOCK
        assert view_of(views, pid, writer).poll_events() & select.POLLOUT
    assert os.read(reader, 10) == b"hello"
    assert len(our_descriptors()) == len(before)
    os.close(reader)
    os.close(writer)


def test_full_pipe_of_many_small_buffers() -> None:
    reader, writer = os.pipe2(os.O_DIRECT)
    for _ in range(16):
        os.write(writer, b"x" * 100)
    with child(lambda: True) as pid, open_views([pid]) as views:
        assert view_of(views, pid, reader).pipe_pieces() == [b"x" * 100] * 16
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_messages_are_peeked_and_stay(kind: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    for text in (b"one", b"two", b"three"):
        ours.send(text)
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, theirs.fileno())
        assert [m.data for m in view.peek_messages()] == [b"one", b"two", b"three"]
        assert [m.data for m in view.peek_messages()] == [b"one", b"two", b"three"]
    assert theirs.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == -1
    assert [theirs.recv(10) for _ in range(3)] == [b"one", b"two", b"three"]
    ours.close()
    theirs.close()


def test_descriptors_in_flight_are_counted_and_not_kept() -> None:
    ours, theirs = socket.socketpair()
    ours.send(b"plain")
    with Path("/dev/null").open("rb") as null:
        socket.send_fds(ours, [b"with"], [null.fileno(), null.fileno()])
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, theirs.fileno())
        before = our_descriptors()
        messages = view.peek_messages()
        assert [(m.data, m.fds) for m in messages] == [(b"plainwith", 2)]
        assert len(our_descriptors()) == len(before) + 1  # the copy
        assert "scm_fds: 2" in view.info
    ours.close()
    theirs.close()


def test_pending_error_of_a_stream_is_left_to_the_task() -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"unread")
    ours.send(b"last")
    ours.close()  # with unread data: the other end gets ECONNRESET after "last"
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, theirs.fileno())
        assert view.poll_events() & select.POLLERR
        assert [m.data for m in view.peek_messages()] == [b"last"]
    assert theirs.recv(10) == b"last"
    with pytest.raises(ConnectionResetError):
        theirs.recv(10)
    theirs.close()


def test_file_content_and_position(tmp_path: Path) -> None:
    name = tmp_path / "f"
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789")
    os.lseek(fd, 3, os.SEEK_SET)
    name.unlink()
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, fd)
        assert view.pos == 3
        assert view.st_nlink == 0
        assert view.file_content(100) == b"0123456789"
        assert view.path_stat(str(tmp_path)) is not None
        assert view.path_stat(str(name)) is None
        assert view.fs_magic != 0
    assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    os.close(fd)


def test_o_path_descriptor(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    fd = os.open(tmp_path / "f", os.O_PATH)
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, fd)
        assert view.flags & os.O_PATH
        assert view.link == str(tmp_path / "f")
        assert view.file_content(10) == b"x"
    os.close(fd)


def test_epoll_targets() -> None:
    reader, writer = os.pipe()
    epoll = select.epoll()
    epoll.register(reader, select.EPOLLIN | select.EPOLLET)
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, epoll.fileno())
        ((tfd, events, data, index),) = view.epoll_targets()
        assert (tfd, data & 0xFFFFFFFF, index) == (reader, reader, 0)
        assert events & select.EPOLLET
        assert view.epoll_target_is(tfd, index, view_of(views, pid, reader))
        assert not view.epoll_target_is(tfd, index, view_of(views, pid, writer))
        duplicate = view_of(views, pid, reader)
        assert duplicate.file_order(view_of(views, pid, reader)) == 0
        other = view_of(views, pid, writer)
        assert duplicate.file_order(other) == -other.file_order(duplicate) != 0
    for fd in (reader, writer):
        os.close(fd)
    epoll.close()


def test_symlink_in_root_is_followed_inside_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "s").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = views.of(pid)[0]
        inode = (tmp_path / "real" / "s").stat().st_ino
        found = view.path_stat(str(tmp_path / "link" / "s"))
        assert found is not None
        assert found[1] == inode


def test_unix_and_inet_diag() -> None:
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    ours.send(b"abc")
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, theirs.fileno())
        answer = view.netlink(16, netlink.NETLINK_SOCK_DIAG, netlink.unix_diag_request())
        sockets = netlink.unix_sockets(answer)
        end = netlink.unix_socket(sockets[view.st_ino])
        assert netlink.unix_socket(sockets[end.peer or 0]).peer == view.st_ino
        assert (end.receive_queue, end.kind, end.state) == (3, 1, 1)
        answer = view.netlink(16, netlink.NETLINK_SOCK_DIAG, netlink.inet_diag_request(2, 6))
        inodes = {s.inode: s for s in netlink.inet_sockets(answer)}
        found = inodes[view_of(views, pid, listener.fileno()).st_ino]
        assert (found.state, found.source_port) == (10, listener.getsockname()[1])
    for each in (ours, theirs, listener):
        each.close()


def test_options_and_names() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _accept_all()[0])
    except PermissionError:
        pytest.skip("this kernel lets only root attach filters")
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, listener.fileno())
        assert view.getsockopt(1, 2, 4) == struct.pack("i", 1)  # SO_REUSEADDR
        assert view.getsockopt(1, 9999, 4) is None
        assert view.getsockopt(1, 26, 0) == _accept_all()[1]
        assert view.sockname()[2:4] == struct.pack(">H", listener.getsockname()[1])
        assert view.peername() is None
        assert view.fcntl(fcntl.F_GETFL) == view.flags & ~os.O_CLOEXEC
    listener.close()


def _accept_all() -> tuple[bytes, bytes]:
    """(struct sock_fprog for setsockopt, the instruction) of `ret 65535`."""
    import ctypes

    code = struct.pack("HBBI", 6, 0, 0, 65535)
    room = _accept_all.__dict__.setdefault("room", ctypes.create_string_buffer(code))
    return struct.pack("HxxxxxxP", 1, ctypes.addressof(room)), code


def test_inotify_watch_path(tmp_path: Path) -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(0)
    (tmp_path / "below").mkdir()
    assert libc.inotify_add_watch(fd, os.fsencode(tmp_path / "below"), 2) == 1
    with child(lambda: True) as pid, open_views([pid]) as views:
        view = view_of(views, pid, fd)
        (line,) = [text for text in view.info if text.startswith("inotify")]
        parts = dict(word.split(":", 1) for word in line.split()[1:])
        found = view.watch_path(
            int(parts["sdev"], 16),
            int(parts["ino"], 16),
            int(parts["fhandle-type"], 16),
            bytes.fromhex(parts["f_handle"]),
        )
        assert found == str(tmp_path / "below")
    os.close(fd)


def test_task_that_is_gone() -> None:
    with child(lambda: True) as pid:
        pass
    with pytest.raises(Vanished):
        open_views([pid])


def test_what_is_known_of_pipes_once_they_were_asked() -> None:
    """What is small; of much, of a write end, and before, it is not known."""
    small, large = os.pipe(), os.pipe()
    os.write(small[1], b"x")
    os.write(large[1], bytes(1000))
    with child(lambda: True) as pid, open_views([pid]) as views:
        found = [view_of(views, pid, fd) for fd in (*small, *large)]
        assert not any(view.is_queue_told for view in found)
        fdview.ask([(view, pipe.QUESTIONS) for view in found])
        assert [view.is_queue_told for view in found] == [True, False, False, False]
        assert found[0].pipe_pieces() == [b"x"]
    for fd in (*small, *large):
        os.close(fd)
