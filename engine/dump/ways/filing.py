# SPDX-License-Identifier: Apache-2.0
"""Files that the rounds of a pre-copy fill.

What the first round copies of a task is its base: one file, in the order of addresses. What comes
again is put in its place there; pages that are new go to files without a name.

Where the tasks stand still until the images are whole, their bases are images of their own before
the stop: a directory `precopy` inside of the other, its parent. So nothing is written twice.
Otherwise bases have no name either, and the images get a copy.
"""

import os
from array import array
from collections.abc import Collection, Iterable, Sequence

from torpor.engine import native
from torpor.engine.dump.images import inventory
from torpor.engine.dump.ways import kept
from torpor.engine.dump.ways.copies import Written
from torpor.engine.dump.ways.kept import Piece
from torpor.engine.dump.ways.tracked import Tracked
from torpor.engine.images.failures import translated
from torpor.engine.images.pages import PAGE_BYTES, PageRun, write_pagemap
from torpor.engine.images.writing import NewImageDirectory

NAME = "precopy"
"""The directory of the bases."""
MEMORY_NAME = "torpor-pages"


class Filing:
    """`Copies` of one tree in files of their own. With ``bases`` bases are images."""

    sets_pace = False

    def __init__(self, images: NewImageDirectory, *, bases: bool) -> None:
        self._images = images
        self._wanted = bases
        self._bases: NewImageDirectory | None = None
        self._files: dict[int, int] = {}
        self._named: dict[int, int] = {}
        """Number of a base → N of its pages-N."""
        self._count = 0
        self.is_sealed = False

    def copy(self, written: Written) -> int:
        """See `Copies`."""
        copied, again = 0, []
        for one, runs in written:
            if one.base is None and runs:
                self._copy_base(one, runs)
                copied += sum(runs[1::2])
            elif runs:
                again.append((one, runs))
        return copied + self._copy_again(again)

    def link(self) -> None:
        """See `Copies`; the link is made with the bases."""

    def fd(self, number: int) -> int:
        """Its descriptor."""
        return self._files[number]

    def is_parents(self, number: int) -> bool:
        """Whether its pages are in the images of a parent."""
        return self.is_sealed and number in self._named

    def _nameless(self) -> int:
        """A new file without a name."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        try:
            fd = os.open(self._images.place, flags, 0o600)
        except OSError:  # a file system that has none
            fd = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC)
        return self._add(fd)

    def _base(self) -> int:
        """A new file for what the first round copies of a task."""
        if not self._wanted or self.is_sealed:
            return self._nameless()
        if self._bases is None:
            self._bases = self._images.inside(NAME)
        pages_id = len(self._named) + 1
        number = self._add(self._bases.create_file(f"pages-{pages_id}"))
        self._named[number] = pages_id
        return number

    def _put(self, source: int, pieces: Iterable[Piece], slots: Sequence[Piece]) -> None:
        """Copy pieces of a file to their places in others; both are of the same sizes."""
        for piece, slot in zip(pieces, slots, strict=True):
            with translated("write", "pages of a round"):
                data = os.pread(self.fd(source), piece.end - piece.start, piece.offset)
                os.pwrite(self.fd(slot.file), data, slot.offset)

    def _drop(self, number: int) -> None:
        """Nothing in it is needed any more."""
        if number not in self._named:
            os.close(self._files.pop(number))

    def seal(self, tracked: Collection[Tracked]) -> None:
        """Have the bases whole."""
        if self._bases is None:
            return
        layouts = {one.base: (f"pagemap-{one.ns_pid}", one.layout) for one in tracked}
        inventory(self._bases)
        for number, pages_id in list(self._named.items()):
            if number not in layouts:  # its task has ended
                os.unlink(f"pages-{pages_id}.img", dir_fd=self._bases.fd)
                os.close(self._files.pop(number))
                del self._named[number]
                continue
            name, pieces = layouts[number]
            runs = [
                PageRun(vaddr=one.start, page_count=(one.end - one.start) // PAGE_BYTES)
                for one in pieces
            ]
            write_pagemap(self._bases, name, pages_id, runs)
            self._bases.digested(f"pages-{pages_id}", native.digest_file(self.fd(number)))
        self._bases.finish()
        self._images.link_parent(NAME)
        self.is_sealed = True

    def close(self) -> None:
        """Close all; bases that are not whole are given up."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        if self._bases is not None:
            self._bases.abort()

    def _copy_base(self, one: Tracked, runs: "array[int]") -> None:
        one.base = self._base()
        _write(one.extents(runs), self.fd(one.base))
        one.layout = list(kept.from_runs(runs, one.base, 0))
        one.kept = kept.overlaid(one.kept, one.layout)

    def _copy_again(self, again: Written) -> int:
        """To the bases where they have a place, else to a new file; bytes."""
        if not again:
            return 0
        number = self._nameless()
        extents, offset, used = array("Q"), 0, False
        for one, runs in again:
            extents += one.extents(runs)
        _write(extents, self.fd(number))
        for one, runs in again:
            fresh = list(kept.from_runs(runs, number, offset))
            offset += sum(runs[1::2])
            used |= self._file(one, fresh)
        if not used:
            self._drop(number)
        return offset

    def _file(self, one: Tracked, fresh: list[Piece]) -> bool:
        """Put pieces of a round where they belong; whether any stays in the round's file."""
        base = one.base
        if base is None or self.is_parents(base):
            one.kept = kept.overlaid(one.kept, fresh)
            return True
        spans = [(piece.start, piece.end) for piece in fresh]
        slots = kept.within(one.layout, spans)
        places = [(slot.start, slot.end) for slot in slots]
        self._put(fresh[0].file, kept.within(fresh, places), slots)
        others = kept.without(fresh, places)
        one.kept = kept.overlaid(one.kept, [*slots, *others])
        return bool(others)

    def _add(self, fd: int) -> int:
        self._count += 1
        self._files[self._count] = fd
        return self._count


def _write(extents: "array[int]", fd: int) -> None:
    with translated("write", "pages of a round"):
        native.write_pages(extents, fd, native.PagesProgress(), lenient=True)
