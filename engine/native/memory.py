# SPDX-License-Identifier: Apache-2.0
"""Memory of another task: read, written, scanned, filled from a file and compared with one."""

import os
from array import array
from dataclasses import dataclass

from torpor.engine.errors import Error
from torpor.engine.native.seam import Address, error_for, ffi, lib, new_uncleared

SCAN_ROOM = 4096
STAGED = 1
"""In `Filled.places`: the huge page is in the staging area."""


def read_memory(pid: int, address: Address, size: int) -> bytes:
    """Memory of a task, whole or KernelError(EFAULT)."""
    room = bytearray(size)
    read_memory_into(pid, address, room)
    return bytes(room)


def read_memory_into(pid: int, address: Address, buffer: bytearray | memoryview) -> None:
    """As `read_memory`, into room of the caller's."""
    target = ffi.from_buffer(buffer, require_writable=True)
    result = lib.seam_read_memory(pid, address, target, len(target))
    if result < 0:
        raise _memory_error(result, "process_vm_readv", pid, address, len(target))


def read_pieces(pid: int, pieces: "array[int]") -> bytes:
    """Memory of a task at (address, bytes) pairs, one behind the other, in one go.

    Raises: KernelError when a piece is not there.
    """
    room = bytearray(sum(pieces[1::2]))
    words = ffi.from_buffer("uint64_t[]", pieces)
    result = lib.seam_capture_runs(pid, words, len(pieces) // 2, ffi.from_buffer(room), 1)
    if result < 0:
        raise error_for(result, "process_vm_readv", f"task {pid}, {len(pieces) // 2} pieces")
    return bytes(room)


def write_memory(pid: int, address: Address, data: bytes | bytearray | memoryview) -> None:
    """Write memory of a task; what is not writable goes through /proc/PID/mem."""
    source = ffi.from_buffer(data)
    result = lib.seam_write_memory(pid, address, source, len(source))
    if result < 0:
        raise _memory_error(result, "process_vm_writev", pid, address, len(source))


def scan_pages(  # noqa: PLR0913 - the fields of struct pm_scan_arg
    pagemap_fd: int,
    start: Address,
    end: Address,
    *,
    inverted: int = 0,
    required: int = 0,
    any_of: int = 0,
    returned: int,
    flags: int = 0,
) -> "array[int]":
    """PAGEMAP_SCAN of the whole range: (start, end, categories) triples, flat."""
    position = ffi.new("uint64_t *", start)
    masks = ffi.new("uint64_t[]", [inverted, required, any_of, returned])
    room = new_uncleared("uint64_t[]", 3 * SCAN_ROOM)
    found = array("Q")
    while position[0] < end:
        count = lib.seam_scan_pages(pagemap_fd, position, end, masks, flags, room, SCAN_ROOM)
        if count < 0:
            raise error_for(count, "ioctl(PAGEMAP_SCAN)", f"{start:#x}-{end:#x}")
        found.frombytes(ffi.buffer(room, count * 24))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What `fill` did. ``places``: of each huge page, whether it is in the staging area."""

    size_bytes: int
    digest: str
    places: bytes


def fill(
    pid: int,
    runs: "array[int]",
    fd: int,
    *,
    ranges: "array[int] | None" = None,
    uffd: int = -1,
    with_digest: bool = False,
    threads: int = 2,
) -> Filled:
    """Write parts of a file to a task's memory: (address, length, offset) triples, by offset.

    ``ranges`` are where nothing is yet: (address, length, address in a staging area, or 0). Those
    with such an address are of huge pages, which may be written there; ``uffd`` is registered for
    all of them. With a digest the whole file is read.
    """
    staged = ranges if ranges is not None else array("Q")
    huge = [pair for pair in zip(staged[1::3], staged[2::3], strict=True) if pair[1]]
    places = bytearray(sum(size for size, _ in huge) >> 21)
    asked = ffi.new("struct seam_fill *")
    keep = ffi.from_buffer("uint64_t[]", runs), ffi.from_buffer("uint64_t[]", staged)
    room = ffi.from_buffer("unsigned char[]", places)
    asked.pid, asked.fd, asked.threads, asked.places = pid, fd, threads, room
    asked.runs, asked.count = keep[0], len(runs) // 3
    asked.ranges, asked.range_count = keep[1], len(staged) // 3
    asked.staging, asked.uffd = huge[0][1] if huge else 0, uffd
    asked.with_digest = with_digest
    asked.size = os.fstat(fd).st_size if with_digest else runs[-1] + runs[-2] if runs else 0
    result = lib.seam_fill(asked)
    if result < 0:
        raise error_for(result, "filling memory", f"task {pid}, {len(runs) // 3} runs")
    digest = f"{asked.digest:016x}" if with_digest else ""
    return Filled(size_bytes=result, digest=digest, places=bytes(places))


def copy_pages(uffd: int, target: Address, fd: int, offset: int, size: int) -> tuple[int, int]:
    """Pages of a file by UFFDIO_COPY: bytes that are there now, and why not all (errno)."""
    error = ffi.new("int *")
    return int(lib.seam_copy_pages(uffd, target, fd, offset, size, error)), int(error[0])


def put_pages(uffd: int, target: Address, data: bytes) -> tuple[int, int]:
    """As `copy_pages`, of bytes that we have."""
    error = ffi.new("int *")
    source = ffi.from_buffer(data)
    return int(lib.seam_put_pages(uffd, target, source, len(data), error)), int(error[0])


def compare_runs(pid: int, runs: "array[int]", fd: int) -> "array[int]":
    """Addresses of pages that differ from the file, in the order of the runs (triples)."""
    words = ffi.from_buffer("uint64_t[]", runs)
    pages = sum((size + 4095) // 4096 for size in runs[1::3])
    different = ffi.new("uint64_t[]", max(pages, 1))
    count = lib.seam_compare_runs(pid, words, len(runs) // 3, fd, different, pages)
    if count < 0:
        raise error_for(count, "read of mem", f"task {pid}, {len(runs) // 3} runs")
    found = array("Q")
    found.frombytes(ffi.buffer(different, count * 8))
    return found


def _memory_error(result: int, call: str, pid: int, address: int, size: int) -> Error:
    return error_for(result, call, f"task {pid}, {size} bytes at {address:#x}")


def release_memory(pid: int) -> None:
    """process_mrelease (Linux 5.15): free the private memory of a task that is about to exit."""
    result = lib.seam_release_memory(pid)
    if result < 0:
        raise error_for(result, "process_mrelease", f"task {pid}")
