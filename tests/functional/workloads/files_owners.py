# SPDX-License-Identifier: Apache-2.0
"""Who gets the signals of a descriptor, and which."""

import fcntl
import os
import signal
import socket
import struct
import threading
import time

from files_base import await_file, child, chosen, ended, state

F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG = 8, 9, 10, 11
F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS = 15, 16, 17
TID, PID, GROUP = 0, 1, 2


def own(fd, kind, pid):
    fcntl.fcntl(fd, F_SETOWN_EX, struct.pack("<ii", kind, pid))


def owner(fd):
    return struct.unpack("<ii", fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)))


def uids(fd):
    return struct.unpack("<II", fcntl.fcntl(fd, F_GETOWNER_UIDS, bytes(8)))


def caught(number):
    got = []
    signal.signal(number, lambda n, _: got.append(n))
    return got


def waits(got):
    deadline = time.monotonic() + 10
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert got


@state
def kinds(place):
    """A task, a group, a thread; on a pipe, a socket, a file, a fifo, a terminal-less device."""
    tids = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: (tids.append(threading.get_native_id()), stop.wait()))
    thread.start()
    while not tids:
        time.sleep(0.01)
    read, write = os.pipe()
    one, two = socket.socketpair()
    os.mkfifo(place / "fifo")
    (place / "file").write_bytes(b"x")
    fifo = os.open(place / "fifo", os.O_RDWR)
    file = os.open(place / "file", os.O_RDWR)
    wanted = [(read, TID, tids[0]), (write, PID, os.getpid()), (one.fileno(), GROUP, os.getpgrp()),
              (two.fileno(), PID, os.getppid() and os.getpid()), (fifo, PID, os.getpid()),
              (file, TID, os.getpid())]  # fmt: skip
    for i, (fd, kind, pid) in enumerate(wanted):
        own(fd, kind, pid)
        if i % 2:
            fcntl.fcntl(fd, F_SETSIG, signal.SIGRTMIN + i)
    before = [(owner(fd), fcntl.fcntl(fd, F_GETSIG), uids(fd)) for fd, _, _ in wanted]
    yield
    after = [(owner(fd), fcntl.fcntl(fd, F_GETSIG), uids(fd)) for fd, _, _ in wanted]
    assert after == before, (after, before)
    stop.set()


@state
def delivered(place):
    """O_ASYNC with an owner: the signal comes; without F_SETSIG it is SIGIO."""
    got, real = caught(signal.SIGIO), caught(signal.SIGRTMIN + 1)
    read, write = os.pipe()
    fcntl.fcntl(read, F_SETOWN, os.getpid())
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    one, two = socket.socketpair()
    fcntl.fcntl(one, F_SETOWN, os.getpid())
    fcntl.fcntl(one, F_SETSIG, signal.SIGRTMIN + 1)
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC)
    yield
    assert not got
    os.write(write, b"x")
    waits(got)
    two.send(b"x")
    waits(real)


@state
def of_child(place):
    """The child is the owner of the parent's descriptor, with other ids than it set it with."""
    (place / "file").write_bytes(b"x")
    fd = os.open(place / "file", os.O_RDONLY)

    def body():
        await_file(place / "child")

    pid = child(body)
    os.setresuid(0, 1000, 0)
    own(fd, PID, pid)
    os.setresuid(0, 0, 0)
    before = uids(fd)
    assert before == (0, 1000)
    yield
    assert owner(fd) == (PID, pid)
    assert uids(fd) == before
    (place / "child").touch()
    assert ended(pid) == 0


@state
def dead(place):
    """The owner has ended."""
    read, write = os.pipe()
    pid = child(lambda: 0)
    own(read, PID, pid)
    fcntl.fcntl(read, F_SETSIG, signal.SIGUSR1)
    assert ended(pid) == 0
    yield
    assert owner(read) in ((PID, 0), (PID, pid), (TID, 0))
    assert fcntl.fcntl(read, F_GETSIG) == signal.SIGUSR1
    os.write(write, b"x")


@state
def group_of_child(place):
    """A process group that is not the own."""

    def body():
        os.setpgid(0, 0)
        (place / "grouped").touch()
        await_file(place / "child")

    pid = child(body)
    await_file(place / "grouped")
    read, _ = os.pipe()
    fcntl.fcntl(read, F_SETOWN, -pid)
    yield
    assert owner(read) == (GROUP, pid)
    (place / "child").touch()
    assert ended(pid) == 0


@state
def outside(place):
    """The owner is a task outside of the tree."""
    read, _ = os.pipe()
    own(read, PID, 1)
    yield


if __name__ == "__main__":
    chosen()
