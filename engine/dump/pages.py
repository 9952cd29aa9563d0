# SPDX-License-Identifier: Apache-2.0
"""Which pages are taken, and taking them: private ones by task, shared ones once.

Facts (PAGEMAP_SCAN, Linux 6.7, fs/proc/task_mmu.c):
- Pages of shared memory may exist without this task having touched them. SEEK_DATA on the
  mapping's own file (/proc/PID/map_files, CAP_CHECKPOINT_RESTORE) tells which there are.
  Reading a hole through the mapping would make the page (mm/shmem.c, shmem_fault), so that is
  done only where the file may not be opened.
"""

import errno
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.dump import increment, later, pagesfile
from torpor.engine.dump.capture import Captured
from torpor.engine.dump.ways.way import Content, Left, Part, Segment, Way
from torpor.engine.images.pages import PageFlags, PageRun, write_pagemap
from torpor.engine.images.pageserver import Client
from torpor.engine.images.parents import Chain
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.kernel import pagemap
from torpor.engine.kernel.maps import Vma
from torpor.engine.memory.areas import PAGE, Area, Backing
from torpor.engine.options import Progress, ProgressFn
from torpor.engine.text import size

PIECE_BYTES = 1 << 20
ELSEWHERE = (Backing.FILE_SHARED, Backing.PACKETS)
"""Shared memory that images do not hold: in a file with a name, on its way to or from a device."""


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
    left_bytes: int = 0
    """What the images are without, because it is served afterwards."""

    @property
    def size_bytes(self) -> int:
        """Bytes taken."""
        return sum(s.size_bytes for s in self.segments)


def take(
    captured: Sequence[Captured],
    way: Way,
    loose: Mapping[int, Sequence[tuple[int, bytes]]],
    *,
    leave: bool = False,
) -> PagesTaken:
    """Have the memory of stopped tasks, in the way that was chosen.

    ``loose`` is shared memory that was read from its file: id → (offset, bytes). With ``leave``
    large memory stays where it is.
    """
    taken = PagesTaken()
    shared: dict[int, list[_Place]] = {shared_id: [] for shared_id in loose}
    for item in captured:
        name = f"pagemap-{item.capture.ns_pid}"
        left = later.ranges(item.areas) if leave else ()
        marked = () if leave else item.layout.markable
        taken.segments.append(
            Segment(name=name, parts=_private_parts(item), later=left, marked=marked)
        )
        item.guards = _guards(item.task.pid, item.layout.maybe_guarded)
        for area in item.areas:
            if area.shared and area.backing not in ELSEWHERE and not area.huge_shift:
                guarded = any(at < area.end and area.start < end for at, end in item.guards)
                place = _Place(pid=item.task.pid, area=area, guarded=guarded)
                shared.setdefault(area.pages_id, []).append(place)
    for shared_id, places in sorted(shared.items()):
        parts = [*_shared_parts(places), *map(_loose_part, loose.get(shared_id, ()))]
        parts.sort(key=lambda part: part.runs[0] - part.shift if part.runs else 0)
        taken.segments.append(Segment(name=f"pagemap-shmem-{shared_id}", parts=parts))
    way.take([part for segment in taken.segments for part in segment.parts])
    return taken


def _private_parts(item: Captured) -> list[Part]:
    """Private memory of a task."""
    pid, is_forked = item.task.pid, item.layout.is_forked
    return [
        Part(pid=pid, areas=areas, carried=is_carried, forked=is_forked)
        for is_carried, areas in item.layout.private
    ]


def _loose_part(piece: tuple[int, bytes]) -> Part:
    offset, data = piece
    padded = data + bytes(-len(data) % PAGE)
    return Part(pid=0, runs=array("Q", [offset, len(padded)]), source=Content(padded))


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


def _guards(pid: int, vmas: Sequence[Vma]) -> list[tuple[int, int]]:
    if not vmas:
        return []
    fd = pagemap.open_pagemap(pid)
    try:
        flat = [word for vma in vmas for word in pagemap.guard_runs(fd, vma.start, vma.end)]
    finally:
        os.close(fd)
    return [(start, start + size) for start, size in zip(flat[::2], flat[1::2], strict=True)]


def write(
    taken: PagesTaken,
    images: NewImageDirectory,
    parents: Chain | None,
    told: ProgressFn,
    writers: int = 2,
) -> int:
    """Write pagemaps and pages files, without what the parents have; bytes written."""
    total, written = taken.size_bytes, 0

    def tell(done: int) -> None:
        text = f"{size(written + done)} of {size(total)}"
        told(Progress(phase="write", text=text, done=written + done, total=total))

    for number, segment in enumerate(taken.segments, 1):
        runs, extents = _some(segment, parents) if parents or segment.later else _all(segment)
        if segment.marked:
            runs = list(later.marked(runs, segment.marked))
        write_pagemap(images, segment.name, number, runs)
        taken.left_bytes += sum(run.size_bytes for run in runs if run.is_elsewhere)
        written += pagesfile.write(images, f"pages-{number}", extents, tell, threads=writers)
    return written


def send(taken: PagesTaken, server: Client) -> None:
    """Send everything to a page server."""
    for segment in taken.segments:
        server.begin(segment.name)
        for part in segment.parts:
            at = 0
            for i in range(0, len(part.runs), 2):
                size = part.runs[i + 1]
                whole = PageRun(vaddr=part.runs[i] - part.shift, page_count=size // PAGE)
                for run in later.marked([whole], segment.marked):
                    server.add(run, _pieces(part, at, run.size_bytes))
                    at += run.size_bytes
    server.end()


def _pieces(part: Part, start: int, size_bytes: int) -> Iterator[bytes]:
    """The bytes, a few at a time."""
    for at in range(start, start + size_bytes, PIECE_BYTES):
        size = min(PIECE_BYTES, start + size_bytes - at)
        yield native.read_pages(part.extents(at, size), 0, size)


def _some(segment: Segment, parents: Chain | None) -> tuple[list[PageRun], "array[int]"]:
    """Runs of a pagemap, and extents of those pages that the parents have not, nor come later."""
    stored = parents.stored(segment.name) if parents is not None else ()
    runs: list[PageRun] = []
    extents = array("Q")
    for part in segment.parts:
        for whole in increment.pieces(part.runs, part.shift, part.source, stored):
            for piece in later.cut(whole, segment.later):
                run = piece.run
                runs.append(run)
                if PageFlags.PRESENT in run.flags:
                    extents += part.extents(piece.start, run.size_bytes)
                elif run.is_elsewhere:
                    segment.left.append(Left(run.vaddr, run.end, part, piece.start))
    return runs, extents


def _all(segment: Segment) -> tuple[list[PageRun], "array[int]"]:
    """Runs of a pagemap, and where its pages are."""
    runs = [run for part in segment.parts for run in _page_runs(part)]
    extents = array("Q")
    for part in segment.parts:
        extents += part.extents(0, part.size_bytes)
    return runs, extents


def _page_runs(part: Part) -> list[PageRun]:
    found = [
        PageRun(vaddr=address - part.shift, page_count=size // PAGE, flags=flags)
        for runs, flags in ((part.runs, PageFlags.PRESENT), (part.elsewhere, PageFlags.PARENT))
        for address, size in zip(runs[::2], runs[1::2], strict=True)
    ]
    return sorted(found, key=lambda run: run.vaddr) if part.elsewhere else found
