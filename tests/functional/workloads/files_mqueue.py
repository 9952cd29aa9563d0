# SPDX-License-Identifier: Apache-2.0
"""POSIX message queues: by name and deleted, content and priorities, notification."""

import ctypes
import os
import signal
import struct
import time

from files_base import LIBC, LackingError, call, child, chosen, ended, state

ATTRIBUTES = struct.Struct("<8q")
NAMES = []


def opened(name, flags, mode=0o600, maximum=4, size=64):
    """A queue's descriptor."""
    attributes = ATTRIBUTES.pack(0, maximum, size, 0, 0, 0, 0, 0)
    fd = LIBC.mq_open(name.encode(), flags | os.O_CREAT, mode, attributes)
    if fd < 0:
        raise LackingError(f"message queues ({os.strerror(ctypes.get_errno())})")
    NAMES.append(name)
    return fd


def attributes(fd):
    """flags, maximum, size, current."""
    room = ctypes.create_string_buffer(ATTRIBUTES.size)
    call("mq_getattr", fd, room)
    return ATTRIBUTES.unpack(room.raw)[:4]


def send(fd, text, priority=0):
    call("mq_send", fd, text, ctypes.c_size_t(len(text)), priority)


def receive(fd):
    room, priority = ctypes.create_string_buffer(64), ctypes.c_uint()
    size = LIBC.mq_receive(fd, room, ctypes.c_size_t(64), ctypes.byref(priority))
    assert size >= 0, os.strerror(ctypes.get_errno())
    return room.raw[:size], priority.value


def unlink():
    for name in NAMES:
        LIBC.mq_unlink(name.encode())


@state
def named(place):
    """Attributes, content with priorities; opened twice and by a child."""
    name = f"/torpor-{os.getpid()}"
    fd = opened(name, os.O_RDWR | os.O_NONBLOCK, 0o640)
    write = opened(name, os.O_WRONLY)
    for text, priority in ((b"low", 1), (b"high", 9), (b"low too", 1)):
        send(fd, text, priority)
    empty = opened(f"{name}-empty", os.O_RDWR)
    pid = child(lambda: 0 if receive(empty) == (b"answer", 3) else 1)
    time.sleep(0.1)
    yield
    try:
        assert attributes(fd) == (os.O_NONBLOCK, 4, 64, 3)
        assert attributes(write)[0] == 0
        assert os.fstat(fd).st_mode & 0o777 == 0o640
        send(write, b"last")
        assert [receive(fd) for _ in range(4)] == [
            (b"high", 9), (b"low", 1), (b"low too", 1), (b"last", 0),
        ]  # fmt: skip
        send(empty, b"answer", 3)
        assert ended(pid) == 0
    finally:
        unlink()


@state
def notified(place):
    """The task waits for a signal when a message comes."""
    name = f"/torpor-{os.getpid()}"
    got = []
    signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    fd = opened(name, os.O_RDWR)
    call("mq_notify", fd, struct.pack("<qii48x", 0, signal.SIGUSR1, 0))
    yield
    try:
        send(fd, b"x")
        time.sleep(0.1)
        assert got == [signal.SIGUSR1]
    finally:
        unlink()


@state
def deleted(place):
    """Without a name, and empty; open by two descriptions."""
    name = f"/torpor-{os.getpid()}"
    fd, read = opened(name, os.O_RDWR, 0o600, 7, 32), opened(name, os.O_RDONLY)
    unlink()
    yield
    assert attributes(fd) == (0, 7, 32, 0)
    send(fd, b"through")
    room = ctypes.create_string_buffer(64)
    assert LIBC.mq_receive(read, room, ctypes.c_size_t(64), None) == 7
    assert os.fstat(fd).st_nlink == 0


@state
def deleted_full(place):
    """Without a name, with a message."""
    name = f"/torpor-{os.getpid()}"
    fd = opened(name, os.O_RDWR)
    send(fd, b"queued")
    unlink()
    yield
    assert receive(fd) == (b"queued", 0)


if __name__ == "__main__":
    chosen()
