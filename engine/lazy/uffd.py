# SPDX-License-Identifier: Apache-2.0
"""Faults on missing pages of another task, and the pages that answer them: userfaultfd(2).

Facts (fs/userfaultfd.c, mm/userfaultfd.c; v6.18, tried):
- A userfaultfd is that of the address space which made it, whoever holds it; only one that was made
  without UFFD_USER_MODE_ONLY serves faults inside of system calls, and that takes CAP_SYS_PTRACE.
- A missing page is waited for until it is there (UFFDIO_COPY, UFFDIO_ZEROPAGE), or until the last
  copy of the descriptor is closed: then the fault finds a zero page.
- fork, mremap, munmap, madvise(DONTNEED) wait until their event has been read; until then copying
  gives EAGAIN. A child gets a userfaultfd of its own with the event (needs CAP_SYS_PTRACE). The
  event of DONTNEED comes before pages are dropped, the others come when all is done.
- A page that is there gives EEXIST, an area that is gone ENOENT, an address space that is gone
  ESRCH. Nothing tells that an address space is gone but this.
- Registered areas say `um` in smaps, and khugepaged leaves them alone.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from torpor.engine.errors import KernelError, Unavailable

API_VERSION, MISSING_MODE = 0xAA, 1
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE, UFFDIO_WAKE = (
    0xC018AA3F, 0xC020AA00, 0xC020AA04, 0x8010AA02)  # fmt: skip
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
PAGE = 4096
MESSAGE = struct.Struct("<B7x3Q")
MESSAGES_AT_ONCE = 64


class Event(IntEnum):
    """What a message tells."""

    PAGEFAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


FEATURES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
"""The events fork, remap, remove, unmap."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event.

    ``values``: flags and address of a fault; the descriptor for a child; from, to and length of a
    move; start and end of what is gone.
    """

    event: int
    values: tuple[int, int, int]


def begin(fd: int) -> None:
    """The handshake."""
    try:
        fcntl.ioctl(fd, UFFDIO_API, struct.pack("<QQQ", API_VERSION, FEATURES, 0))
    except OSError as error:
        raise Unavailable(
            "this kernel does not tell what becomes of memory that is filled lazily",
            cause=str(error),
            remedy="restore without --lazy",
        ) from error


def register(fd: int, start: int, end: int) -> None:
    """From now on missing pages of a range are waited for."""
    try:
        request = struct.pack("<QQQQ", start, end - start, MISSING_MODE, 0)
        fcntl.ioctl(fd, UFFDIO_REGISTER, request)
    except OSError as error:
        raise KernelError("UFFDIO_REGISTER failed", errno=error.errno or 0,
                          subject=f"{start:x}-{end:x}") from error  # fmt: skip


def zero(fd: int, address: int) -> None:
    """A zero page for a fault; whoever waits for a page that is there already is woken."""
    try:
        fcntl.ioctl(fd, UFFDIO_ZEROPAGE, struct.pack("<QQQq", address, PAGE, 0, 0))
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EAGAIN, errno.ESRCH):
            raise KernelError("UFFDIO_ZEROPAGE failed", errno=error.errno or 0,
                              subject=f"{address:x}") from error  # fmt: skip
        wake(fd, address)


def wake(fd: int, address: int) -> None:
    """Have whoever waits for a page look again."""
    with suppress(OSError):
        fcntl.ioctl(fd, UFFDIO_WAKE, struct.pack("<QQ", address, PAGE))


def messages(fd: int) -> Iterator[Message]:
    """What has come."""
    try:
        raw = os.read(fd, MESSAGE.size * MESSAGES_AT_ONCE)
    except BlockingIOError:
        return
    for event, first, second, third in MESSAGE.iter_unpack(raw):
        yield Message(event, (first, second, third))
