# SPDX-License-Identifier: Apache-2.0
"""Which pages are taken, and taking them: private ones by task, shared ones once.

Facts (PAGEMAP_SCAN, Linux 6.7, fs/proc/task_mmu.c):
- A page of a private area is worth keeping when it is present or swapped and neither the
  shared zero page nor an unmodified page of a file.
- Pages of shared memory may exist without this task having touched them: all pages of a
  shared area are read; holes read as zeros and are left out again.
- The vDSO is kept whole: its code tells a restore whether the kernel is the same.
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from torpor.engine.dump.buffers import Capture, Slice
from torpor.engine.dump.capture import Captured
from torpor.engine.images.pages import PageRun, write_pagemap
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.kernel import pagemap
from torpor.engine.memory.areas import PAGE, Area, Backing


@dataclass(slots=True, kw_only=True)
class Segment:
    """What is written to one pagemap: (address in the task, bytes) runs, ``shift`` subtracted."""

    name: str
    pid: int
    runs: "array[int]"
    shift: int = 0
    bytes_at: Slice | None = None
    """Where its bytes are once they were taken."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all runs."""
        return sum(self.runs[1::2])


@dataclass(slots=True, kw_only=True)
class PagesTaken:
    """Everything captured of a tree."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes taken."""
        return sum(s.size_bytes for s in self.segments)


def take(captured: Sequence[Captured], capture: Capture) -> PagesTaken:
    """Scan and copy while the tasks are stopped."""
    taken = PagesTaken()
    shared: dict[int, tuple[int, list[Area]]] = {}
    for item in captured:
        found = item.areas
        runs = _private_runs(item.task.pid, found)
        taken.segments.append(
            Segment(name=f"pagemap-{item.capture.ns_pid}", pid=item.task.pid, runs=runs)
        )
        for area in found:
            if area.shared and area.backing is not Backing.FILE_SHARED:
                _, known = shared.setdefault(area.shared_id, (item.task.pid, []))
                if shared[area.shared_id][0] == item.task.pid:
                    known.append(area)
    for shared_id, (pid, known) in sorted(shared.items()):
        for area in known[:1]:
            runs = array("Q", [area.start, area.size_bytes])
            taken.segments.append(
                Segment(
                    name=f"pagemap-shmem-{shared_id}",
                    pid=pid,
                    runs=runs,
                    shift=area.start - area.offset,
                )
            )
    for segment in taken.segments:
        segment.bytes_at = capture.read(segment.pid, segment.runs)
    return taken


def _private_runs(pid: int, found: Sequence[Area]) -> "array[int]":
    wanted = [
        a
        for a in found
        if not a.shared and not a.droppable and a.backing not in (Backing.VVAR, Backing.VSYSCALL)
    ]
    runs = array("Q")
    fd = pagemap.open_pagemap(pid)
    try:
        for area in wanted:
            if area.backing is Backing.VDSO:
                runs.extend((area.start, area.size_bytes))
            else:
                runs.extend(pagemap.private_runs(fd, area.start, area.end))
    finally:
        os.close(fd)
    return runs


def write(taken: PagesTaken, images: NewImageDirectory) -> int:
    """Write pagemaps and pages files; bytes written."""
    written = 0
    for number, segment in enumerate(taken.segments, 1):
        runs = _page_runs(segment)
        write_pagemap(images, segment.name, number, runs)
        fd = images.create_file(f"pages-{number}")
        try:
            part = segment.bytes_at
            if part is not None and part.size_bytes:
                part.buffer.write_file(fd, part.start, part.size_bytes, 0)
        finally:
            os.close(fd)
        written += segment.size_bytes
    return written


def _page_runs(segment: Segment) -> list[PageRun]:
    return [
        PageRun(vaddr=segment.runs[i] - segment.shift, page_count=segment.runs[i + 1] // PAGE)
        for i in range(0, len(segment.runs), 2)
    ]
