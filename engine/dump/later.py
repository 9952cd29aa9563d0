# SPDX-License-Identifier: Apache-2.0
"""Pages that the images are without: they are given away by a server, before the tasks are ended.

That is large private anonymous memory, as a lazy restore leaves it out (`criu dump --lazy-pages`).
What is small would be waited for at once, a round trip for each.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torpor.engine import native
from torpor.engine.dump.increment import Piece
from torpor.engine.dump.ways.way import Segment
from torpor.engine.errors import BadImage
from torpor.engine.images.pages import PageFlags
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
    run = replace(piece.run, vaddr=low, page_count=(high - low) // PAGE, flags=flags)
    return Piece(run=run, start=piece.start + low - piece.run.vaddr)


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
