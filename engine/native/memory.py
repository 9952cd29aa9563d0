# SPDX-License-Identifier: Apache-2.0
"""Memory of another task: read, written, scanned, filled from a file and compared with one."""

import os
from array import array

from torpor.engine.errors import Error
from torpor.engine.native.seam import Address, error_for, ffi, lib, new_uncleared

SCAN_ROOM = 4096


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


def fill_runs(pid: int, runs: "array[int]", fd: int, threads: int = 2) -> int:
    """Write parts of a file to a task's memory: (address, length, offset) triples."""
    words = ffi.from_buffer("uint64_t[]", runs)
    result = lib.seam_fill_runs(pid, words, len(runs) // 3, fd, threads)
    if result < 0:
        raise error_for(result, "process_vm_writev", f"task {pid}, {len(runs) // 3} runs")
    return result


def fill_checked(pid: int, runs: "array[int]", fd: int, threads: int = 2) -> str:
    """As `fill_runs`, runs by offset; reads the whole file and returns its digest."""
    words = ffi.from_buffer("uint64_t[]", runs)
    digest = ffi.new("uint64_t *")
    size = os.fstat(fd).st_size
    result = lib.seam_fill_checked(pid, words, len(runs) // 3, fd, size, threads, digest)
    if result < 0:
        raise error_for(result, "process_vm_writev", f"task {pid}, {len(runs) // 3} runs")
    return f"{digest[0]:016x}"


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
