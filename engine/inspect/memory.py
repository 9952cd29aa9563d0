# SPDX-License-Identifier: Apache-2.0
"""Memory of an image: how much of which kind, and single bytes out of the pages files."""

import os
from bisect import bisect_right
from collections.abc import Sequence

from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.pages import LocatedRun, PageFlags, Pagemap, open_pages, read_pagemap
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.inspect.model import AreaKind, Memory
from torpor.engine.text import name

STACK, VSYSCALL, VDSO, HEAP = 1 << 1, 1 << 2, 1 << 3, 1 << 5
FILE_PRIVATE, FILE_SHARED, ANON_SHARED = 1 << 6, 1 << 7, 1 << 8
SYSVIPC, SOCKET, VVAR, AIO, MEMFD = 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14
KINDS = (
    (VSYSCALL, "vsyscall"), (VDSO, "vdso"), (VVAR, "vvar"), (SYSVIPC, "System V shared memory"),
    (MEMFD, "memfd"), (AIO, "aio ring"), (SOCKET, "packet socket"), (FILE_PRIVATE, "private file"),
    (FILE_SHARED, "shared file"), (ANON_SHARED, "shared anonymous"), (HEAP, "heap"),
    (STACK, "stack"),
)  # fmt: skip
"""Bits of vma_entry.status, the deciding one first."""
ANONYMOUS = "anonymous"
MAX_ARGUMENT_BYTES = 128 << 10


def kind_of(status: int) -> str:
    """Kind of an area in words."""
    return next((word for bit, word in KINDS if status & bit), ANONYMOUS)


def pagemap_of(images: ImageDirectory, pid: int) -> Pagemap | None:
    """The pagemap of a task; None when nothing of it is stored."""
    image = f"pagemap-{pid}"
    return read_pagemap(images, image) if image in images else None


def summarise(entry: pb.mm_entry, pagemap: Pagemap | None) -> Memory:
    """Areas by kind, with the bytes stored in each. vsyscall counts as nothing: it is fixed."""
    runs = list(pagemap.located()) if pagemap else []
    ends = [run.run.end for run in runs]
    kinds: dict[str, list[int]] = {}
    for area in entry.vmas:
        if area.status & VSYSCALL:
            continue
        sums = kinds.setdefault(kind_of(area.status), [0, 0, 0])
        sums[0] += 1
        sums[1] += area.end - area.start
        sums[2] += _stored(area.start, area.end, runs, ends)
    found = [AreaKind(kind=k, areas=a, mapped_bytes=m, stored_bytes=s)
             for k, (a, m, s) in kinds.items()]  # fmt: skip
    return Memory(
        areas=sum(k.areas for k in found),
        mapped_bytes=sum(k.mapped_bytes for k in found),
        stored_bytes=pagemap.stored_bytes if pagemap else 0,
        parent_bytes=sum(r.run.size_bytes for r in runs if PageFlags.PARENT in r.run.flags),
        kinds=tuple(sorted(found, key=lambda k: (-k.stored_bytes, -k.mapped_bytes))),
    )


def _stored(start: int, end: int, runs: Sequence[LocatedRun], ends: Sequence[int]) -> int:
    total = 0
    for located in runs[bisect_right(ends, start) :]:
        if located.run.vaddr >= end:
            break
        if located.offset is not None:
            total += min(end, located.run.end) - max(start, located.run.vaddr)
    return total


def arguments(
    images: ImageDirectory, entry: pb.mm_entry, pagemap: Pagemap | None
) -> tuple[str, ...] | None:
    """The argument area of a task; None when its pages are not in these images."""
    start, end = entry.mm_arg_start, entry.mm_arg_end
    if pagemap is None or end <= start:
        return None
    raw = _read(images, pagemap, start, min(end, start + MAX_ARGUMENT_BYTES))
    if raw is None:
        return None
    return tuple(name(part) for part in raw.rstrip(b"\0").split(b"\0"))


def _read(images: ImageDirectory, pagemap: Pagemap, start: int, end: int) -> bytes | None:
    pieces = []
    fd = open_pages(images, pagemap) if pagemap.stored_bytes else -1
    try:
        for located in pagemap.located():
            run = located.run
            if located.offset is None or run.end <= start:
                continue
            if run.vaddr > start or start >= end:
                break
            size = min(end, run.end) - start
            pieces.append(os.pread(fd, size, located.offset + start - run.vaddr))
            start += size
    finally:
        if fd >= 0:
            os.close(fd)
    return b"".join(pieces) if start >= end else None
