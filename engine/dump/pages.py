# SPDX-License-Identifier: Apache-2.0
"""Which pages are taken, and taking them: private ones by task, shared ones once.

Facts (PAGEMAP_SCAN, Linux 6.7, fs/proc/task_mmu.c):
- A page of a private area is worth keeping when it is present or swapped and neither the
  shared zero page nor an unmodified page of a file.
- Pages of shared memory may exist without this task having touched them. SEEK_DATA on the
  mapping's own file (/proc/PID/map_files, CAP_CHECKPOINT_RESTORE) tells which there are.
  Reading a hole through the mapping would make the page (mm/shmem.c, shmem_fault), so that is
  done only where the file may not be opened.
- The vDSO is kept whole: its code tells a restore whether the kernel is the same.
"""

import errno
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.dump import increment
from torpor.engine.dump.buffers import Capture, Slice
from torpor.engine.dump.capture import Captured
from torpor.engine.images.failures import translated
from torpor.engine.images.pages import PageFlags, PageRun, write_pagemap
from torpor.engine.images.pageserver import Client
from torpor.engine.images.parents import Chain
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.kernel import pagemap
from torpor.engine.kernel.maps import Vma
from torpor.engine.memory import marks
from torpor.engine.memory.areas import PAGE, RINGS, Area, Backing

ANONYMOUS = re.compile(r"^Anonymous: +[1-9]", re.MULTILINE)
ALONE = "Shared_Clean:          0 kB", "Shared_Dirty:          0 kB"
"""Most mappings say so; to look for it is cheap."""
WHOLE = (Backing.VDSO, *RINGS)
COMMON = re.compile(r"^Shared_(?:Clean|Dirty): +[1-9]", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Part:
    """(address, bytes) runs of one task; ``shift`` is taken off an address in the image."""

    pid: int
    runs: "array[int]"
    shift: int = 0
    forked: bool = False
    """Others have the same pages copy-on-write."""
    bytes_at: Slice | None = None
    """Where the bytes are once they were taken."""
    data: bytes = b""
    """Or the bytes themselves: of a memfd, where nobody maps it."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all runs."""
        return sum(self.runs[1::2])

    def view(self, start: int, size_bytes: int) -> memoryview:
        """Bytes from ``start`` of what was taken."""
        if self.data:
            return memoryview(self.data)[start : start + size_bytes]
        assert self.bytes_at is not None
        return self.bytes_at.buffer.view(self.bytes_at.start + start, size_bytes)

    def write_file(self, fd: int, start: int, size_bytes: int, offset: int) -> None:
        """Write bytes from ``start`` of what was taken to a place in a file."""
        if self.data:
            os.pwrite(fd, self.data[start : start + size_bytes], offset)
        elif self.bytes_at is not None and size_bytes:
            self.bytes_at.buffer.write_file(fd, self.bytes_at.start + start, size_bytes, offset)


@dataclass(slots=True, kw_only=True)
class Segment:
    """What goes into one pagemap, in the order of addresses in the image."""

    name: str
    parts: list[Part]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a task maps shared memory; ``guarded`` when guard regions lie on it."""

    pid: int
    area: Area
    guarded: bool


@dataclass(slots=True, kw_only=True)
class PagesTaken:
    """Everything captured of a tree."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes taken."""
        return sum(s.size_bytes for s in self.segments)


def take(
    captured: Sequence[Captured], capture: Capture, loose: Mapping[int, Sequence[tuple[int, bytes]]]
) -> PagesTaken:
    """Scan and copy while the tasks are stopped.

    ``loose`` is shared memory that was read from its file: id → (offset, bytes).
    """
    taken = PagesTaken()
    shared: dict[int, list[_Place]] = {shared_id: [] for shared_id in loose}
    for item in captured:
        part = Part(
            pid=item.task.pid,
            runs=_private_runs(item.task.pid, item.areas),
            forked=any(_has_common_pages(vma) for vma in item.vmas),
        )
        taken.segments.append(Segment(name=f"pagemap-{item.capture.ns_pid}", parts=[part]))
        item.guards = _guards(item.task.pid, item.vmas)
        for area in item.areas:
            if area.shared and area.backing is not Backing.FILE_SHARED:
                guarded = any(at < area.end and area.start < end for at, end in item.guards)
                place = _Place(pid=item.task.pid, area=area, guarded=guarded)
                shared.setdefault(area.pages_id, []).append(place)
    for shared_id, places in sorted(shared.items()):
        parts = [*_shared_parts(places), *map(_loose_part, loose.get(shared_id, ()))]
        parts.sort(key=lambda part: part.runs[0] - part.shift if part.runs else 0)
        taken.segments.append(Segment(name=f"pagemap-shmem-{shared_id}", parts=parts))
    for segment in taken.segments:
        for part in segment.parts:
            if part.data:
                continue
            part.bytes_at = capture.read(part.pid, part.runs, forked=part.forked)
    return taken


def _has_common_pages(vma: Vma) -> bool:
    """Anonymous pages that are in other tasks too; such pages of files are too few to matter."""
    return (
        not (vma.shared or vma.inode)
        and not (ALONE[0] in vma.details and ALONE[1] in vma.details)
        and ANONYMOUS.search(vma.details) is not None
        and COMMON.search(vma.details) is not None
    )


def _loose_part(piece: tuple[int, bytes]) -> Part:
    offset, data = piece
    padded = data + bytes(-len(data) % PAGE)
    return Part(pid=0, runs=array("Q", [offset, len(padded)]), data=padded)


def _shared_parts(places: Sequence[_Place]) -> list[Part]:
    """Every mapped piece of a segment once, whichever task has it."""
    parts: list[Part] = []
    covered = 0
    for place in sorted(places, key=lambda place: (place.area.offset, -place.area.size_bytes)):
        pid, area = place.pid, place.area
        first = max(area.offset, covered)
        end = area.offset + area.size_bytes
        if first < end:
            part = Part(
                pid=pid, runs=_data_runs(pid, area, first, end), shift=area.start - area.offset
            )
            parts += _from_file(part, area) if place.guarded else [part]
            covered = end
    return parts


def _from_file(part: Part, area: Area) -> list[Part]:
    """The same, read from the file: a guard region cannot be read through."""
    fd = os.open(_map_file(part.pid, area), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [
            _loose_part((at - part.shift, os.pread(fd, size, at - part.shift)))
            for at, size in zip(part.runs[::2], part.runs[1::2], strict=True)
        ]
    finally:
        os.close(fd)


def _map_file(pid: int, area: Area) -> str:
    return f"/proc/{pid}/map_files/{area.start:x}-{area.end:x}"


def _data_runs(pid: int, area: Area, at: int, end: int) -> "array[int]":
    """(address, bytes) of the pages that exist between two offsets of a shared area."""
    runs = array("Q")
    whole = array("Q", [area.start + at - area.offset, end - at])
    try:
        fd = os.open(_map_file(pid, area), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return whole
    try:
        while at < end:
            try:
                first = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return whole
                break
            if first >= end:
                break
            at = min(os.lseek(fd, first, os.SEEK_HOLE), end)
            first -= first % PAGE
            at += -at % PAGE
            runs.extend((area.start + first - area.offset, at - first))
    finally:
        os.close(fd)
    return runs


def _private_runs(pid: int, found: Sequence[Area]) -> "array[int]":
    wanted = [
        a
        for a in found
        if not a.shared and not a.droppable and a.backing not in (Backing.VVAR, Backing.VSYSCALL)
    ]
    fd = pagemap.open_pagemap(pid)
    try:
        own = [(a.start, a.end) for a in wanted if a.backing not in WHOLE]
        runs = pagemap.private_runs(fd, own)
    finally:
        os.close(fd)
    whole = [(a.start, a.size_bytes) for a in wanted if a.backing in WHOLE]
    if not whole:
        return runs
    pairs = sorted([*zip(runs[::2], runs[1::2], strict=True), *whole])
    return array("Q", [word for pair in pairs for word in pair])


def _guards(pid: int, vmas: Sequence[Vma]) -> list[tuple[int, int]]:
    wanted = [vma for vma in vmas if marks.may_have_guards(vma)]
    if not wanted:
        return []
    fd = pagemap.open_pagemap(pid)
    try:
        flat = [word for vma in wanted for word in pagemap.guard_runs(fd, vma.start, vma.end)]
    finally:
        os.close(fd)
    return [(start, start + size) for start, size in zip(flat[::2], flat[1::2], strict=True)]


def write(taken: PagesTaken, images: NewImageDirectory, parents: Chain | None = None) -> int:
    """Write pagemaps and pages files, without what the parents have; bytes written."""
    written = 0
    for number, segment in enumerate(taken.segments, 1):
        if parents is not None:
            written += _write_new(segment, number, images, parents)
            continue
        write_pagemap(images, segment.name, number, _page_runs(segment))
        fd = images.create_file(f"pages-{number}")
        offset = 0
        try:
            for part in segment.parts:
                place = part.bytes_at
                with translated("write", f"pages-{number}.img"):
                    part.write_file(fd, 0, part.size_bytes, offset)
                offset += part.size_bytes
                if place is not None and place.size_bytes and len(segment.parts) == 1:
                    digest = place.buffer.digest(place.start, place.size_bytes)
                    images.digested(f"pages-{number}", digest)
        finally:
            os.close(fd)
        written += offset
    return written


def send(taken: PagesTaken, server: Client) -> None:
    """Send everything to a page server."""
    for segment in taken.segments:
        server.begin(segment.name)
        for part in segment.parts:
            at = 0
            for i in range(0, len(part.runs), 2):
                size = part.runs[i + 1]
                run = PageRun(vaddr=part.runs[i] - part.shift, page_count=size // PAGE)
                server.add(run, part.view(at, size))
                at += size
    server.end()


def _write_new(segment: Segment, number: int, images: NewImageDirectory, parents: Chain) -> int:
    """A pagemap and its pages file, with only those pages that the parents have not."""
    stored = parents.stored(segment.name)
    runs: list[PageRun] = []
    offset = 0
    fd = images.create_file(f"pages-{number}")
    try:
        for part in segment.parts:
            for piece in increment.pieces(part.runs, part.shift, part.bytes_at, stored):
                runs.append(piece.run)
                if PageFlags.PRESENT in piece.run.flags:
                    with translated("write", f"pages-{number}.img"):
                        part.write_file(fd, piece.start, piece.run.size_bytes, offset)
                    offset += piece.run.size_bytes
    finally:
        os.close(fd)
    write_pagemap(images, segment.name, number, runs)
    return offset


def _page_runs(segment: Segment) -> list[PageRun]:
    return [
        PageRun(vaddr=part.runs[i] - part.shift, page_count=part.runs[i + 1] // PAGE)
        for part in segment.parts
        for i in range(0, len(part.runs), 2)
    ]
