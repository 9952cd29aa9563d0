# SPDX-License-Identifier: Apache-2.0
"""A process that holds one of nearly every kind, for CRIU to make images of.

    python sample.py FOLDER [tcp] [lock] [pty] [ipc] [seccomp] [comm]

Writes FOLDER/ready when all is set up, then sleeps. FOLDER is free for its files.
"""

import array
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
folder = Path(sys.argv[1])
wanted = set(sys.argv[2:])
keep: list[object] = []


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = [
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    ]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


def channels() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"in a pipe")
    os.mkfifo(folder / "fifo")
    os.write(os.open(folder / "fifo", os.O_RDWR), b"in a fifo")
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair[0].send(b"one")
    pair[0].send(b"two three")
    streams = socket.socketpair()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]))]
    streams[0].sendmsg([b"with a descriptor"], rights)
    keep.extend((*pair, *streams))


def events() -> None:
    event = os.eventfd(7)
    poll = select.epoll()
    poll.register(event, select.EPOLLIN)
    keep.append(poll)
    libc.inotify_add_watch(libc.inotify_init1(0), bytes(folder), 2)
    libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    libc.signalfd(-1, (ctypes.c_ulong * 16)(1 << 9), 0)
    signal.setitimer(signal.ITIMER_REAL, 1000, 1000)
    libc.timer_create(1, None, ctypes.byref(ctypes.c_int()))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)


def files() -> None:
    os.write(os.memfd_create("memory file"), b"x" * 5000)
    for name, gap in (("ghost", 0), ("sparse", 3 << 20)):
        file = (folder / name).open("w+b")
        file.write(b"start" * 1000)
        file.seek(gap, os.SEEK_CUR)
        file.write(b"end")
        file.flush()
        (folder / name).unlink()
        keep.append(file)
    shared = mmap.mmap(-1, 4 * 4096)
    shared[0:3] = b"abc"
    shared[12288:12291] = b"def"
    keep.append(shared)
    locked = (folder / "regular").open("w")
    keep.append(locked)
    if "lock" in wanted:
        fcntl.flock(locked, fcntl.LOCK_EX)


def sockets() -> None:
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", 0))
    listener = socket.create_server(("127.0.0.1", 0))
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    keep.extend((datagram, listener, netlink))
    if "tcp" in wanted:
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
        client.send(b"to the server")
        server.send(b"to the client")
        keep.extend((client, server))


def system_v() -> None:
    queue = libc.msgget(1234, 0o1600)
    for text in (b"a longer message", b"short"):
        libc.msgsnd(queue, (1).to_bytes(8, "little") + text, len(text), 0)
    libc.semget(1234, 3, 0o1600)
    address = libc.shmat(libc.shmget(1234, 8192, 0o1600), None, 0)
    ctypes.memmove(address, b"system five", 11)


def terminal() -> None:
    keep.append(os.openpty())
    os.write(keep[-1][0], b"typed")


def filtered() -> None:
    allow = (Instruction * 1)(Instruction(6, 0, 0, 0x7FFF0000))
    libc.prctl(38, 1, 0, 0, 0)
    libc.prctl(22, 2, ctypes.byref(Program(1, allow)))


if __name__ == "__main__":
    os.closerange(3, 256)
    for number in (0, 1, 2):  # opened anew, so that they are of this mount namespace
        os.dup2(os.open("/dev/null", os.O_RDWR), number)
    os.closerange(3, 256)
    channels()
    events()
    files()
    sockets()
    for word, act in (("ipc", system_v), ("pty", terminal), ("seccomp", filtered)):
        if word in wanted:
            act()
    if "comm" in wanted:
        libc.prctl(15, b"caf\xc3\xa9\xff", 0, 0, 0)
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    (folder / "ready").touch()
    time.sleep(1000)
