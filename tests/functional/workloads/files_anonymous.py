# SPDX-License-Identifier: Apache-2.0
"""Counters, timers, signal descriptors, watches and memfds."""

import ctypes
import fcntl
import mmap
import os
import select
import signal
import struct
import time

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)


def timer(clock, value_ns, interval_ns):
    fd = LIBC.timerfd_create(clock, os.O_NONBLOCK)
    spec = struct.pack("<4q", *divmod(interval_ns, 10**9), *divmod(value_ns, 10**9))
    assert LIBC.timerfd_settime(fd, 0, spec, None) == 0
    return fd


def body(place):
    semaphore = os.eventfd(5, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
    soon, never = timer(1, 10**8, 10**8), timer(0, 10**15, 0)
    fired = timer(1, 1, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signals = LIBC.signalfd(-1, struct.pack("<Q", 1 << signal.SIGUSR2 - 1), os.O_NONBLOCK)
    os.kill(os.getpid(), signal.SIGUSR2)
    watch = LIBC.inotify_init1(os.O_NONBLOCK)
    for i in range(1, 4):
        assert LIBC.inotify_add_watch(watch, os.fsencode(place), 0x100) == i
        LIBC.inotify_rm_watch(watch, i)
    assert LIBC.inotify_add_watch(watch, os.fsencode(place), 0x100) == 4
    os.read(watch, 4096)
    plain = os.memfd_create("plain")
    os.write(plain, b"content")
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(sealed, b"sealed for good")
    fcntl.fcntl(sealed, 1033, 0xF)
    shared = os.memfd_create("shared")
    os.ftruncate(shared, 1 << 16)
    memory = mmap.mmap(shared, 1 << 16)
    memory[100:106] = b"mapped"
    yield
    assert [os.eventfd_read(semaphore) for _ in range(5)] == [1] * 5
    assert struct.unpack("<Q", os.read(fired, 8)) == (1,)
    assert select.select([soon], [], [], 5)[0]
    try:
        os.read(never, 8)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("a timer went off too early")
    assert os.read(signals, 128)[0] == signal.SIGUSR2
    os.read(watch, 4096) if select.select([watch], [], [], 0)[0] else None
    (place / "new").touch()
    time.sleep(0.05)
    wd, _, _, size = struct.unpack_from("<iIII", event := os.read(watch, 4096))
    assert (wd, event[16 : 16 + size].rstrip(b"\0")) == (4, b"new")
    assert os.pread(plain, 99, 0) == b"content"
    assert os.lseek(plain, 0, os.SEEK_CUR) == 7
    assert os.pread(sealed, 99, 0) == b"sealed for good"
    assert fcntl.fcntl(sealed, 1034) == 0xF
    assert memory[100:106] == b"mapped"
    memory[0:2] = b"ab"
    assert os.pread(shared, 2, 0) == b"ab"
    assert os.pread(shared, 6, 100) == b"mapped"


if __name__ == "__main__":
    workload(body)
