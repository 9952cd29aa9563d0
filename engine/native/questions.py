# SPDX-License-Identifier: Apache-2.0
"""Questions about another task or its descriptors that need no tracer."""

import errno
from collections.abc import Sequence

from torpor.engine.native.descriptors import MANY
from torpor.engine.native.seam import check, error_for, ffi, lib, new_uncleared

UNKNOWN_OPTION = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTCONN)
TEXT_ROOM, TYPICAL_TEXT = 4 << 20, 2 << 10

KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM = range(7)
KCMP_EPOLL_TFD = 7
KCMP_LESS = 1
PIDFD_THREAD = 0o200


def read_texts(paths: Sequence[str]) -> list[bytes | int]:
    """Files of /proc, each whole or its -errno, in one go."""
    names = [ffi.from_buffer(path.encode() + b"\0") for path in paths]
    pointers = ffi.new("char *[]", names)
    sizes = ffi.new("int64_t[]", max(len(paths), 1))
    places = ffi.new("uint64_t[]", max(len(paths), 1))
    threads = 2 if len(paths) >= MANY else 1
    room_size = TEXT_ROOM + len(paths) * TYPICAL_TEXT
    while True:
        room = new_uncleared("char[]", room_size)
        result = lib.seam_read_texts(pointers, len(paths), room, room_size, threads, sizes, places)
        if result >= 0:
            raw = memoryview(ffi.buffer(room))
            return [bytes(raw[at : at + size]) if size >= 0 else size
                    for at, size in zip(places, sizes, strict=True)][: len(paths)]  # fmt: skip
        if result != -errno.ENOBUFS:
            raise error_for(result, "reading files of /proc", paths[0])
        room_size *= 2


def pidfd_open(pid: int) -> int:
    """A pidfd of a process, close-on-exec; of its thread, if ``pid`` is not the main one's.

    That one leads to what the process has when its main thread has ended. Linux 6.9.
    """
    result = lib.seam_pidfd_open(pid, 0)
    if result in (-errno.ENOENT, -errno.EINVAL):
        result = lib.seam_pidfd_open(pid, PIDFD_THREAD)
    return check(result, "pidfd_open", pid)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another task's descriptor, close-on-exec."""
    result = lib.seam_pidfd_getfd(pidfd, fd)
    if result < 0:
        raise error_for(result, "pidfd_getfd", f"fd {fd}")
    return result


def kcmp(pid1: int, pid2: int, kind: int, index1: int, index2: int) -> int:
    """Order of two kernel objects: 0 equal, 1 less, 2 greater, 3 not comparable."""
    result = lib.seam_kcmp(pid1, pid2, kind, index1, index2)
    if result < 0:
        raise error_for(result, "kcmp", f"tasks {pid1} and {pid2}")
    return result


def int_options(fd: int, wanted: Sequence[tuple[int, int]], subject: str) -> list[int | None]:
    """Values of a socket's int options, given as (level, option); None for an unknown one."""
    names = ffi.new("int[]", [word for one in wanted for word in one])
    values = ffi.new("int[]", max(len(wanted), 1))
    sizes = ffi.new("int[]", max(len(wanted), 1))
    lib.seam_int_options(fd, names, len(wanted), values, sizes)
    found: list[int | None] = []
    for (level, option), value, size in zip(wanted, values, sizes, strict=False):
        if size < 0 and -size not in UNKNOWN_OPTION:
            raise error_for(size, f"getsockopt({level}, {option})", subject)
        found.append(None if size < 0 else value)
    return found
