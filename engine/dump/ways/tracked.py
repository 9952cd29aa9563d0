# SPDX-License-Identifier: Apache-2.0
"""One address space whose writes are watched: what was written, and what of it is kept.

A scan that fails in the middle has protected pages without telling which: that area is spoilt, and
counts as never copied, until a scan of all its pages has succeeded.
"""

import os
from array import array
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.dump.ways import kept
from torpor.engine.dump.ways.kept import Piece
from torpor.engine.dump.ways.scan import has_common_pages
from torpor.engine.errors import Error, Refused
from torpor.engine.kernel import pagemap, proc, uffd
from torpor.engine.kernel.maps import parse_maps, parse_smaps
from torpor.engine.kernel.proc import parse_status


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
        ns_pid = parse_status(proc.read_text(pid, "status")).ns_tgid[-1]
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

    def extents(self, runs: "array[int]") -> "array[int]":
        """Where (address, bytes) runs of it are read."""
        # What others have copy-on-write is not pinned (see native/seam/memory.c).
        origin = native.of_file(self.memory) if self.forked else native.of_task(self.pid)
        words = array("Q")
        for at, size in zip(runs[::2], runs[1::2], strict=True):
            words.extend((origin, at, size))
        return words

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
