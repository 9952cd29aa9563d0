# SPDX-License-Identifier: Apache-2.0
"""Filling memory from the pages files, and finding what a fork already has.

Shared memory is filled once, through a descriptor, before any task maps it. In a forked child only
pages that differ from the parent's are written, so that equal ones stay shared copy-on-write;
pages that the parent has and the child has not are dropped.
"""

import errno
import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter

from torpor.engine import native
from torpor.engine.errors import BadImage, Error, KernelError, Vanished
from torpor.engine.haste import OF_A_RESTORE, Haste
from torpor.engine.images import pages
from torpor.engine.images.directory import ImageDirectory, check_digest, digest
from torpor.engine.images.kinds import file_name
from torpor.engine.images.manifest import XXH64, FileDigest
from torpor.engine.images.pages import LocatedRun, PageFlags, Pagemap, PageRun
from torpor.engine.images.parents import Chain
from torpor.engine.kernel import room
from torpor.engine.memory.areas import PAGE, PROT_READ, PROT_WRITE, Area, Backing
from torpor.engine.program.ops import Op
from torpor.engine.restore.staging import HUGE, Range, Staging

MADV_DONTNEED = 4
MADV_NOHUGEPAGE = 15
COPY_BYTES = 1 << 20
LONG = 64 << 20
"""Of a run: it takes more than moments."""
LARGE = 1 << 20
"""Of a run: registering it pays."""


@dataclass(slots=True, kw_only=True)
class TaskPages:
    """The pages of one task (or one shared segment): runs and the file they are in."""

    runs: tuple[LocatedRun, ...]
    fd: int
    file: str = ""
    """Name of the file that ``fd`` is."""
    _starts: list[int] = field(init=False)
    _places: list[tuple[int, int, int | None]] = field(init=False)
    """(address, end, offset) of each run."""
    is_whole: bool = field(init=False)
    """Whether no pages are still where it was dumped."""

    def __post_init__(self) -> None:
        self._places = [(one.run.vaddr, one.run.end, one.offset) for one in self.runs]
        self._starts = [start for start, _, _ in self._places]
        self.is_whole = all(offset is not None for _, _, offset in self._places)

    def within(self, area: Area) -> list[tuple[int, int, int]]:
        """(address, bytes, offset in the file) of the runs inside an area."""
        return self.between(area.start, area.end)

    def between(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """As `within`, for a range of addresses. Runs are in their order (a checked pagemap)."""
        found = []
        for i in range(max(bisect_right(self._starts, low) - 1, 0), len(self._places)):
            at, end, offset = self._places[i]
            if at >= high:
                break
            start, end = max(at, low), min(end, high)
            if offset is not None and start < end:
                found.append((start, end - start, offset + start - at))
        return found

    def lacks(self, area: Area) -> bool:
        """Whether pages of an area are still where it was dumped."""
        return not self.is_whole and any(
            one.offset is None and one.run.end > area.start
            for one in self._touching(area.start, area.end)
        )

    def is_marked(self, area: Area) -> bool:
        """Whether all pages of an area are marked as those that may come later."""
        return all(
            PageFlags.LAZY in one.run.flags
            for one in self._touching(area.start, area.end)
            if one.run.end > area.start
        )

    def _touching(self, low: int, high: int) -> Iterator[LocatedRun]:
        for i in range(max(bisect_right(self._starts, low) - 1, 0), len(self.runs)):
            if self.runs[i].run.vaddr >= high:
                break
            yield self.runs[i]


@dataclass(slots=True)
class Contents:
    """All pages of an image directory."""

    images: ImageDirectory
    tasks: dict[int, TaskPages] = field(default_factory=dict)
    shared: dict[int, TaskPages] = field(default_factory=dict)
    bytes_filled: int = 0
    verified: set[str] = field(default_factory=set)
    parents: Chain | None = None
    """Earlier dumps that may have pages; None when they may not be used."""
    later: bool = False
    """Pages may be missing that are still where it was dumped."""

    def of(self, pid: int) -> TaskPages:
        """Pages of a task."""
        if pid not in self.tasks:
            self.tasks[pid] = self._open(f"pagemap-{pid}", later=self.later)
        return self.tasks[pid]

    def of_shared(self, shared_id: int) -> TaskPages:
        """Pages of a shared segment; addresses count from its start."""
        if shared_id not in self.shared:
            self.shared[shared_id] = self._open(f"pagemap-shmem-{shared_id}")
        return self.shared[shared_id]

    def _open(self, name: str, *, later: bool = False) -> TaskPages:
        if name not in self.images:
            return TaskPages(runs=(), fd=-1)
        pagemap: Pagemap = pages.read_pagemap(self.images, name)
        missing = [run for run in pagemap.runs if PageFlags.PRESENT not in run.flags]
        elsewhere = [run for run in missing if later and run.is_elsewhere]
        if missing != elsewhere:
            return self._open_merged(name, elsewhere)
        return TaskPages(
            runs=tuple(pagemap.located()),
            fd=pages.open_pages(self.images, pagemap),
            file=file_name(pagemap.pages_name),
        )

    def _open_merged(self, name: str, elsewhere: Sequence[PageRun]) -> TaskPages:
        if self.parents is None:
            raise BadImage(
                "pages of an earlier dump are missing",
                subject=file_name(name),
                remedy="restore by `criu restore`, where the earlier dump is",
            )
        runs, fd = self.parents.merged(name)
        more = [LocatedRun(run=run, offset=None) for run in elsewhere]
        return TaskPages(runs=tuple(sorted([*runs, *more], key=lambda one: one.run.vaddr)), fd=fd)

    def private_runs(self, pid: int, wanted: Sequence[Area]) -> list[tuple[int, int, int]]:
        """Runs of a task's private areas, by address."""
        own = self.of(pid)
        return [
            run
            for area in wanted
            if not area.shared and area.backing is not Backing.VVAR
            for run in own.within(area)
        ]

    def area_bytes(self, pid: int, area: Area) -> bytes | None:
        """Content of a whole area when the image has all of it (the vDSO's code)."""
        found = self.of(pid).within(area)
        if sum(size for _, size, _ in found) != area.size_bytes:
            return None
        return b"".join(os.pread(self.of(pid).fd, size, offset) for _, size, offset in found)

    def fill(self, tid: int, pid: int, wanted: Sequence[Area], staging: Staging) -> None:
        """Write every stored page of the private areas."""
        private, source = self.private_runs(pid, wanted), self.of(pid)
        whole, small = self._ranges(pid, wanted)
        if (whole or small) and staging.stage(whole, small):
            try:
                places = self._write(tid, private, source, staging)
            except BaseException:
                with suppress(Error):  # the first one tells what is wrong
                    staging.give_up()
                raise
            if not staging.place(places):
                self._write(tid, private, source)
            return
        if whole:
            native.fill(tid, self._first_pages(pid, whole), source.fd)
            staging.collapse(whole)
        self._write(tid, private, source)

    def write_early(self, tid: int, pid: int, pieces: Sequence[tuple[int, int, int]]) -> None:
        """Write pieces (address, end, offset) of pages that would have come later."""
        self._write(tid, [(at, end - at, offset) for at, end, offset in pieces], self.of(pid))

    def fill_shared(self, shared_id: int, fd: int) -> None:
        """Write a segment through a descriptor of ours, before anybody maps it."""
        segment, size = self.of_shared(shared_id), os.fstat(fd).st_size
        whole = size - size % PAGE
        for at, length, offset in segment.between(0, whole):
            copy_bytes(segment.fd, offset, fd, at, length)
            self.bytes_filled += length
        for _, length, offset in segment.between(whole, -(-size // PAGE) * PAGE):
            _write_last_page(fd, size, os.pread(segment.fd, length, offset))

    def fill_attached(self, tid: int, shared_id: int, address: int) -> None:
        """Write a System V segment where a task of ours has it attached for the moment."""
        segment = self.of_shared(shared_id)
        runs = [
            (address + run.run.vaddr, run.run.size_bytes, run.offset)
            for run in segment.runs
            if run.offset is not None
        ]
        self._write(tid, runs, segment)

    def fill_forked(
        self,
        tid: int,
        pid: int,
        parent: int,
        kept: Sequence[Area],
        fresh: Sequence[Area],
        staging: Staging,
    ) -> list[Op]:
        """As `fill`, writing only what differs; returns operations that drop the parent's pages."""
        own = self.private_runs(pid, kept)
        if own:
            different = native.compare_runs(tid, _flat(own), self.of(pid).fd)
            self._write(tid, pages_of(own, different), self.of(pid))
        self.fill(tid, pid, fresh, staging)
        mine = [(start, start + size) for start, size, _ in own]
        theirs = [(start, start + size) for start, size, _ in self.private_runs(parent, kept)]
        return [
            Op(
                call="madvise",
                args=(start, end - start, MADV_DONTNEED),
                subject=f"{start:x}-{end:x}",
                note="the parent's pages only",
            )
            for start, end in subtract(theirs, mine)
        ]

    def _ranges(self, pid: int, wanted: Sequence[Area]) -> tuple[list[Range], list[Range]]:
        """Where runs fill huge pages whole, if they may be huge; else those that are large."""
        whole, small = [], []
        for area in wanted:
            if not area.is_plain or area.droppable or area.grows_down:
                continue
            # a staging area can be read and written
            may_be_huge = area.prot | PROT_WRITE == PROT_READ | PROT_WRITE
            may_be_huge &= MADV_NOHUGEPAGE not in area.advice
            if area.size_bytes < (HUGE if may_be_huge else LARGE):
                continue
            for start, size, _ in self.of(pid).within(area):
                first, last = -(-start // HUGE) * HUGE, (start + size) // HUGE * HUGE
                if may_be_huge and first < last:
                    whole.append((first, last))
                elif not may_be_huge and size >= LARGE:
                    small.append((start, start + size))
        return whole, small

    def _first_pages(self, pid: int, whole: Sequence[tuple[int, int]]) -> "array[int]":
        """Of each huge page the first: it must be there to become huge."""
        pages_ = (one for low, high in whole for one in self.of(pid).between(low, high))
        return _flat([
            (at, PAGE, offset + at - start)
            for start, size, offset in pages_
            for at in range(start, start + size, HUGE)
        ])  # fmt: skip

    def _write(
        self,
        tid: int,
        runs: Sequence[tuple[int, int, int]],
        source: TaskPages,
        staging: Staging | None = None,
    ) -> bytes:
        """Write runs; of each huge page, whether it is in the staging area."""
        ranges = array("Q", chain(*staging.ranges)) if staging else None
        if not runs:
            return b""
        size = sum(size for _, size, _ in runs)
        expected = self._expected(source.file)
        with_digest = expected is not None and size * 2 > expected.size_bytes
        ordered = sorted(runs, key=itemgetter(2))
        places = room.memory_places(tid)
        if size >= LONG:
            OF_A_RESTORE.rest()
        try:
            with Haste() if size >= LARGE else nullcontext():
                done = native.fill(
                    tid,
                    _flat(ordered),
                    source.fd,
                    ranges=ranges,
                    uffd=staging.fd if staging else -1,
                    with_digest=with_digest,
                )
        except (Vanished, KernelError) as error:
            if isinstance(error, KernelError) and error.errno != errno.ENOMEM:
                raise
            raise KernelError(
                "ran out of memory while it was filled",
                errno=errno.ENOMEM,
                subject=f"task {tid}",
                cause=room.limit_text(tid, places),
                remedy="raise that limit",
            ) from error
        if expected is not None and with_digest:
            check_digest(source.file, replace(expected, digest=done.digest), expected)
            self.verified.add(source.file)
        self.bytes_filled += size
        return done.places

    def _expected(self, name: str) -> FileDigest | None:
        """What is still to be verified of a pages file, when filling can do it in passing."""
        if self.images.manifest is None or name in self.verified:
            return None
        expected = self.images.manifest.files.get(name)
        return expected if expected and expected.algorithm == XXH64 else None

    def verify(self, but: Collection[str] = ()) -> None:
        """Check the digests of pages files, ``but`` for some, that filling has not checked.

        Raises: BadImage.
        """
        listed = self.images.manifest.files if self.images.manifest else {}
        for name, expected in sorted(listed.items()):
            if name.startswith("pages-") and name not in {*self.verified, *but}:
                fd = self.images.open_file(name.removesuffix(".img"))
                try:
                    check_digest(name, digest(fd, expected.algorithm), expected)
                finally:
                    os.close(fd)
                self.verified.add(name)

    def close(self) -> None:
        """Close the pages files."""
        for one in (*self.tasks.values(), *self.shared.values()):
            if one.fd >= 0:
                os.close(one.fd)
        if self.parents is not None:
            self.parents.close()
        self.tasks.clear()
        self.shared.clear()


def _write_last_page(fd: int, size: int, content: bytes) -> None:
    """A file's last page is shown whole where it is mapped; write(2) would make the file longer."""
    at = size - size % PAGE
    os.ftruncate(fd, at + PAGE)
    with mmap.mmap(fd, PAGE, offset=at) as page:
        os.ftruncate(fd, size)
        page[: len(content)] = content


def copy_bytes(source: int, source_at: int, target: int, target_at: int, size: int) -> None:
    """Copy a part of a file to a part of another; no descriptor's position is moved."""
    room = memoryview(bytearray(min(size, COPY_BYTES)))
    done = 0
    while done < size:
        got = os.preadv(source, [room[: size - done]], source_at + done)
        if not got:
            raise BadImage("a pages file is shorter than its pagemap says")
        written = 0
        while written < got:
            written += os.pwrite(target, room[written:got], target_at + done + written)
        done += got


def pages_of(
    runs: Sequence[tuple[int, int, int]], addresses: Iterable[int]
) -> list[tuple[int, int, int]]:
    """The parts of runs which hold the pages at ``addresses`` (in the order of the runs)."""
    found: list[tuple[int, int, int]] = []
    position = 0
    for address in addresses:
        while not runs[position][0] <= address < runs[position][0] + runs[position][1]:
            position += 1
        start, size, offset = runs[position]
        length = min(PAGE, start + size - address)
        last = found[-1] if found else (0, 0, 0)
        if last[0] + last[1] == address and start < address:
            found[-1] = (last[0], last[1] + length, last[2])
        else:
            found.append((address, length, offset + address - start))
    return found


def _flat(runs: Sequence[tuple[int, int, int]]) -> "array[int]":
    return array("Q", [value for run in runs for value in run])


def subtract(
    ranges: Sequence[tuple[int, int]], minus: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Parts of sorted ranges which no range of ``minus`` (sorted) covers."""
    result = []
    cuts = iter([*minus, (1 << 64, 1 << 64)])
    cut = next(cuts)
    for whole_start, end in ranges:
        start = whole_start
        while start < end:
            while cut[1] <= start:
                cut = next(cuts)
            if cut[0] >= end:
                result.append((start, end))
                break
            if cut[0] > start:
                result.append((start, cut[0]))
            start = cut[1]
    return result
