# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of the descriptors of a task, all in one go."""

import errno
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from torpor.engine.native.seam import error_for, ffi, lib, new_uncleared

ROW, SAME = struct.Struct("<5i4x10Q"), struct.Struct("<16xi84x")
"""struct seam_fd, and what is the same of it."""
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


class Looks:
    """What /proc told of descriptors, by ascending numbers."""

    __slots__ = ("_room", "_rows", "numbers")

    def __init__(self, numbers: Sequence[int], rows: Any, room: Any) -> None:  # noqa: ANN401
        self.numbers, self._rows, self._room = numbers, rows, room

    def all(self) -> list[FdLook]:
        """Of each."""
        return [self._look(row) for row in ROW.iter_unpack(self._raw())]

    def at(self, index: int) -> FdLook:
        """Of one."""
        return self._look(ROW.unpack_from(self._raw(), ROW.size * index))

    def same(self) -> list[int]:
        """Of each, whether it is as it was before."""
        return [same for (same,) in SAME.iter_unpack(self._raw())]

    def before(self) -> Any:  # noqa: ANN401
        """For C."""
        return ffi.new("struct seam_looked *", (self._rows, len(self.numbers), self._room))

    def _raw(self) -> memoryview:
        return memoryview(ffi.buffer(self._rows))[: ROW.size * len(self.numbers)]

    def _look(self, row: tuple[int, ...]) -> FdLook:
        _, link_size, info_size, error, _, at, *status = row
        texts = memoryview(ffi.buffer(self._room))
        middle = at + max(link_size, 0)
        link = bytes(texts[at:middle]) if link_size >= 0 else link_size
        info = bytes(texts[middle : middle + info_size]) if info_size >= 0 else info_size
        return FdLook(link, info, error, *status)


def look_fds(pid: int, fds: Sequence[int], before: Looks | None = None) -> Looks:
    """Of each descriptor. Raises Vanished or Denied when the task's may not be looked at."""
    rows = ffi.new("struct seam_fd[]", max(len(fds), 1))
    for row, fd in zip(rows, fds, strict=False):
        row.fd = fd
    threads = 2 if len(fds) >= MANY else 1
    size, known = ROOM + TYPICAL * len(fds), before.before() if before else ffi.NULL
    while True:
        room = new_uncleared("char[]", size)
        result = lib.seam_look_fds(pid, rows, len(fds), room, size, threads, known)
        if result >= 0:
            return Looks(fds, rows, room)
        if result != -errno.ENOBUFS:
            gone = result == -errno.ENOENT
            raise error_for(-errno.ESRCH if gone else result, "open of fdinfo", f"task {pid}")
        size *= 2
