# SPDX-License-Identifier: Apache-2.0
"""Pages that may come later: marked so in the images, or left out of them and given by a server.

Facts (criu 4.2.1, tried): every dump marks the pages of private anonymous memory as LAZY (2) beside
PRESENT (4), of the heap and of stacks too, but not where it is locked, of huge pages, or the vDSO.
A `restore --lazy-pages` leaves those areas out, and its daemon fills what is marked.

`criu dump --lazy-pages` leaves pages out before the tasks are ended: here large private anonymous
memory. What is small would be waited for at once, a round trip for each.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torpor.engine import native
from torpor.engine.dump.increment import Piece
from torpor.engine.dump.ways.way import Segment
from torpor.engine.errors import BadImage
from torpor.engine.images.pages import PageFlags, PageRun
from torpor.engine.memory.areas import PAGE, Area

LEAST_BYTES = 64 << 10
TASKS = "pagemap-"

Range = tuple[int, int]


def ranges(areas: Sequence[Area]) -> list[Range]:
    """Where the pages of a task are that may come later, by address."""
    return [(area.start, area.end) for area in areas if _may_come_later(area)]


def _may_come_later(area: Area) -> bool:
    plain = area.is_plain and not (area.locked or area.droppable or area.grows_down)
    return plain and area.size_bytes >= LEAST_BYTES


def markable(areas: Sequence[Area]) -> list[Range]:
    """Where pages are marked as CRIU's dumps do it, by address; neighbours are one."""
    found: list[Range] = []
    for area in areas:
        if area.is_plain and not area.locked:
            if found and found[-1][1] == area.start:
                found[-1] = (found[-1][0], area.end)
            else:
                found.append((area.start, area.end))
    return found


def marked(runs: Iterable[PageRun], ranges: Sequence[Range]) -> Iterator[PageRun]:
    """Runs by address, those that are PRESENT and in a range marked as LAZY too."""
    i = 0
    for run in runs:
        at = run.vaddr
        while i < len(ranges) and ranges[i][1] <= at:
            i += 1
        if i == len(ranges) or ranges[i][0] >= run.end or PageFlags.PRESENT not in run.flags:
            yield run
            continue
        for low, high in _touching(ranges, i, run.end):
            if at < low:
                yield _between(run, at, low, run.flags)
            end = min(high, run.end)
            yield _between(run, max(low, at), end, run.flags | PageFlags.LAZY)
            at = end
        if at < run.end:
            yield _between(run, at, run.end, run.flags)


def _touching(ranges: Sequence[Range], first: int, end: int) -> Iterator[Range]:
    for i in range(first, len(ranges)):
        if ranges[i][0] >= end:
            break
        yield ranges[i]


def cut(piece: Piece, later: Sequence[Range]) -> Iterator[Piece]:
    """A piece in parts: those that come later are marked so."""
    if PageFlags.PRESENT not in piece.run.flags:
        yield piece
        return
    at, end = piece.run.vaddr, piece.run.end
    for low, high in later:
        if high <= at or low >= end:
            continue
        if at < low:
            yield _part(piece, at, low, piece.run.flags)
            at = low
        yield _part(piece, at, min(high, end), PageFlags.LAZY)
        at = min(high, end)
    if at < end:
        yield _part(piece, at, end, piece.run.flags)


def _part(piece: Piece, low: int, high: int, flags: PageFlags) -> Piece:
    return Piece(
        run=_between(piece.run, low, high, flags), start=piece.start + low - piece.run.vaddr
    )


def _between(run: PageRun, low: int, high: int, flags: PageFlags) -> PageRun:
    if (low, high, flags) == (run.vaddr, run.end, run.flags):
        return run
    return replace(run, vaddr=low, page_count=(high - low) // PAGE, flags=flags)


class LeftPages:
    """What images are without, of all tasks (see `pagefetch.Pool`)."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._held = {
            int(segment.name.removeprefix(TASKS)): segment.left
            for segment in segments
            if segment.later
        }

    @property
    def must_be_wanted(self) -> bool:
        """See `Pool`: it is nowhere else."""
        return any(self._held.values())

    def read(self, pid: int, address: int, size: int) -> bytes:
        """Pages of a task, straight out of it.

        Raises: BadImage when they were not left out; Vanished when the task is gone.
        """
        held, end, found = self._held.get(pid, []), address + size, b""
        i = max(bisect_right(held, address, key=lambda one: one.start) - 1, 0)
        while address < end:
            if i >= len(held) or not held[i].start <= address < held[i].end:
                raise BadImage("pages are asked for that were not left out",
                               subject=f"task {pid}", cause=f"{address:x}")  # fmt: skip
            one = held[i]
            length = min(one.end, end) - address
            extents = one.part.extents(one.at + address - one.start, length)
            found += native.read_pages(extents, 0, length)
            address, i = address + length, i + 1
        return found
