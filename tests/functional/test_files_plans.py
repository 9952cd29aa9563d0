# SPDX-License-Identifier: Apache-2.0
"""Kinds of files against the kernel, in one process: make, dump, close, restore, compare."""

import fcntl
import os
import select
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import inprocess
from inprocess import forked, round_trip

from torpor.engine.files import (
    device,
    epoll,
    eventfd,
    fifo,
    inotify,
    memfd,
    pidfd,
    pipe,
    procfs,
    regular,
    signalfd,
    timerfd,
)
from torpor.engine.kind import DumpContext


def folder():
    return tempfile.mkdtemp(prefix="torpor-files-")


def test_regular_files_directories_and_paths():
    def body():
        base = Path(folder())
        (base / "data").write_bytes(b"0123456789")
        (base / "sub").mkdir()
        for i in range(20):
            (base / "sub" / f"file{i}").touch()
        os.symlink("data", base / "link")
        read = os.open(base / "data", os.O_RDONLY)
        os.lseek(read, 4, os.SEEK_SET)
        again = os.open(base / "data", os.O_RDONLY)
        append = os.open(base / "data", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
        os.write(append, b"ab")
        sub = os.open(base / "sub", os.O_RDONLY | os.O_DIRECTORY)
        scan = os.listdir(sub)
        path = os.open(base / "link", os.O_PATH | os.O_NOFOLLOW)
        shared = os.dup(read)
        os.set_inheritable(shared, True)
        fds = [read, again, append, sub, path, shared]
        before, after, result = round_trip([regular.KIND], fds)
        assert before == after
        assert len(result.views) == 5
        assert os.read(shared, 3) == b"456"
        assert os.read(read, 3) == b"789"
        assert os.read(again, 3) == b"012"
        assert sorted(os.listdir(sub)) == sorted(scan)
        assert os.readlink("", dir_fd=path) == "data"
        assert not os.get_inheritable(read)
        assert os.get_inheritable(shared)

    forked(body)


def test_locks():
    def body():
        base = Path(folder())
        whole = os.open(base / "whole", os.O_RDWR | os.O_CREAT)
        fcntl.flock(whole, fcntl.LOCK_EX)
        part = os.open(base / "part", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
        fcntl.lockf(part, fcntl.LOCK_SH, 7, 100)
        own = os.open(base / "own", os.O_RDWR | os.O_CREAT)
        fcntl.fcntl(own, 37, struct.pack("<hhxxxxqqixxxx", 1, 0, 3, 4, 0))
        before, after, _ = round_trip([regular.KIND], [whole, part, own])

        def lines(shown, fd):
            return sorted(line.split(None, 2)[2] for line in shown[fd]["info"] if "lock:" in line)

        for fd in (whole, part, own):
            assert lines(before, fd)
            assert lines(before, fd) == lines(after, fd)

    forked(body)


def test_pipes():
    def body():
        read, write = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.write(write, b"queued" * 30000)
        both = os.open(f"/proc/self/fd/{read}", os.O_RDWR)
        again = os.open(f"/proc/self/fd/{write}", os.O_WRONLY | os.O_APPEND)
        eof, gone = os.pipe()
        os.close(gone)
        gone, broken = os.pipe()
        os.close(gone)
        _, fast = os.pipe2(os.O_DIRECT)
        fds = [read, write, both, again, eof, broken, _, fast]
        before, after, result = round_trip([pipe.KIND], fds)
        assert before == after
        assert len({s.pipe_id for s in result.states["pipe"].values()}) == 4
        assert fcntl.fcntl(both, fcntl.F_GETPIPE_SZ) == 1 << 20
        os.write(again, b"more")
        assert os.read(both, 1 << 20) == b"queued" * 30000 + b"more"
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        assert os.read(eof, 1) == b""
        with pytest.raises(BrokenPipeError):
            os.write(broken, b"x")
        os.write(fast, b"ab")
        os.write(fast, b"c")
        assert os.read(_, 10) == b"ab"

    forked(body)


def test_counters_timers_and_signals():
    def body():
        small = os.eventfd(7, os.EFD_NONBLOCK)
        large = os.eventfd(0, os.EFD_SEMAPHORE)
        os.eventfd_write(large, (1 << 63) + 5)
        signals = inprocess.LIBC.signalfd(-1, struct.pack("<Q", 1 << 9 | 1 << 63), os.O_NONBLOCK)
        timers = []
        for clock, flags, value, interval in (
            (1, 0, 10**12, 0),
            (0, 3, 1 << 61, 10**9),
            (1, 0, 10**7, 10**15),
            (7, 0, 0, 0),
            (1, 0, 10**7, 0),
        ):
            timer = inprocess.LIBC.timerfd_create(clock, os.O_NONBLOCK)
            spec = struct.pack("<4q", *divmod(interval, 10**9), *divmod(value, 10**9))
            assert inprocess.LIBC.timerfd_settime(timer, flags, spec, None) == 0
            timers.append(timer)
        time.sleep(0.03)
        fds = [small, large, signals, *timers]
        kinds = [eventfd.KIND, signalfd.KIND, timerfd.KIND]
        hide = ("it_value", "settime")
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        before, after, result = round_trip(kinds, fds, hide=hide, realtime_ns=now)
        assert before == after
        states = list(result.states["timerfd"].values())
        assert states[1].deadline_ns is not None
        assert [s.ticks for s in states] == [0, 0, 1, 0, 1]
        left = [
            timerfd.KIND.collect(
                inprocess.own_fd(t),
                DumpContext(tcp=None, container=False, ghost_limit_bytes=0, realtime_ns=now),
            )
            for t in timers
        ]
        assert left[1].settime_flags == 3
        for old, new in zip(states[:2], left, strict=False):
            assert 0 <= old.left_ns - new.left_ns < 5 * 10**9
        assert left[2].left_ns > 9 * 10**14  # stood still, goes on by its interval
        assert os.eventfd_read(small) == 7
        assert os.eventfd_read(large) == 1
        assert struct.unpack("<Q", os.read(timers[4], 8)) == (1,)
        os.kill(os.getpid(), 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [10])
        os.kill(os.getpid(), 10)
        assert os.read(signals, 128)[0] == 10

    forked(body)


def test_devices_and_signal_owner():
    def body():
        null = os.open("/dev/null", os.O_RDWR | os.O_APPEND)
        random = os.open("/dev/urandom", os.O_RDONLY)
        read, write = os.pipe()
        me = os.getpid()
        fcntl.fcntl(read, 15, struct.pack("<ii", 1, me))
        fcntl.fcntl(read, 10, signal.SIGUSR2)
        fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        before, after, _ = round_trip([device.KIND, pipe.KIND], [null, random, read, write])
        assert before == after
        assert fcntl.fcntl(read, 16, bytes(8)) == struct.pack("<ii", 1, me)
        got = []
        signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
        os.write(write, b"x")
        assert got
        assert len(os.read(random, 8)) == 8

    forked(body)


def test_epoll():
    def body():
        read, write = os.pipe()
        inner, outer = select.epoll(), select.epoll()
        inner.register(read, select.EPOLLIN | select.EPOLLET)
        outer.register(inner.fileno(), select.EPOLLIN)
        outer.register(write, select.EPOLLOUT)
        moved = os.dup(read)
        outer.register(moved, select.EPOLLPRI)
        lent = os.dup(moved)  # the number of `moved` goes, its watch stays
        os.close(moved)
        os.eventfd(0)  # at that number now
        assert os.readlink(f"/proc/self/fd/{moved}") == "anon_inode:[eventfd]"
        fds = [read, write, inner.fileno(), outer.fileno(), lent, moved]
        os.set_inheritable(moved, True)
        kinds = [pipe.KIND, eventfd.KIND, epoll.KIND]

        def watches(shown, one):
            return sorted(line.split(" ino:")[0] for line in shown[one.fileno()]["info"])

        before, after, _ = round_trip(kinds, fds)
        for one in (inner, outer):
            assert watches(before, one) == watches(after, one)
        assert len([line for line in watches(after, outer) if "tfd" in line]) == 3
        assert os.readlink(f"/proc/self/fd/{moved}") == "anon_inode:[eventfd]"
        assert os.get_inheritable(moved)
        assert outer.poll(0) == [(write, select.EPOLLOUT)]
        os.write(write, b"x")
        assert inner.fileno() in dict(outer.poll(0))

    forked(body)


def test_inotify():
    def body():
        base = Path(folder())
        (base / "one").mkdir()
        (base / "two").touch()
        fd = inprocess.LIBC.inotify_init1(os.O_CLOEXEC)
        for i in range(1, 6):
            assert inprocess.LIBC.inotify_add_watch(fd, str(base / "two").encode(), 2) == i
            inprocess.LIBC.inotify_rm_watch(fd, i)
        assert inprocess.LIBC.inotify_add_watch(fd, str(base / "one").encode(), 0x84000FFF) == 6
        assert inprocess.LIBC.inotify_add_watch(fd, str(base).encode(), 0x200) == 7
        inprocess.LIBC.inotify_rm_watch(fd, 7)
        assert inprocess.LIBC.inotify_add_watch(fd, str(base / "two").encode(), 0x4) == 8
        os.read(fd, 4096)
        paths = {p.lstat().st_ino: str(p) for p in (base / "one", base / "two", base)}
        before, after, _ = round_trip([inotify.KIND], [fd], watches=paths)
        assert before == after
        os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        (base / "two").chmod(0o600)
        assert struct.unpack_from("<ii", os.read(fd, 4096))[0] == 8

    forked(body)


@pytest.mark.parametrize("is_gone", [False, True])
def test_fifos(is_gone):
    def body():
        base = Path(folder())
        name, quiet = base / "fifo", base / "quiet"
        os.mkfifo(name, 0o640)
        os.mkfifo(quiet)
        both = os.open(name, os.O_RDWR)
        read = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        write = os.open(name, os.O_WRONLY)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 18)
        os.write(write, b"text" * 20000)
        alone = os.open(quiet, os.O_RDONLY | os.O_NONBLOCK)
        path = os.open(name, os.O_PATH)
        if is_gone:
            os.unlink(name)
            os.close(path)
        fds = [both, read, write, alone, *([] if is_gone else [path])]
        before, after, result = round_trip([regular.KIND, fifo.KIND], fds)
        assert before == after
        assert len(result.states["fifo"]) == 4
        assert fcntl.fcntl(read, fcntl.F_GETPIPE_SZ) == 1 << 18
        assert os.read(read, 1 << 18) == b"text" * 20000
        assert os.read(alone, 1) == b""
        assert sorted(os.listdir(base)) == (["quiet"] if is_gone else ["fifo", "quiet"])

    forked(body)


def test_memfds():
    def body():
        one = os.memfd_create("first", os.MFD_ALLOW_SEALING)
        os.write(one, b"a" * 5000)
        os.ftruncate(one, 1 << 20)
        read = os.open(f"/proc/self/fd/{one}", os.O_RDONLY)
        os.lseek(read, 7, os.SEEK_SET)
        plain = os.memfd_create("näme", 0)
        os.fchmod(plain, 0o600)
        append = os.open(f"/proc/self/fd/{plain}", os.O_WRONLY | os.O_APPEND)
        fds = [one, read, plain, append]
        before, after, result = round_trip([memfd.KIND], fds)
        assert before == after
        assert len(result.states["memfd"]) == 4
        assert os.fstat(one).st_size == 1 << 20  # content and seals: catalogue, memory_shared
        assert os.fstat(one).st_ino == os.fstat(read).st_ino
        os.write(append, b"x")
        assert os.pread(plain, 5, 0) == b"x"

    forked(body)


def test_pidfds_and_files_of_proc():
    def body():
        me = os.getpid()
        fd = os.pidfd_open(me, os.O_NONBLOCK)
        twice = os.dup(fd)
        os.set_inheritable(twice, True)
        status = os.open("/proc/self/status", os.O_RDONLY)
        os.lseek(status, 6, os.SEEK_SET)
        folder_fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        everywhere = os.open("/proc/meminfo", os.O_RDONLY)
        proc = os.open("/proc", os.O_PATH)
        fds = [fd, twice, status, folder_fd, everywhere, proc]
        before, after, _ = round_trip([pidfd.KIND, procfs.KIND, regular.KIND], fds)
        assert before == after
        assert os.get_inheritable(twice)
        assert not os.get_inheritable(fd)
        signal.pidfd_send_signal(fd, 0)
        assert os.read(everywhere, 8) == b"MemTotal"

    forked(body)
