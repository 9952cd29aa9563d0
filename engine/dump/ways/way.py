# SPDX-License-Identifier: Apache-2.0
"""What every way to take memory has in common: parts, their bytes, and the steps of a way.

A part is memory of one task. A way says of each where its bytes are (`Source`): in room of ours
that was filled while the task stood still, in a snapshot of it, in the task itself, in a file.
Whoever writes, sends or compares the pages asks for extents and need not know the way.
"""

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from torpor.engine import native
from torpor.engine.closing import Closing
from torpor.engine.dump.ways import scan
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.memory.areas import Area
from torpor.engine.options import MemoryWay, Round


class Source(Protocol):
    """Where the bytes of a part are."""

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """Of bytes from ``start`` on: flat triples, see `native.pages`."""


@dataclass(slots=True, kw_only=True)
class Part:
    """Memory of one task: (address, bytes) runs; ``shift`` is taken off an address in the image.

    Of private memory ``areas`` are known first, and a way calls `scan` when it is time.
    """

    pid: int
    areas: Sequence[Area] = ()
    runs: "array[int]" = field(default_factory=lambda: array("Q"))
    shift: int = 0
    carried: bool = False
    """A fork has this memory too."""
    forked: bool = False
    """Others have the same pages copy-on-write."""
    source: Source | None = None
    elsewhere: "array[int]" = field(default_factory=lambda: array("Q"))
    """Further runs, whose bytes the parent of the images has already."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the runs that have a source."""
        return sum(self.runs[1::2])

    def scan(self, pid: int) -> None:
        """Find the runs of the areas: the pages that ``pid``, this task or a copy of it, has."""
        if self.areas:
            self.runs = scan.private_runs(pid, self.areas)

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """Where bytes from ``start`` on are."""
        if not size_bytes:
            return array("Q")
        assert self.source is not None
        return self.source.extents(start, size_bytes)


@dataclass(frozen=True, slots=True)
class Left:
    """Pages that images are without, one behind the other, and where in a part they are."""

    start: int
    end: int
    part: Part
    at: int


@dataclass(slots=True, kw_only=True)
class Segment:
    """What goes into one pagemap, in the order of addresses in the image."""

    name: str
    parts: list[Part]
    later: Sequence[tuple[int, int]] = ()
    """Where its pages are left out of the images (see `torpor.engine.dump.later`)."""
    marked: Sequence[tuple[int, int]] = ()
    """Where its pages are marked as LAZY although the images have them."""
    left: list[Left] = field(default_factory=list)
    """Those pages, once the pagemap is written."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes + sum(part.elsewhere[1::2]) for part in self.parts)


class Way(Closing):
    """A way to take memory of one tree; a context manager, its end gives back what it needs.

    The steps come in this order: `prepare` before the stop, `take` while the tasks stand still,
    `settle` when they may run again. From then on the runs of every part and its source are
    known, and what they lead to is there until the end.
    """

    kind: MemoryWay
    reason: str
    """Why it was chosen, for the user."""
    rounds: Sequence[Round] = ()
    """Of a pre-copy."""
    writers: int = 2
    """Threads that read and write the pages."""
    watched: Collection[int] = ()
    """Tasks whose areas say that a userfaultfd watches them, and it is ours."""

    def prepare(self) -> None:
        """What may take its time while the tree runs."""

    def refresh(self, spaces: Mapping[int, AddressSpace]) -> None:
        """The same, right before the stop, once all trees are prepared; takes little time.

        ``spaces`` are those by which the tasks will be asked.
        """

    def take(self, parts: Sequence[Part]) -> None:
        """Have the bytes, or a hold on them; parts that have a source are left alone."""
        raise NotImplementedError

    def settle(self) -> None:
        """What may wait until after the thaw."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While bytes are read; a way may know better why it fails."""
        yield

    def close(self) -> None:
        """Give everything back. Never raises."""


@dataclass(slots=True)
class Content:
    """A source: bytes of ours, of a memfd that nobody maps for one."""

    data: bytes

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """See `Source`."""
        return native.of_bytes(self.data, start, size_bytes)


class Runs:
    """A source: runs of a task's memory at the addresses that they have there."""

    def __init__(self, origin: int, runs: "array[int]") -> None:
        self._origin, self._runs = origin, runs
        self._ends: list[int] = []

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """See `Source`."""
        if not self._ends:
            self._ends = list(accumulate(self._runs[1::2]))
        found, end = array("Q"), start + size_bytes
        for i in range(bisect_right(self._ends, start), len(self._ends)):
            first = self._ends[i] - self._runs[2 * i + 1]
            if first >= end:
                break
            low, high = max(first, start), min(self._ends[i], end)
            found.extend((self._origin, self._runs[2 * i] + low - first, high - low))
        return found
