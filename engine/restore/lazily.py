# SPDX-License-Identifier: Apache-2.0
"""Leaving memory out of a restore: it is filled when the tasks run (`torpor.engine.lazy`).

What is left out is private anonymous memory that is large. The userfaultfds are made while the
tasks still have all rights, areas are registered when nothing of ours touches them any more, right
before the tasks go on; pages that have come to be there by then (the kernel writes to the rseq
area) are written at once.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torpor.engine import native
from torpor.engine.errors import Refused
from torpor.engine.kernel import fdcalls, pagemap
from torpor.engine.kernel.pagemap import Page
from torpor.engine.lazy import daemon, uffd
from torpor.engine.lazy.daemon import Job
from torpor.engine.lazy.missing import Missing
from torpor.engine.lazy.serve import Space
from torpor.engine.memory.areas import PROT_READ, PROT_WRITE, Area
from torpor.engine.restore.contents import Contents
from torpor.engine.restore.spawn import Living

if TYPE_CHECKING:
    from torpor.engine.restore.work import Work

MADV_WIPEONFORK = 18
TMPFS_MAGIC = 0x01021994
LEAST_BYTES = 1 << 20
"""An area with less is filled before the tasks run."""
WORTH_BYTES = 2 << 30
"""So much is filled lazily when that is left to us: it takes longer than a second elsewhere."""


@dataclass(slots=True)
class LazyMemory:
    """What is left out so far; empty when nothing is."""

    wanted: bool = False
    fds: dict[int, int] = field(default_factory=dict)
    """Pid of a task, as it sees itself → a userfaultfd of its memory."""
    size_bytes: int = 0
    _child: int = 0

    def choose(self, areas: Sequence[Area], contents: Contents, pid: int) -> set[int]:
        """Starts of the areas of a task that are left out."""
        if not self.wanted:
            return set()
        return {
            area.start
            for area in areas
            if may_wait(area)
            and sum(size for _, size, _ in contents.of(pid).within(area)) >= LEAST_BYTES
        }

    def prepare(self, task: Living) -> None:
        """Have a userfaultfd of a task, which may still do all."""
        if not task.lazy:
            return
        inside = task.arena.call(task.pid, "userfaultfd", uffd.FLAGS)
        if inside < 0:
            raise Refused(
                "memory cannot be filled lazily",
                subject=task.image.subject,
                cause=os.strerror(-inside),
                remedy="restore without --lazy, or with CAP_SYS_PTRACE",
            )
        pidfd = native.pidfd_open(task.pid)
        try:
            self.fds[task.image.pid] = native.pidfd_getfd(pidfd, inside)
        finally:
            os.close(pidfd)
            task.arena.call(task.pid, "close", inside)
        uffd.begin(self.fds[task.image.pid])

    def begin(self, work: "Work") -> None:
        """Nothing of ours touches their memory any more: from now on pages are waited for."""
        if not self.fds:
            return
        spaces = {}
        for pid, fd in self.fds.items():
            task, source = work.living[pid], work.contents.of(pid)
            areas = [a for a in task.areas if a.start in task.lazy]
            there = _present(task.pid, areas)
            missing = Missing.of(
                (start, start + size, offset)
                for area in areas
                for start, size, offset in source.within(area)
            )
            early = [piece for start, end in there for piece in missing.take(start, end)]
            work.contents.write_early(task.pid, pid, early)
            for area in areas:
                uffd.register(fd, area.start, area.end)
            self.size_bytes += missing.size_bytes
            spaces[pid] = Space(fd=fd, missing=missing, source=source.fd)
        pids = [work.tree.root.pid, *(pid for pid in self.fds if pid != work.tree.root.pid)]
        self.fds = {}
        job = Job(spaces=spaces, directory=work.snapshot.images.fd)
        self._child = daemon.start(job, [work.living[pid].pid for pid in pids])

    def finish(self) -> None:
        """The tasks run."""
        if self._child:
            os.waitpid(self._child, 0)

    def close(self) -> None:
        """Give it up."""
        for fd in self.fds.values():
            with suppress(OSError):
                os.close(fd)
        self.fds = {}


def may_wait(area: Area) -> bool:
    """Whether the pages of an area can come later."""
    return (
        area.is_plain
        and area.prot & (PROT_READ | PROT_WRITE) == PROT_READ | PROT_WRITE
        and not (area.locked or area.droppable or area.grows_down)
        and MADV_WIPEONFORK not in area.advice
    )


def is_worth_it(stored_bytes: int, *, in_memory: bool) -> bool:
    """Whether to fill lazily so much. Images in memory are read several times as fast."""
    return stored_bytes >= (WORTH_BYTES if in_memory else WORTH_BYTES // 4)


def is_in_memory(fd: int) -> bool:
    """Whether a directory is on tmpfs."""
    return fdcalls.statfs_magic(b"/proc/self/fd/%d" % fd) == TMPFS_MAGIC


def without(areas: Sequence[Area], starts: Collection[int]) -> list[Area]:
    """Areas but for those that are left out."""
    return [area for area in areas if area.start not in starts]


def _present(pid: int, areas: Sequence[Area]) -> list[tuple[int, int]]:
    """Pages that are there."""
    fd = pagemap.open_pagemap(pid)
    present = int(Page.PRESENT | Page.SWAPPED)
    try:
        found = []
        for area in areas:
            flat = native.scan_pages(fd, area.start, area.end, any_of=present, returned=present)
            found += list(zip(flat[0::3], flat[1::3], strict=True))
        return found
    finally:
        os.close(fd)
