# SPDX-License-Identifier: Apache-2.0
"""Pidfds of living, ended and reaped tasks, and of threads."""

import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import threading

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)
NONBLOCK, THREAD = 0o4000, 0o200
GET_INFO, EXIT = 0xC040FF0B, 8


def pidfd(pid, flags=0):
    fd = LIBC.syscall(434, pid, flags)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def child(status=None):
    """One that waits, or ends with a status or by a signal."""
    pid = os.fork()
    if pid:
        return pid
    if status is None:
        signal.pause()
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def ended(fd):
    return bool(select.select([fd], [], [], 0)[0])


def waited(fd):
    select.select([fd], [], [], 5)


def exit_status(fd):
    told = fcntl.ioctl(fd, GET_INFO, struct.pack("<Q", EXIT).ljust(64, b"\0"))
    assert struct.unpack_from("<Q", told)[0] & EXIT
    return struct.unpack_from("<i", told, 60)[0]


def of_pid(fd):
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


def living(place):
    one = child()
    first, second = pidfd(one), pidfd(one, NONBLOCK)
    own = pidfd(os.getpid(), THREAD)
    poll = select.epoll()
    poll.register(first, select.EPOLLIN)
    yield
    assert (of_pid(first), of_pid(own)) == (one, os.getpid())
    assert fcntl.fcntl(second, fcntl.F_GETFL) & NONBLOCK
    assert fcntl.fcntl(own, fcntl.F_GETFL) & THREAD
    assert not ended(first)
    assert not ended(own)
    signal.pidfd_send_signal(first, signal.SIGTERM)
    assert poll.poll(5)
    assert ended(second)
    assert os.waitid(3, second, os.WEXITED).si_status == signal.SIGTERM


def zombie(place):
    one = child(3)
    fd = pidfd(one)
    waited(fd)
    yield
    assert of_pid(fd) == one
    assert ended(fd)
    assert os.waitid(3, fd, os.WEXITED).si_status == 3


def reaped(place):
    pids = [child(5), child(-signal.SIGTERM)]
    fds = [pidfd(pids[0]), pidfd(pids[0], NONBLOCK), pidfd(pids[1])]
    for pid in pids:
        os.waitpid(pid, 0)
    yield
    assert all(ended(fd) for fd in fds)
    assert [of_pid(fd) for fd in fds] == [-1, -1, -1]
    inodes = [os.fstat(fd).st_ino for fd in fds]
    assert inodes[0] == inodes[1] != inodes[2]
    assert fcntl.fcntl(fds[1], fcntl.F_GETFL) & NONBLOCK
    if sys.argv[-1] != "criu":
        assert [exit_status(fd) for fd in fds] == [5 << 8, 5 << 8, signal.SIGTERM]
    try:
        signal.pidfd_send_signal(fds[0], 0)
    except ProcessLookupError:
        pass
    else:
        raise AssertionError("it lives")


def threads(place):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    fd = pidfd(thread.native_id, THREAD)
    yield
    assert of_pid(fd) == thread.native_id
    assert not ended(fd)
    stop.set()
    thread.join()
    waited(fd)
    assert ended(fd)


def outside(place):
    pidfd(os.getppid())
    yield


if __name__ == "__main__":
    workload(globals()[sys.argv[2]])
