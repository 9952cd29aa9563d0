# SPDX-License-Identifier: Apache-2.0
"""Rounds of a pre-copy: what was written since the last one is copied while the tree runs.

A page is protected before it is copied. So bytes that a program changes while they are read do no
harm: the page counts as written, and comes again. The same holds for what is gone when it is
read: it is not there any more, or was written anew.

A scan that fails in the middle has protected pages without telling which: that area is spoilt, and
counts as never copied, until a scan of all its pages has succeeded.
"""

import os
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.ways import kept
from torpor.engine.dump.ways.filing import Filing
from torpor.engine.dump.ways.kept import Piece
from torpor.engine.dump.ways.scan import has_common_pages
from torpor.engine.errors import Error, Refused, Vanished
from torpor.engine.images.failures import translated
from torpor.engine.kernel import pagemap, proc, uffd
from torpor.engine.kernel.maps import parse_maps, parse_smaps
from torpor.engine.kernel.proc import parse_status
from torpor.engine.options import Round

SMALLEST_TASK = 1 << 20
"""Bytes; with less the last stop is done as fast."""


class Behind(Exception):
    """A device may write to the task's memory unseen."""


@dataclass(slots=True, kw_only=True)
class Tracked:
    """One address space whose writes are watched."""

    pid: int
    ns_pid: int
    watch: uffd.Watch
    memory: int
    """Descriptor of /proc/PID/mem."""
    forked: bool = False
    """Others have pages of it copy-on-write."""
    base: int | None = None
    """Number of the file with what was copied first."""
    layout: list[Piece] = field(default_factory=list)
    """What is where in that file."""
    kept: list[Piece] = field(default_factory=list)
    """What was copied, and not written when it was last looked at."""
    spoilt: list[tuple[int, int]] = field(default_factory=list)
    """Areas of which it is not known what was copied; sorted in no way."""
    _maps: bytes = b""

    @classmethod
    def begin(cls, pid: int, seize: int) -> "Tracked":
        """Watch a process. Raises as `uffd.Watch.open`."""
        ns_pid = parse_status(proc.read_text(pid, "status")).ns_pid[-1]
        vmas = parse_smaps(proc.read_text(pid, "smaps"))
        if uffd.has_own(vmas):
            raise Refused("uses userfaultfd itself", subject=f"task {pid}")
        memory = pagemap.open_memory(pid)
        try:
            watch = uffd.Watch.open(pid, seize)
        except BaseException:
            os.close(memory)
            raise
        forked = any(map(has_common_pages, vmas))
        return cls(pid=pid, ns_pid=ns_pid, watch=watch, memory=memory, forked=forked)

    def written(self) -> "array[int]":
        """Runs to copy now, protected from here on.

        Raises:
            LookupError: it has another address space by now (exec).
            Behind: its memory cannot be copied while it runs.
        """
        self._cover()
        runs = array("Q")
        fd = pagemap.open_pagemap(self.pid)
        try:
            for area in self.watch.areas:
                runs += self._scan(fd, area)
        finally:
            os.close(fd)
        behind = uffd.written_behind(self.pid, parse_maps(proc.read_text(self.pid, "maps")))
        if behind:
            raise Behind(behind)
        return runs

    def dirty_bytes(self) -> int:
        """How much was written since."""
        total = 0
        with suppress(Error), ExitStack() as stack:
            fd = pagemap.open_pagemap(self.pid)
            stack.callback(os.close, fd)
            for start, end in self.watch.areas:
                with suppress(LookupError):
                    total += sum(uffd.written_runs(fd, start, end, protect=False)[1::2])
        return total

    def is_spoilt(self, start: int, end: int) -> bool:
        """Whether what was copied of a range does not count."""
        return any(low < end and start < high for low, high in self.spoilt)

    def end(self) -> None:
        """Watch no more."""
        self.watch.close()
        os.close(self.memory)

    def _cover(self) -> None:
        """Watch what is new. It stands still for that, so it is done when maps is another."""
        now = proc.read_bytes(self.pid, "maps")
        if now == self._maps and not self.spoilt:
            return
        had_some = bool(self.watch.areas)
        fresh = self.watch.cover()
        if had_some and len(fresh) == len(self.watch.areas):
            raise LookupError("nothing of it is watched any more")
        self._maps = now
        self.spoilt += fresh

    def _scan(self, fd: int, area: tuple[int, int]) -> "array[int]":
        everything = self.is_spoilt(*area)
        try:
            if everything:
                self.kept = kept.without(self.kept, [area])
                runs = uffd.all_runs(fd, *area)
            else:
                runs = uffd.written_runs(fd, *area, protect=True)
        except LookupError:  # changed just now
            self.kept = kept.without(self.kept, [area])
            self.spoilt.append(area)
            return array("Q")
        if everything:
            self.spoilt = [one for one in self.spoilt if one[1] <= area[0] or area[1] <= one[0]]
        return runs


@dataclass(slots=True, kw_only=True)
class Rounds:
    """All address spaces of a tree, and files with what was copied of them."""

    root: int
    filing: Filing
    seize: int = 0
    tracked: dict[int, Tracked] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    """Processes that are left to the last stop, and why."""
    done: list[Round] = field(default_factory=list)

    def one(self) -> Round:
        """Copy what was written since the last one."""
        begin = time.monotonic()
        copied, again = 0, []
        for one in self._of_tree():
            runs = self._written(one)
            if one.base is None and runs:
                self._copy_base(one, runs)
                copied += sum(runs[1::2])
            elif runs:
                again.append((one, runs))
        copied += self._copy_again(again)
        found = Round(
            number=len(self.done),
            copied_bytes=copied,
            seconds=time.monotonic() - begin,
            dirty_bytes=sum(one.dirty_bytes() for one in self.tracked.values()),
        )
        self.done.append(found)
        return found

    @property
    def kept_bytes(self) -> int:
        """What the last stop need not copy, as far as is known."""
        return sum(kept.size_bytes(one.kept) for one in self.tracked.values())

    def seal(self) -> None:
        """No base is changed from now on."""
        self.filing.seal(
            {
                one.base: (f"pagemap-{one.ns_pid}", one.layout)
                for one in self.tracked.values()
                if one.base is not None
            }
        )

    def watch_no_more(self) -> None:
        """Undo what the tasks have of it."""
        for one in self.tracked.values():
            one.end()
        self.tracked.clear()

    def _of_tree(self) -> list[Tracked]:
        """Those that are there now; others are forgotten."""
        there = {task.pid for task in list_tasks(self.root) if task.tids}
        for pid in set(self.tracked) - there:
            self.tracked.pop(pid).end()
        return [one for pid in sorted(there) if (one := self._begun(pid))]

    def _begun(self, pid: int) -> Tracked | None:
        if pid not in self.tracked and pid not in self.left_out and _is_worth_it(pid):
            try:
                self.tracked[pid] = Tracked.begin(pid, self.seize)
            except Error as error:
                self.left_out[pid] = error.cause or error.what
        return self.tracked.get(pid)

    def _written(self, one: Tracked) -> "array[int]":
        try:
            return one.written()
        except Behind as behind:
            self.left_out[one.pid] = f"a device may write to its memory: {behind}"
        except (LookupError, Vanished):  # it has ended, or is another program: see the next round
            pass
        except Error as error:
            self.left_out[one.pid] = error.cause or error.what
        self.tracked.pop(one.pid).end()
        return array("Q")

    def _copy_base(self, one: Tracked, runs: "array[int]") -> None:
        one.base = self.filing.base()
        _write(_extents(one, runs), self.filing.fd(one.base))
        one.layout = list(kept.from_runs(runs, one.base, 0))
        one.kept = kept.overlaid(one.kept, one.layout)

    def _copy_again(self, again: "Sequence[tuple[Tracked, array[int]]]") -> int:
        """To the bases where they have a place, else to a new file; bytes."""
        if not again:
            return 0
        number = self.filing.nameless()
        extents, offset, used = array("Q"), 0, False
        for one, runs in again:
            extents += _extents(one, runs)
        _write(extents, self.filing.fd(number))
        for one, runs in again:
            fresh = list(kept.from_runs(runs, number, offset))
            offset += sum(runs[1::2])
            used |= self._file(one, fresh)
        if not used:
            self.filing.drop(number)
        return offset

    def _file(self, one: Tracked, fresh: list[Piece]) -> bool:
        """Put pieces of a round where they belong; whether any stays in the round's file."""
        base = one.base
        if base is None or self.filing.is_parents(base):
            one.kept = kept.overlaid(one.kept, fresh)
            return True
        spans = [(piece.start, piece.end) for piece in fresh]
        slots = kept.within(one.layout, spans)
        places = [(slot.start, slot.end) for slot in slots]
        self.filing.put(fresh[0].file, kept.within(fresh, places), slots)
        others = kept.without(fresh, places)
        one.kept = kept.overlaid(one.kept, [*slots, *others])
        return bool(others)


def _write(extents: "array[int]", fd: int) -> None:
    with translated("write", "pages of a round"):
        native.write_pages(extents, fd, native.PagesProgress(), lenient=True)


def _extents(one: Tracked, runs: "array[int]") -> "array[int]":
    """What others have copy-on-write is not pinned (see native/seam/memory.c)."""
    origin = native.of_file(one.memory) if one.forked else native.of_task(one.pid)
    words = array("Q")
    for at, size in zip(runs[::2], runs[1::2], strict=True):
        words.extend((origin, at, size))
    return words


def _is_worth_it(pid: int) -> bool:
    with suppress(Error):
        raw = parse_status(proc.read_text(pid, "status")).raw
        return int(raw.get("RssAnon", "0").split()[0]) << 10 >= SMALLEST_TASK
    return False
