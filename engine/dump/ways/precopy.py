# SPDX-License-Identifier: Apache-2.0
"""Memory is copied in rounds while the tree runs; the last stop takes what was written since.

What cannot be watched (shared memory, files, tasks that came late, memory that a device may write
to) is taken in the last stop, in the way that would be chosen without rounds.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.dump.ways import convergence, kept, scan
from torpor.engine.dump.ways.copies import Copies
from torpor.engine.dump.ways.kept import Piece
from torpor.engine.dump.ways.rounds import Rounds
from torpor.engine.dump.ways.tracked import Tracked
from torpor.engine.dump.ways.way import Part, Way
from torpor.engine.kernel import pagemap, uffd
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.memory.areas import Area
from torpor.engine.options import MemoryWay, PreCopyRules, Progress, ProgressFn

Span = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class _Split:
    """A part of which some pages are in files of rounds, and the rest is taken in the last stop."""

    whole: Part
    rest: Part
    kept: Sequence[Piece]
    watched: list[Span] = field(default_factory=list)
    stale: list[Span] = field(default_factory=list)


class PreCopy(Way):
    """Rounds, and another way for the rest (given how many bytes that may be)."""

    kind = MemoryWay.PRECOPY

    def __init__(
        self,
        rounds: Rounds,
        rules: PreCopyRules,
        rest: Callable[[int], Way],
        size_bytes: int,
        progress: ProgressFn,
        *,
        held: bool,
    ) -> None:
        self.reason = ""
        self._held = held
        self._rounds, self._rules, self._size_bytes = rounds, rules, size_bytes
        self._make_rest, self._progress = rest, progress
        self._rest: Way | None = None
        self._splits: list[_Split] = []
        self.rounds, self.watched = rounds.done, rounds.tracked

    def prepare(self) -> None:
        """All rounds, then room for the rest."""
        while not self.reason:
            self._round()
            done = self._rounds.done
            pace = convergence.measured_bytes_s(done) if self._rounds.copies.sets_pace else None
            self.reason = convergence.why_stop(done, self._rules, pace or convergence.COPY_BYTES_S)
        for pid, why in sorted(self._rounds.left_out.items()):
            self.reason += f"; task {pid} is left to the last stop: {why}"
        self._rounds.seal()
        rest_bytes = self._size_bytes - self._rounds.kept_bytes
        self._rest = self._make_rest(max(rest_bytes, 0) + self._rounds.done[-1].dirty_bytes)
        self._rest.prepare()

    def refresh(self, spaces: Mapping[int, AddressSpace]) -> None:
        """The last round, right before the stop: to make room has taken some time."""
        assert self._rest is not None
        self._round()
        self._rest.refresh(spaces)

    def take(self, parts: Sequence[Part]) -> None:
        """Find what was written since, and have it; nothing else."""
        assert self._rest is not None
        taken = []
        for part in parts:
            tracked = self._rounds.tracked.get(part.pid) if part.areas else None
            if part.source is None and tracked is not None:
                split = _look(part, tracked)
                self._splits.append(split)
                taken.append(split.rest)
            else:
                taken.append(part)
        self._rest.take(taken)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What the way of the rest knows."""
        assert self._rest is not None
        with self._rest.reading():
            yield

    def settle(self) -> None:
        """Let go of the tasks, if they run; put together what is where."""
        assert self._rest is not None
        self._rest.settle()
        if not self._held:
            self._rounds.watch_no_more()
        self._rounds.copies.link()
        for split in self._splits:
            _join(split, self._rounds.copies)

    def close(self) -> None:
        """Undo everything."""
        self._rounds.watch_no_more()
        self._rounds.copies.close()
        if self._rest is not None:
            self._rest.close()

    def _round(self) -> None:
        found = self._rounds.one()
        text = (
            f"round {found.number}: {found.copied_bytes >> 20} MiB copied in {found.seconds:.2f} s,"
            f" {found.dirty_bytes >> 10} KiB written meanwhile"
        )
        self._progress(Progress(phase="pre-copy", text=text, done=self._rounds.kept_bytes,
                                total=self._size_bytes))  # fmt: skip


def _look(part: Part, tracked: Tracked) -> _Split:
    """What of a part's areas is still watched, and what of it is not as it was copied."""
    rest = Part(pid=part.pid, forked=part.forked)
    split = _Split(whole=part, rest=rest, kept=tracked.kept)
    runs, others = array("Q"), []
    fd = pagemap.open_pagemap(part.pid)  # it may be another address space since the last round
    for area in part.areas:
        if not _looks_watched(area, tracked):
            others.append(area)
            continue
        try:
            stale = uffd.stale_runs(fd, area.start, area.end)
            runs += uffd.written_runs(fd, area.start, area.end, protect=False)
        except LookupError:
            others.append(area)
            continue
        split.watched.append((area.start, area.end))
        split.stale += kept.spans(stale)
    os.close(fd)
    runs += scan.private_runs(part.pid, others)
    pairs = sorted(zip(runs[::2], runs[1::2], strict=True))
    rest.runs = array("Q", [word for pair in pairs for word in pair])
    return split


def _looks_watched(area: Area, tracked: Tracked) -> bool:
    """Whether it may be, and what was copied of it counts; the scan tells for certain."""
    return area.is_plain and not tracked.is_spoilt(area.start, area.end)


class _Pieces:
    """A source: extents in the order of a part's runs."""

    def __init__(self, words: "array[int]") -> None:
        self._words = words

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """See `Source`."""
        found, at, end = array("Q"), 0, start + size_bytes
        for i in range(0, len(self._words), 3):
            origin, address, size = self._words[i : i + 3]
            low, high = max(at, start), min(at + size, end)
            if low < high:
                found.extend((origin, address + low - at, high - low))
            at += size
        return found


def _join(split: _Split, copies: Copies) -> None:
    """Runs and source of the whole part, and what the parent has of it."""
    valid = kept.without(kept.within(split.kept, sorted(split.watched)), sorted(split.stale))
    split.whole.elsewhere = _joined(
        (one.start, one.end) for one in valid if copies.is_parents(one.file)
    )
    places = [
        (one.start, one.end, native.of_file(copies.fd(one.file)), one.offset)
        for one in valid
        if not copies.is_parents(one.file)
    ]
    rest, at = split.rest, 0
    for start, size in zip(rest.runs[::2], rest.runs[1::2], strict=True):
        low = start
        for origin, address, length in _triples(rest.extents(at, size)):
            places.append((low, low + length, origin, address))
            low += length
        at += size
    places.sort()
    words = array("Q")
    for start, end, origin, address in places:
        words.extend((origin, address, end - start))
    split.whole.runs = _joined((start, end) for start, end, _, _ in places)
    split.whole.source = _Pieces(words)


def _joined(spans: Iterable[Span]) -> "array[int]":
    """(address, bytes) runs of sorted spans."""
    runs = array("Q")
    for start, end in spans:
        if runs and runs[-2] + runs[-1] == start:
            runs[-1] += end - start
        else:
            runs.extend((start, end - start))
    return runs


def _triples(words: "array[int]") -> list[tuple[int, ...]]:
    return [tuple(words[i : i + 3]) for i in range(0, len(words), 3)]
