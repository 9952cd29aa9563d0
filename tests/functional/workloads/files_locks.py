# SPDX-License-Identifier: Apache-2.0
"""Locks of all kinds, waiters for them, leases, and directory notification."""

import fcntl
import os
import signal
import struct
import time

from files_base import await_file, child, chosen, ended, state

SH, EX, NB, UN = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN
OFD_GETLK, OFD_SETLK = 36, 37
F_SETLEASE, F_GETLEASE, F_NOTIFY, F_SETSIG = 1024, 1025, 1026, 10
RDLCK, WRLCK, UNLCK = 0, 1, 2
FLOCK = struct.Struct("<hhxxxxqqixxxx")


def opened(path, flags=os.O_RDWR):
    return os.open(path, flags | os.O_CREAT, 0o644)


def ofd(fd, kind, start, length):
    fcntl.fcntl(fd, OFD_SETLK, FLOCK.pack(kind, 0, start, length, 0))


def blocked_by(path, kind, start=0, length=0):
    """What F_GETLK tells another task: (kind, start, length, pid) or None."""
    read, write = os.pipe()

    def ask():
        fd = os.open(path, os.O_RDWR)
        raw = fcntl.fcntl(fd, OFD_GETLK, FLOCK.pack(kind, 0, start, length, 0))
        os.write(write, raw)

    assert ended(child(ask)) == 0  # a close of ours would drop our own locks
    found, _, start, length, pid = FLOCK.unpack(os.read(read, FLOCK.size))
    os.close(read)
    os.close(write)
    return None if found == UNLCK else (found, start, length, pid)


def may_flock(path, how):
    """Whether another task may lock it."""

    def ask():
        fcntl.flock(os.open(path, os.O_RDONLY), how | NB)

    return ended(child(ask)) == 0


@state
def flocks(place):
    """Shared and exclusive; by dup, fork, and several descriptions."""
    one, two = opened(place / "exclusive"), opened(place / "shared")
    third = opened(place / "shared", os.O_RDONLY)
    fcntl.flock(one, EX)
    fcntl.flock(two, SH)
    fcntl.flock(third, SH)
    os.dup(one)
    pid = child(lambda: await_file(place / "child"))
    os.close(one)  # the dup and the child keep it
    gone = opened(place / "gone")
    fcntl.flock(gone, EX)
    (place / "gone").unlink()
    again = os.open(f"/proc/self/fd/{gone}", os.O_RDONLY)
    yield
    assert not may_flock(place / "exclusive", SH)
    assert may_flock(place / "shared", SH)
    assert not may_flock(place / "shared", EX)
    fcntl.flock(two, UN)
    assert not may_flock(place / "shared", EX)
    fcntl.flock(third, UN)
    assert may_flock(place / "shared", EX)
    try:
        fcntl.flock(again, SH | NB)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("the deleted file is not locked")
    (place / "child").touch()
    assert ended(pid) == 0


@state
def posix(place):
    """Ranges of two tasks; read and write; through a second descriptor; without a descriptor."""
    data = place / "data"
    data.write_bytes(bytes(1000))
    fd = opened(data)
    fcntl.lockf(fd, EX, 10, 0)
    fcntl.lockf(fd, SH, 20, 100)
    fcntl.lockf(fd, EX, 0, 1 << 40)

    def body():
        own = opened(data)
        fcntl.lockf(own, EX, 5, 50)
        fcntl.lockf(own, SH, 10, 105)
        (place / "locked").touch()
        await_file(place / "child")

    pid = child(body)
    await_file(place / "locked")
    yield
    me = os.getpid()
    assert blocked_by(data, WRLCK, 0, 5) == (WRLCK, 0, 10, me)
    assert blocked_by(data, RDLCK, 50, 1) == (WRLCK, 50, 5, pid)
    assert blocked_by(data, RDLCK, 110, 1) is None
    assert blocked_by(data, WRLCK, 117, 1) == (RDLCK, 100, 20, me)
    assert blocked_by(data, WRLCK, 1 << 41, 1) == (WRLCK, 1 << 40, 0, me)
    assert blocked_by(data, WRLCK, 60, 10) is None
    (place / "child").touch()
    assert ended(pid) == 0


@state
def posix_waits(place):
    """One holds, another waits in F_SETLKW, a third in flock."""
    data = place / "data"
    fd = opened(data)
    fcntl.lockf(fd, EX)
    other = opened(place / "other")
    fcntl.flock(other, EX)

    def wait_posix():
        own = opened(data)
        fcntl.lockf(own, EX)
        return 0 if (place / "released").exists() else 1

    def wait_flock():
        own = opened(place / "other")
        fcntl.flock(own, EX)
        return 0 if (place / "released").exists() else 1

    pids = [child(wait_posix), child(wait_flock)]
    time.sleep(0.2)
    yield
    time.sleep(0.1)
    (place / "released").touch()
    fcntl.lockf(fd, UN)
    fcntl.flock(other, UN)
    assert [ended(pid) for pid in pids] == [0, 0]


@state
def ofds(place):
    """Of descriptions; ranges; shared by fork."""
    data = place / "data"
    data.write_bytes(bytes(100))
    fd, other = opened(data), opened(data)
    ofd(fd, WRLCK, 0, 10)
    ofd(other, RDLCK, 20, 0)
    pid = child(lambda: await_file(place / "child"))
    yield
    assert blocked_by(data, RDLCK, 0, 1) == (WRLCK, 0, 10, -1)
    assert blocked_by(data, WRLCK, 1000, 1) == (RDLCK, 20, 0, -1)
    assert blocked_by(data, RDLCK, 1000, 1) is None
    os.close(fd)
    assert blocked_by(data, RDLCK, 0, 1) == (WRLCK, 0, 10, -1)  # the child has it
    (place / "child").touch()
    assert ended(pid) == 0
    assert blocked_by(data, RDLCK, 0, 1) is None


@state
def mixed(place):
    """All three on one file; a reader's lock through a read-only descriptor."""
    data = place / "data"
    data.write_bytes(bytes(100))
    fd, read = opened(data), os.open(data, os.O_RDONLY)
    fcntl.flock(read, SH)
    fcntl.lockf(fd, EX, 10, 0)
    fcntl.lockf(read, SH, 10, 20)
    ofd(fd, WRLCK, 50, 10)
    yield
    assert not may_flock(data, EX)
    assert blocked_by(data, RDLCK, 0, 5) == (WRLCK, 0, 10, os.getpid())
    assert blocked_by(data, WRLCK, 20, 5) == (RDLCK, 20, 10, os.getpid())
    assert blocked_by(data, RDLCK, 50, 5) == (WRLCK, 50, 10, -1)


def catcher(number):
    caught = []
    signal.signal(number, lambda n, _: caught.append(n))
    return caught


def leased(place, kind, number=None):
    path = place / "data"
    path.write_bytes(b"leased")
    fd = os.open(path, os.O_RDONLY if kind == RDLCK else os.O_RDWR)
    if number is not None:
        fcntl.fcntl(fd, F_SETSIG, number)
    fcntl.fcntl(fd, F_SETLEASE, kind)
    return path, fd


def breaks(path, fd, caught, flags):
    """Another task opens the file; it waits until the lease is given back."""
    pid = child(lambda: os.close(os.open(path, flags)) or 0)
    deadline = time.monotonic() + 10
    while not caught and time.monotonic() < deadline:
        time.sleep(0.01)
    assert caught
    fcntl.fcntl(fd, F_SETLEASE, UNLCK)
    assert ended(pid) == 0


@state
def lease_read(place):
    """A read lease, broken by a writer."""
    caught = catcher(signal.SIGIO)
    path, fd = leased(place, RDLCK)
    yield
    assert fcntl.fcntl(fd, F_GETLEASE) == RDLCK
    assert os.close(os.open(path, os.O_RDONLY)) is None
    breaks(path, fd, caught, os.O_WRONLY)


@state
def lease_write(place):
    """A write lease with a signal of its own, broken by a reader."""
    caught = catcher(signal.SIGUSR1)
    path, fd = leased(place, WRLCK, signal.SIGUSR1)
    yield
    assert fcntl.fcntl(fd, F_GETLEASE) == WRLCK
    breaks(path, fd, caught, os.O_RDONLY)


@state
def lease_breaking(place):
    """Somebody waits in open for the lease to be given back."""
    caught = catcher(signal.SIGIO)
    path, fd = leased(place, WRLCK)
    pid = child(lambda: os.close(os.open(path, os.O_RDONLY)) or 0)
    while not caught:
        time.sleep(0.01)
    yield
    fcntl.fcntl(fd, F_SETLEASE, UNLCK)
    assert ended(pid) == 0
    assert fcntl.fcntl(fd, F_GETLEASE) == UNLCK


@state
def lease_breaking_write(place):
    """Writers wait for leases of a reader and of a writer."""
    caught = catcher(signal.SIGIO)
    fds, pids = [], []
    for name, kind, flags in (("read", RDLCK, os.O_RDONLY), ("write", WRLCK, os.O_RDWR)):
        path = place / name
        path.write_bytes(b"leased")
        fds.append(os.open(path, flags))
        fcntl.fcntl(fds[-1], F_SETLEASE, kind)
        pids.append(child(lambda path=path: os.close(os.open(path, os.O_WRONLY)) or 0))
        while len(caught) < len(pids):
            time.sleep(0.01)
    yield
    assert len(caught) == 2
    for fd, pid in zip(fds, pids, strict=True):
        assert os.waitpid(pid, os.WNOHANG)[0] == 0
        fcntl.fcntl(fd, F_SETLEASE, UNLCK)
        assert ended(pid) == 0


@state
def notify(place):
    """F_NOTIFY (dnotify)."""
    caught = catcher(signal.SIGRTMIN + 2)
    folder = os.open(place, os.O_RDONLY)
    fcntl.fcntl(folder, F_SETSIG, signal.SIGRTMIN + 2)
    fcntl.fcntl(folder, F_NOTIFY, 0x80000004)  # DN_MULTISHOT | DN_CREATE
    yield
    before = len(caught)
    (place / "made").touch()
    time.sleep(0.1)
    assert len(caught) > before


if __name__ == "__main__":
    chosen()
