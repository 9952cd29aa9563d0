# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of the descriptors of a task, all in one go."""

import errno
import struct
from collections.abc import Sequence
from typing import NamedTuple

from torpor.engine.native.seam import error_for, ffi, lib, new_uncleared

ROW = struct.Struct("<4i10Q")
ROOM, TYPICAL = 64 << 10, 512
MANY = 128
"""From so many on a second thread is worth its start."""


class FdLook(NamedTuple):
    """Link and fdinfo, or -errno of reading them; stat(2), or zeros and ``error``."""

    link: bytes | int
    info: bytes | int
    error: int
    st_mode: int
    st_dev: int
    st_ino: int
    st_rdev: int
    st_size: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_blksize: int


def look_fds(pid: int, fds: Sequence[int]) -> list[FdLook]:
    """Of each descriptor. Raises Vanished or Denied when the task's may not be looked at."""
    rows = ffi.new("struct seam_fd[]", max(len(fds), 1))
    for row, fd in zip(rows, fds, strict=False):
        row.fd = fd
    threads = 2 if len(fds) >= MANY else 1
    size = ROOM + TYPICAL * len(fds)
    while True:
        room = new_uncleared("char[]", size)
        result = lib.seam_look_fds(pid, rows, len(fds), room, size, threads)
        if result >= 0:
            return _looks(memoryview(ffi.buffer(rows))[: ROW.size * len(fds)], room)
        if result != -errno.ENOBUFS:
            gone = result == -errno.ENOENT
            raise error_for(-errno.ESRCH if gone else result, "open of fdinfo", f"task {pid}")
        size *= 2


def _looks(rows: memoryview, room: object) -> list[FdLook]:
    texts = memoryview(ffi.buffer(room))
    found = []
    for _, link_size, info_size, error, at, *status in ROW.iter_unpack(rows):
        middle = at + max(link_size, 0)
        link = bytes(texts[at:middle]) if link_size >= 0 else link_size
        info = bytes(texts[middle : middle + info_size]) if info_size >= 0 else info_size
        found.append(FdLook(link, info, error, *status))
    return found
