# SPDX-License-Identifier: Apache-2.0
"""Pages of an image, wherever their bytes are: written, read and compared in C.

*Extents* say where, in the order of the image: flat triples (origin, address, bytes). They are
made with `ours`, `of_task` and `of_file`.
"""

import errno
import os
from array import array
from collections.abc import Callable

from torpor.engine.errors import Error, Vanished
from torpor.engine.native.seam import error_for, ffi, lib

IN_MEMORY, IN_TASK, IN_FILE = range(3)
DIGEST_PIECE = 256 << 10
STEP = 64 << 20
"""Bytes that are written between two words of progress."""


def of_task(pid: int) -> int:
    """Origin of memory of a stopped task; pages that it shares copy-on-write are copied there."""
    return pid << 32 | IN_TASK


def of_file(fd: int) -> int:
    """Origin of bytes of a file; an address is an offset."""
    return fd << 32 | IN_FILE


def of_bytes(data: bytes, start: int, size: int) -> "array[int]":
    """Extents of a part of bytes, which have to live as long as they are used."""
    address = int(ffi.cast("uint64_t", ffi.from_buffer(data)))
    return array("Q", [IN_MEMORY, address + start, size])


def write_pages(
    extents: "array[int]",
    fd: int,
    progress: "PagesProgress",
    threads: int = 2,
    *,
    lenient: bool = False,
) -> str:
    """Write all to a new file and return its digest, see `digest_file`.

    ``lenient`` has zeros for pages that a task has no more.

    Raises KernelError when the file cannot be written, Vanished when bytes cannot be read.
    """
    failed = ffi.new("int *")
    rows = ffi.from_buffer("struct seam_extent[]", extents)
    count, total = len(extents) // 3, sum(extents[2::3])
    pieces = -(-total // DIGEST_PIECE)
    digests = ffi.new("uint64_t[]", pieces + 1)
    for start in range(0, total, STEP):
        size = min(STEP, total - start)
        result = lib.seam_write_pages(
            rows, count, fd, threads, lenient, start, size, digests, failed
        )
        if result < 0:
            raise error_for(result, "pwrite", f"{count} extents") if failed[0] else _gone(result)
        progress.add(size)
    return f"{lib.seam_xxh64(digests, 8 * pieces):016x}"


def read_pages(extents: "array[int]", start: int, size: int) -> bytes:
    """Some of the bytes."""
    room = bytearray(size)
    rows = ffi.from_buffer("struct seam_extent[]", extents)
    where = ffi.from_buffer(room, require_writable=True)
    result = lib.seam_read_pages(rows, len(extents) // 3, start, size, where)
    if result < 0:
        raise _gone(result)
    return bytes(room)


def same_pages(extents: "array[int]", fd: int, runs: "array[int]", same: bytearray) -> None:
    """Set to 1 what of ``same`` stands for a page that a file has.

    ``runs`` are (offset in the pages, length, offset in the file) triples.
    """
    rows = ffi.from_buffer("struct seam_extent[]", extents)
    words, marks = ffi.from_buffer("uint64_t[]", runs), ffi.from_buffer(same)
    result = lib.seam_same_pages(rows, len(extents) // 3, fd, words, len(runs) // 3, marks)
    if result < 0:
        raise error_for(result, "pread", f"{len(runs) // 3} runs of pages")


def _gone(result: int) -> Error:
    if -result == errno.ENOMEM:
        return error_for(result, "reading pages", "room for a piece")
    return Vanished("memory could not be read to its end", cause=os.strerror(-result))


class PagesProgress:
    """Bytes that `write_pages` has written, told every so often."""

    def __init__(self, told: Callable[[int], None] | None = None) -> None:
        self._told = told
        self.written_bytes = 0

    def add(self, size_bytes: int) -> None:
        """So many more."""
        self.written_bytes += size_bytes
        if self._told is not None:
            self._told(self.written_bytes)
