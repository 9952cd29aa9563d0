# SPDX-License-Identifier: Apache-2.0
"""Devices by other names, without a name, O_PATH; the log of the kernel; devices with a state."""

import contextlib
import errno
import fcntl
import os
import struct
import sys

from files_base import workload

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def no_room(fd):
    try:
        os.write(fd, b"x")
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def plain(place):
    node = place / "zero"
    os.mknod(node, 0o20666, os.makedev(1, 5))
    zero = os.open(node, os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
    random = os.open("/dev/urandom", os.O_RDONLY | os.O_NONBLOCK)
    named = os.open("/dev/null", os.O_PATH)
    yield
    assert os.read(zero, 3) == bytes(3)
    assert os.readlink(f"/proc/self/fd/{zero}") == str(node)
    assert fcntl.fcntl(full, fcntl.F_GETFL) & os.O_APPEND
    assert no_room(full)
    assert len(os.read(random, 8)) == 8
    assert os.fstat(named).st_rdev == os.makedev(1, 3)


def log(place):
    try:
        writer = os.open("/dev/kmsg", os.O_WRONLY)
        reader = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        (place / "ready").write_text("lacking: /dev/kmsg")
        os._exit(0)
    os.lseek(reader, 0, os.SEEK_END)
    yield
    os.write(writer, b"torpor tries its log")
    # what is written too often is dropped, and what others write may push it out
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.read(reader, 8192)


def unused(place):
    names = ("/dev/net/tun", "/dev/fuse", "/dev/autofs", "/dev/userfaultfd")
    held = [(name, os.open(name, os.O_RDWR)) for name in names if os.access(name, os.R_OK)]
    if not held:
        (place / "ready").write_text("lacking: /dev/net/tun")
        os._exit(0)
    yield
    for name, fd in held:
        assert os.readlink(f"/proc/self/fd/{fd}") == name
        if name == "/dev/net/tun":
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"torpor%d", IFF_TUN | IFF_NO_PI))


def block(place):
    try:
        os.open("/dev/loop0", os.O_RDONLY)
    except OSError:
        (place / "ready").write_text("lacking: /dev/loop0")
        os._exit(0)
    yield


if __name__ == "__main__":
    workload(globals()[sys.argv[2]])
