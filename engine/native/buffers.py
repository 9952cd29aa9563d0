# SPDX-License-Identifier: Apache-2.0
"""Room for memory that is taken from a task, and what is done with it: digests, writing."""

import os
from array import array
from typing import Any

from torpor.engine.native.pages import IN_MEMORY
from torpor.engine.native.seam import error_for, ffi, lib


class Buffer:
    """Anonymous room of our own, in huge pages where there are any; freed by `close`."""

    __slots__ = ("_start", "size")

    def __init__(self, size: int) -> None:
        pointer = ffi.new("void **")
        result = lib.seam_buffer_map(size, pointer)
        if result < 0:
            raise error_for(result, "mmap", f"buffer of {size} bytes")
        self._start = pointer[0]
        self.size = size

    def populate(self, start: int, size: int, threads: int = 2) -> None:
        """Have the pages of a part ready."""
        where = ffi.cast("char *", self._start) + start
        result = lib.seam_buffer_populate(where, size, threads)
        if result < 0:
            raise error_for(result, "madvise", f"buffer of {size} bytes")

    def capture_runs(
        self, pid: int, runs: "array[int]", start: int, threads: int = 2, *, forked: bool = False
    ) -> int:
        """Copy memory of a task, (address, length) pairs, to ``start``; returns the bytes.

        ``forked``: pages that are shared copy-on-write stay so; takes twice the time.
        """
        where = ffi.cast("char *", self._start) + start
        words = ffi.from_buffer("uint64_t[]", runs)
        take = lib.seam_capture_forked if forked else lib.seam_capture_runs
        result = take(pid, words, len(runs) // 2, where, threads)
        if result < 0:
            call = "read of mem" if forked else "process_vm_readv"
            raise error_for(result, call, f"task {pid}, {len(runs) // 2} runs")
        return result

    def extent(self, start: int, size: int) -> "array[int]":
        """Extents (see `native.pages`) of a part; only while the buffer is open."""
        return array("Q", [IN_MEMORY, int(ffi.cast("uint64_t", self._start)) + start, size])

    def view(self, start: int, size: int) -> memoryview:
        """The bytes, not copied; only while the buffer is open."""
        return memoryview(ffi.buffer(ffi.cast("char *", self._start) + start, size))

    def close(self) -> None:
        """Give the room back."""
        if self._start:
            lib.seam_buffer_unmap(self._start, self.size)
        self._start = ffi.NULL
        self.size = 0


def punch(fd: int, offset: int, size: int) -> None:
    """Make a hole in a file that is open for writing; its length stays."""
    result = lib.seam_punch(fd, offset, size)
    if result < 0:
        raise error_for(result, "fallocate", f"{size} bytes at {offset}")


def digest_file(fd: int, threads: int = 2) -> str:
    """XXH64 of the XXH64 of each 256 KiB of a file, in hexadecimal."""
    return _digest(ffi.NULL, fd, os.fstat(fd).st_size, threads)


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0."""
    return int(lib.seam_xxh64(ffi.from_buffer(data), len(data)))


def _digest(buffer: Any, fd: int, size: int, threads: int) -> str:  # noqa: ANN401
    digest = ffi.new("uint64_t *")
    result = lib.seam_digest(buffer, fd, size, threads, digest)
    if result < 0:
        raise error_for(result, "pread", f"{size} bytes of descriptor {fd}")
    return f"{digest[0]:016x}"
