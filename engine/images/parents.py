# SPDX-License-Identifier: Apache-2.0
"""Directories of earlier dumps: the pages that later ones leave out.

Facts: CRIU keeps a link `parent` in a directory, relative to it, that leads to the dump before;
runs of a pagemap with PARENT have their bytes in the pagemap of the same name there, or further up
in the same way. A task without a pagemap there has none. A pre-dump has only inventory, pagemaps
and pages. The link leads out of the directory, so it is followed only for callers that ask for it;
rounds inside of it (`rounds.py`) always are.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.closing import Closing
from torpor.engine.errors import BadImage, Error
from torpor.engine.images import pages, rounds
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.failures import translated
from torpor.engine.images.kinds import file_name
from torpor.engine.images.pages import LocatedRun, PageFlags, PageRun
from torpor.engine.images.writing import PARENT

OF_TASKS = re.compile(r"pagemap-\d")
MAX_DEPTH = 200
OPEN_WRITABLE = os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Consecutive pages, and where their bytes are: level of the chain, file and offset."""

    vaddr: int
    size_bytes: int
    level: int
    fd: int
    offset: int

    @property
    def end(self) -> int:
        """First address behind."""
        return self.vaddr + self.size_bytes

    def cut(self, start: int, end: int) -> "Stored":
        """The part between two addresses."""
        start, end = max(start, self.vaddr), min(end, self.end)
        return Stored(
            vaddr=start,
            size_bytes=end - start,
            level=self.level,
            fd=self.fd,
            offset=self.offset + start - self.vaddr,
        )


class Chain(Closing):
    """A directory and those that its link leads to, youngest first. Use it in `with`."""

    def __init__(
        self,
        images: ImageDirectory,
        *,
        links: bool = True,
        later: bool = False,
        spare: bool = False,
    ) -> None:
        self.levels = [images]
        self._links = links
        self._spare = spare
        """Nobody needs earlier images afterwards: their files may be written to."""
        self._later = later
        """Pages of tasks that are still where it was dumped are passed over."""
        self.files: dict[tuple[int, str], int] = {}
        """Level and name of what is open → descriptor."""
        self.changed: set[tuple[int, int]] = set()
        """Level and descriptor of files that were changed."""
        self._own: list[ImageDirectory] = []
        self._known: dict[tuple[int, str], list[Stored]] = {}

    @classmethod
    def open(cls, path: Path) -> "Chain":
        """The chain that begins with a directory of an earlier dump.

        Raises: BadImage, Denied, KernelError.
        """
        images = ImageDirectory.open(path, verify=Verify.WITHOUT_PAGES)
        chain = cls(images)
        chain._own.append(images)
        return chain

    def stored(self, name: str, level: int = 0) -> Sequence[Stored]:
        """All pages of a pagemap, by address, wherever in the chain they are.

        Raises: BadImage for a run that no directory has.
        """
        key = (level, name)
        if key not in self._known:
            self._known[key] = self._resolve(name, level)
        return self._known[key]

    def file(self, level: int, name: str) -> int:
        """Descriptor of an image, kept open."""
        if (level, name) not in self.files:
            self.files[level, name] = self.levels[level].open_file(name)
        return self.files[level, name]

    def merged(self, name: str) -> tuple[tuple[LocatedRun, ...], int]:
        """All pages of a pagemap in one file: its runs and its descriptor.

        The file has no name; or, of spare images, it is the earlier one that has most of the pages.
        """
        stored = self.stored(name)
        base = _largest(stored) if self._spare else None
        fd = self._nameless() if base is None else os.open(f"/proc/self/fd/{base}", OPEN_WRITABLE)
        runs, end = [], os.fstat(fd).st_size
        try:
            for one in stored:
                run = PageRun(vaddr=one.vaddr, page_count=one.size_bytes // pages.PAGE_BYTES)
                if one.fd == base:
                    runs.append(LocatedRun(run=run, offset=one.offset))
                    continue
                with translated("copy", file_name(name)):
                    _copy(one, fd, end)
                runs.append(LocatedRun(run=run, offset=end))
                end += one.size_bytes
        except BaseException:
            os.close(fd)
            raise
        return tuple(runs), fd

    def close(self) -> None:
        """Close all that was opened here."""
        for fd in self.files.values():
            os.close(fd)
        for images in self._own:
            images.close()
        self.files.clear()
        self._own.clear()

    def _resolve(self, name: str, level: int) -> list[Stored]:
        images = self.levels[level]
        if name not in images:
            return []
        pagemap = pages.read_pagemap(images, name)
        found: list[Stored] = []
        for one in pagemap.located():
            if one.offset is not None:
                fd = self.file(level, pagemap.pages_name)
                found.append(
                    Stored(
                        vaddr=one.run.vaddr,
                        size_bytes=one.run.size_bytes,
                        level=level,
                        fd=fd,
                        offset=one.offset,
                    )
                )
            elif not (self._later and OF_TASKS.match(name) and one.run.is_elsewhere):
                found += self._above(name, level, one.run)
        return found

    def _above(self, name: str, level: int, run: PageRun) -> list[Stored]:
        """Pages of a run that this level has not."""
        if PageFlags.PARENT not in run.flags:
            raise _missing(name, run, "they are still where it was dumped (--lazy-pages)")
        if level + 1 == len(self.levels) and not self.follow():
            what = f"there is no link {PARENT} to an earlier dump"
            raise _missing(
                name, run, what if self._links else "links to earlier dumps are not followed here"
            )
        parts = overlapping(self.stored(name, level + 1), run.vaddr, run.end)
        if sum(part.size_bytes for part in parts) != run.size_bytes:
            raise _missing(name, run, f"{self.levels[level + 1].path} has them not")
        return parts

    def follow(self) -> bool:
        """Open the parent of the oldest directory; whether there is one.

        Raises: BadImage when it is no directory of images, or leads back to one of the chain.
        """
        last = self.levels[-1]
        path = rounds.before(last.path, last.facts) or last.path / PARENT
        if path.name == PARENT and not (self._links and os.path.lexists(path)):
            return False
        if len(self.levels) > MAX_DEPTH:
            raise BadImage("too many parents", subject=str(path))
        images = ImageDirectory.open(Path(os.path.realpath(path)), verify=Verify.WITHOUT_PAGES)
        self._own.append(images)
        if any(os.path.samestat(os.fstat(images.fd), os.fstat(one.fd)) for one in self.levels):
            raise BadImage("leads in a circle of parents", subject=str(path))
        self.levels.append(images)
        return True

    def _nameless(self) -> int:
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        with suppress(OSError):
            return os.open(self.levels[0].path, flags, 0o600)
        return os.memfd_create("torpor-pages", os.MFD_CLOEXEC)


def overlapping(stored: Sequence[Stored], start: int, end: int) -> list[Stored]:
    """The parts of pages, by address, that are between two addresses."""
    found = []
    for i in range(max(bisect_right(stored, start, key=lambda one: one.vaddr) - 1, 0), len(stored)):
        if stored[i].vaddr >= end:
            break
        if stored[i].end > start:
            found.append(stored[i].cut(start, end))
    return found


def _largest(stored: Sequence[Stored]) -> int | None:
    """The file of an earlier dump that has most of the pages."""
    sizes: dict[int, int] = {}
    for one in stored:
        if one.level:
            sizes[one.fd] = sizes.get(one.fd, 0) + one.size_bytes
    return max(sizes, key=sizes.__getitem__, default=None)


def _copy(one: Stored, fd: int, offset: int) -> None:
    done = 0
    while done < one.size_bytes:
        got = os.copy_file_range(
            one.fd, fd, one.size_bytes - done, one.offset + done, offset + done
        )
        if not got:
            raise BadImage("ends early", subject="pages of a parent")
        done += got


def _missing(name: str, run: PageRun, cause: str) -> Error:
    return BadImage(
        f"pages {run.vaddr:x}-{run.end:x} are nowhere",
        subject=file_name(name),
        cause=cause,
        remedy="keep the directories of all dumps of a chain where they were",
    )
