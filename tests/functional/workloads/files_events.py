# SPDX-License-Identifier: Apache-2.0
"""Counters, timers, signal descriptors, inotify and fanotify."""

import ctypes
import errno
import os
import select
import signal
import struct
import time

from files_base import LIBC, LackingError, call, child, chosen, ended, state

IN_CREATE, IN_MODIFY, IN_DELETE, IN_OPEN, IN_DELETE_SELF = 0x100, 0x2, 0x200, 0x20, 0x400
IN_ONESHOT, IN_EXCL_UNLINK, IN_MASK_ADD, IN_ONLYDIR = 0x80000000, 0x04000000, 0x20000000, 0x01000000
IN_IGNORED, IN_ISDIR, IN_ALL = 0x8000, 0x40000000, 0xFFF
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2


def timerfd(clock, flags, value_ns, interval_ns=0):
    fd = call("timerfd_create", clock, os.O_NONBLOCK)
    spec = struct.pack("<4q", *divmod(interval_ns, 10**9), *divmod(value_ns, 10**9))
    call("timerfd_settime", fd, flags, spec, None)
    return fd


def setting(fd):
    """(interval, left) in nanoseconds."""
    room = ctypes.create_string_buffer(32)
    call("timerfd_gettime", fd, room)
    one, two, three, four = struct.unpack("<4q", room.raw)
    return one * 10**9 + two, three * 10**9 + four


def ticks(fd):
    try:
        return struct.unpack("<Q", os.read(fd, 8))[0]
    except BlockingIOError:
        return 0


@state
def eventfds(place):
    """All flags and counts; readers and writers that wait; shared."""
    counts = [0, 1, 5, (1 << 32) + 7, (1 << 64) - 2]
    plain = [os.eventfd(0, os.EFD_NONBLOCK) for _ in counts]
    for fd, count in zip(plain, counts, strict=True):
        os.eventfd_write(fd, count)
    semaphore = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
    full, empty = os.eventfd(0), os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    pids = [child(lambda: os.eventfd_write(full, 5) or 0),
            child(lambda: 0 if os.eventfd_read(empty) == 9 else 1)]  # fmt: skip
    time.sleep(0.1)
    yield
    for fd, count in zip(plain, counts, strict=True):
        if count:
            assert os.eventfd_read(fd) == count
        try:
            raise AssertionError(os.eventfd_read(fd))
        except BlockingIOError:
            pass
    assert [os.eventfd_read(semaphore) for _ in range(3)] == [1, 1, 1]
    assert os.eventfd_read(full) == (1 << 64) - 2
    os.eventfd_write(empty, 9)
    assert [ended(pid) for pid in pids] == [0, 0]
    assert os.eventfd_read(full) == 5


@state
def timers(place):
    """All clocks; relative and absolute; one-shot and periodic; off; expired and not read."""
    second = 10**9
    now = {clock: time.clock_gettime_ns(clock) for clock in (0, 1, 7)}
    far = [timerfd(clock, 0, 1000 * second, 7 * second) for clock in (0, 1, 7)]
    absolute = [timerfd(c, TFD_TIMER_ABSTIME, now[c] + 1000 * second, second) for c in (0, 1, 7)]
    cancel = timerfd(0, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, now[0] + 1000 * second)
    off = timerfd(1, 0, 0)
    fired = timerfd(1, 0, 1)
    periodic = timerfd(1, 0, 1, 20_000_000)
    slow = timerfd(1, 0, 1, 1000 * second)
    passed = timerfd(0, TFD_TIMER_ABSTIME, now[0] - second)
    time.sleep(0.1)
    yield
    for fd in far:
        interval, left = setting(fd)
        assert interval == 7 * second
        assert 900 * second < left <= 1000 * second
    for fd in absolute:
        interval, left = setting(fd)
        assert interval == second
        assert 900 * second < left <= 1000 * second, left
    assert 900 * second < setting(cancel)[1] <= 1000 * second
    assert setting(off) == (0, 0)
    assert ticks(off) == 0
    assert (ticks(fired), ticks(fired)) == (1, 0)
    assert ticks(passed) == 1
    assert ticks(periodic) >= 5
    assert select.select([periodic], [], [], 5)[0]
    assert ticks(slow) == 1
    interval, left = setting(slow)
    assert interval == 1000 * second
    assert 900 * second < left <= 1000 * second, left


@state
def alarm_timers(place):
    """Clocks that wake the machine."""
    try:
        fds = [timerfd(clock, 0, 1000 * 10**9) for clock in (8, 9)]
    except OSError as error:
        raise LackingError("alarm clocks") from error
    yield
    for fd in fds:
        assert setting(fd)[1] > 900 * 10**9


@state
def signalfds(place):
    """Masks, also changed; signals pending; shared with a child."""
    every = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 3, 64}
    signal.pthread_sigmask(signal.SIG_BLOCK, every)

    def mask(numbers):
        return struct.pack("<Q", sum(1 << (n - 1) for n in numbers))

    one = call("signalfd", -1, mask([signal.SIGUSR1]), os.O_NONBLOCK)
    changed = call("signalfd", -1, mask([signal.SIGUSR1]), os.O_CLOEXEC)
    call("signalfd", changed, mask([signal.SIGRTMIN + 3, 64]), 0)
    none = call("signalfd", -1, mask([]), os.O_NONBLOCK)
    os.kill(os.getpid(), signal.SIGUSR1)
    pid = child(lambda: 0 if os.read(changed, 128)[0] == 64 else 1)
    time.sleep(0.1)
    yield
    assert os.read(one, 128)[0] == signal.SIGUSR1
    os.kill(pid, 64)
    assert ended(pid) == 0
    try:
        raise AssertionError(os.read(none, 128))
    except BlockingIOError:
        pass


def watch(fd, path, mask):
    return call("inotify_add_watch", fd, os.fsencode(path), mask)


def events(fd):
    """(wd, mask, name) of what is queued."""
    time.sleep(0.05)
    found = []
    try:
        raw = os.read(fd, 1 << 16)
    except BlockingIOError:
        return found
    at = 0
    while at < len(raw):
        wd, mask, _, size = struct.unpack_from("<iIII", raw, at)
        found.append((wd, mask, raw[at + 16 : at + 16 + size].rstrip(b"\0")))
        at += 16 + size
    return found


@state
def inotify(place):
    """Masks, flags, numbers out of order, several descriptors on one file."""
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "file").write_bytes(b"x")
    one, two = call("inotify_init1", os.O_NONBLOCK), call("inotify_init1", os.O_NONBLOCK)
    assert watch(one, place / "a", IN_CREATE) == 1
    assert watch(one, place / "b", IN_CREATE) == 2
    assert watch(one, place / "file", IN_MODIFY | IN_EXCL_UNLINK) == 3
    call("inotify_rm_watch", one, 1)
    assert watch(one, place / "a", IN_DELETE | IN_ONLYDIR) == 4
    assert watch(one, place / "a", IN_CREATE | IN_MASK_ADD) == 4
    assert watch(two, place / "a", IN_ONESHOT | IN_CREATE) == 1
    assert watch(two, place / "file", IN_ALL) == 2
    events(one)
    events(two)
    yield
    events(one)
    events(two)
    (place / "a" / "new").mkdir()
    assert events(one) == [(4, IN_CREATE | IN_ISDIR, b"new")]
    assert events(two) == [(1, IN_CREATE | IN_ISDIR, b"new"), (1, IN_IGNORED, b"")]
    (place / "a" / "new").rmdir()
    assert events(one) == [(4, IN_DELETE | IN_ISDIR, b"new")]
    (place / "b" / "x").mkdir()
    (place / "file").write_bytes(b"yy")
    assert (2, IN_CREATE | IN_ISDIR, b"x") in (found := events(one)), found
    assert (3, IN_MODIFY, b"") in found
    assert any(mask & IN_OPEN for _, mask, _ in events(two))
    assert watch(one, place, IN_CREATE) == 5


@state
def inotify_gone(place):
    """What is watched was deleted while it is open, or was renamed."""
    (place / "gone").write_bytes(b"x")
    (place / "moved").mkdir()
    held = os.open(place / "gone", os.O_RDWR)
    fd = call("inotify_init1", os.O_NONBLOCK)
    assert watch(fd, place / "gone", IN_MODIFY | IN_DELETE_SELF) == 1
    assert watch(fd, place / "moved", IN_CREATE) == 2
    (place / "gone").unlink()
    (place / "moved").rename(place / "other")
    events(fd)
    yield
    events(fd)
    os.write(held, b"more")
    assert events(fd) == [(1, IN_MODIFY, b"")]
    (place / "other" / "x").mkdir()
    assert events(fd) == [(2, IN_CREATE | IN_ISDIR, b"x")]
    os.close(held)
    assert events(fd) == [(1, IN_DELETE_SELF, b""), (1, IN_IGNORED, b"")]


@state
def inotify_queued(place):
    """Events that nobody has read are lost, and a warning says so; what comes later is told."""
    fd = call("inotify_init1", os.O_NONBLOCK)
    watch(fd, place, IN_CREATE)
    (place / "before").mkdir()
    yield
    events(fd)
    (place / "after").mkdir()
    assert (1, IN_CREATE | IN_ISDIR, b"after") in events(fd)


FAN_CLOEXEC, FAN_NONBLOCK, FAN_CLASS_CONTENT, FAN_UNLIMITED_QUEUE = 1, 2, 4, 0x10
FAN_MARK_ADD, FAN_MARK_IGNORED_MASK, FAN_MARK_SURV = 1, 0x20, 0x40
FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM, FAN_MARK_ONLYDIR = 0x10, 0x100, 8
FAN_MODIFY, FAN_CLOSE_WRITE, FAN_OPEN = 2, 8, 0x20
FAN_EVENT_ON_CHILD, FAN_ONDIR = 0x08000000, 1 << 30


def mark(fd, flags, mask, path):
    result = LIBC.fanotify_mark(fd, flags, ctypes.c_uint64(mask), -100, os.fsencode(path))
    if result < 0:
        raise OSError(ctypes.get_errno(), "fanotify_mark")


def told(fd):
    """(mask, inode) of queued events."""
    time.sleep(0.05)
    found = []
    try:
        raw = os.read(fd, 4096)
    except BlockingIOError:
        return found
    at = 0
    while at < len(raw):
        size, _, _, _, mask, got, _ = struct.unpack_from("<IBBHQii", raw, at)
        found.append((mask, os.fstat(got).st_ino if got >= 0 else None))
        if got >= 0:
            os.close(got)
        at += size
    return found


def is_told(fd, event):
    """Whether an event comes, among those of others."""
    while found := told(fd):
        if event in found:
            return True
    return False


def group(flags, event_flags):
    fd = LIBC.fanotify_init(flags, event_flags)
    if fd < 0:
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            raise LackingError("fanotify")
        raise OSError(ctypes.get_errno(), "fanotify_init")
    return fd


@state
def fanotify(place):
    """Groups with marks of files and directories, and masks that are ignored."""
    (place / "a").mkdir()
    (place / "a" / "file").write_bytes(b"x")
    (place / "other").write_bytes(b"x")
    fd = group(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDWR)
    mark(fd, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, place / "a")
    mark(fd, FAN_MARK_ADD, FAN_MODIFY, place / "other")
    mark(fd, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_SURV, FAN_OPEN, place / "other")
    content = group(FAN_NONBLOCK | FAN_CLASS_CONTENT, os.O_RDONLY)
    mark(content, FAN_MARK_ADD | FAN_MARK_ONLYDIR, FAN_OPEN | FAN_ONDIR, place / "a")
    yield
    told(fd)
    told(content)
    inode = (place / "a" / "file").stat().st_ino
    (place / "a" / "file").read_bytes()
    assert told(fd) == [(FAN_OPEN, inode)]
    (place / "other").write_bytes(b"y")
    assert [mask & FAN_MODIFY for mask, _ in told(fd)] == [FAN_MODIFY]
    os.listdir(place / "a")
    assert told(content) == [(FAN_OPEN, (place / "a").stat().st_ino)]


@state
def fanotify_mount(place):
    """Marks of a whole mount and a whole file system."""
    shm = f"/dev/shm/torpor-{os.getpid()}"
    fd = group(FAN_NONBLOCK, os.O_RDONLY)
    mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, "/dev/shm")
    whole = group(FAN_NONBLOCK, os.O_RDONLY)
    mark(whole, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE, "/dev/shm")
    yield
    told(fd)
    told(whole)
    with open(shm, "wb") as file:
        file.write(b"x")
        inode = os.fstat(file.fileno()).st_ino
    try:
        assert is_told(fd, (FAN_CLOSE_WRITE, inode))
        assert is_told(whole, (FAN_CLOSE_WRITE, inode))
    finally:
        os.unlink(shm)


if __name__ == "__main__":
    chosen()
