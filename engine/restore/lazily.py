# SPDX-License-Identifier: Apache-2.0
"""Leaving memory out of a restore: it is filled when the tasks run (`torpor.engine.lazy`).

What is left out is private anonymous memory that is large. The userfaultfds are made while the
tasks still have all rights, areas are registered when nothing of ours touches them any more, right
before the tasks go on; pages that have come to be there by then (the kernel writes to the rseq
area) are written at once.

Another process may be the one that fills (`criu lazy-pages`). It may have pages that we have not,
and no page of theirs may be there before, so it gets the userfaultfds before the kernel writes to
any: what the tasks still do by themselves waits for it.
"""

import os
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torpor.engine import native
from torpor.engine.errors import Error, Refused
from torpor.engine.kernel import fdcalls, pagemap, proc
from torpor.engine.kernel.pagemap import Page
from torpor.engine.lazy import daemon, handing, uffd
from torpor.engine.lazy.daemon import Job
from torpor.engine.lazy.missing import Missing
from torpor.engine.lazy.serve import Space
from torpor.engine.lazy.sources import FilePages
from torpor.engine.memory.areas import PROT_READ, PROT_WRITE, Area
from torpor.engine.restore import arena
from torpor.engine.restore.contents import Contents, TaskPages
from torpor.engine.restore.spawn import Living

if TYPE_CHECKING:
    from socket import socket

    from torpor.engine.restore.work import Work

MADV_DONTNEED, MADV_WIPEONFORK = 4, 18
TMPFS_MAGIC = 0x01021994
LEAST_BYTES = 1 << 20
"""An area with less is filled before the tasks run."""
WORTH_BYTES = 2 << 30
"""So much is filled lazily when that is left to us: it takes longer than a second elsewhere."""


@dataclass(slots=True)
class LazyMemory:
    """What is left out so far; empty when nothing is."""

    wanted: bool = False
    filled_by: "socket | None" = None
    """Connection to another process that fills."""
    only_lacking: bool = False
    """The images are without some pages: those have to come later, and no others do."""
    fds: dict[int, int] = field(default_factory=dict)
    """Pid of a task, as it sees itself → a userfaultfd of its memory."""
    only_marked: bool = False
    """The other process fills only what is marked as LAZY, and wants to know of each task."""
    size_bytes: int = 0

    def choose(self, areas: Sequence[Area], contents: Contents, pid: int) -> set[int]:
        """Starts of the areas of a task that are left out."""
        if not self.wanted:
            return set()
        pages = contents.of(pid)
        return {
            area.start
            for area in areas
            if (pages.lacks(area) if self.only_lacking else _is_large(area, pages))
            and (pages.is_marked(area) or not self.only_marked)
        }

    def prepare(self, task: Living) -> None:
        """Have a userfaultfd of a task, which may still do all."""
        if task.lazy and self.filled_by is None:
            self._open(task)

    def _open(self, task: Living) -> None:
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

    def hand_over(self, work: "Work") -> None:
        """To the process that fills; their memory is written by nobody else from now on."""
        if self.filled_by is None:
            return
        for task in work.alive():
            if task.lazy or (self.only_marked and task.image.memory):
                self._open(task)
        for pid, fd in self.fds.items():
            task, source = work.living[pid], work.contents.of(pid)
            for area in task.areas:
                if area.start in task.lazy and source.lacks(area):
                    _drop(task, area)
                    runs = source.within(area)
                    early = [(start, start + size, offset) for start, size, offset in runs]
                    work.contents.write_early(task.pid, pid, early)
            self._register(work, task)
            handing.hand(self.filled_by, pid, fd)
        self.close()

    def begin(self, work: "Work") -> None:
        """Nothing of ours touches their memory any more: from now on pages are waited for."""
        if not self.fds:
            return
        spaces, files = {}, list[int]()
        for pid, fd in self.fds.items():
            source = work.contents.of(pid)
            missing = self._register(work, work.living[pid])
            spaces[pid] = Space(fd=fd, missing=missing, source=FilePages(source.fd))
            files.append(source.fd)
        pids = [work.tree.root.pid, *(pid for pid in self.fds if pid != work.tree.root.pid)]
        self.fds = {}
        job = Job(spaces=spaces, directory=work.snapshot.images.fd, files=files)
        daemon.start(job, [proc.process(work.living[pid].pid) for pid in pids])

    def _register(self, work: "Work", task: Living) -> Missing:
        """What is there already is written; all else, which is returned, is waited for."""
        pid, source = task.image.pid, work.contents.of(task.image.pid)
        areas = [area for area in task.areas if area.start in task.lazy]
        missing = Missing.of(
            (start, start + size, offset)
            for area in areas
            for start, size, offset in source.within(area)
        )
        there = _present(task.pid, areas)
        early = [piece for start, end in there for piece in missing.take(start, end)]
        work.contents.write_early(task.pid, pid, early)
        for area in areas:
            uffd.register(self.fds[pid], area.start, area.end)
        self.size_bytes += missing.size_bytes
        return missing

    def finish(self, work: "Work") -> None:
        """The tasks run.

        Raises: Error when nobody fills them; then they are ended.
        """
        if self.filled_by is None:
            return
        try:
            handing.end(self.filled_by)
        except Error:
            for task in work.alive():
                os.kill(task.pid, signal.SIGKILL)
            raise

    def close(self) -> None:
        """Give it up."""
        for fd in self.fds.values():
            with suppress(OSError):
                os.close(fd)
        self.fds = {}


def _is_large(area: Area, pages: TaskPages) -> bool:
    return may_wait(area) and sum(size for _, size, _ in pages.within(area)) >= LEAST_BYTES


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


def _drop(task: Living, area: Area) -> None:
    """What a fork has brought into an area, and its fresh memory."""
    result = task.arena.call(task.pid, "madvise", area.start, area.size_bytes, MADV_DONTNEED)
    arena.check(result, "madvise", f"{task.image.subject}, {area.subject}")


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
