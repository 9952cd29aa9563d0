# SPDX-License-Identifier: Apache-2.0
"""Files that the rounds of a pre-copy fill.

What the first round copies of a task is its base: one file, in the order of addresses. What comes
again is put in its place there; pages that are new go to files without a name.

Where the tasks stand still until the images are whole, their bases are images of their own before
the stop: a directory `precopy` inside of the other, its parent. So nothing is written twice.
Otherwise bases have no name either, and the images get a copy.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from torpor.engine import native
from torpor.engine.dump.images import inventory
from torpor.engine.dump.ways.kept import Piece
from torpor.engine.images.failures import translated
from torpor.engine.images.pages import PAGE_BYTES, PageRun, write_pagemap
from torpor.engine.images.writing import NewImageDirectory

NAME = "precopy"
"""The directory of the bases."""
MEMORY_NAME = "torpor-pages"


class Filing:
    """The files of one tree, by number. With ``bases`` bases are images."""

    def __init__(self, images: NewImageDirectory, *, bases: bool) -> None:
        self._images = images
        self._wanted = bases
        self._bases: NewImageDirectory | None = None
        self._files: dict[int, int] = {}
        self._named: dict[int, int] = {}
        """Number of a base → N of its pages-N."""
        self._count = 0
        self.is_sealed = False

    def fd(self, number: int) -> int:
        """Its descriptor."""
        return self._files[number]

    def is_parents(self, number: int) -> bool:
        """Whether its pages are in the images of a parent."""
        return self.is_sealed and number in self._named

    def nameless(self) -> int:
        """A new file without a name."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        try:
            fd = os.open(self._images.place, flags, 0o600)
        except OSError:  # a file system that has none
            fd = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC)
        return self._add(fd)

    def base(self) -> int:
        """A new file for what the first round copies of a task."""
        if not self._wanted or self.is_sealed:
            return self.nameless()
        if self._bases is None:
            self._bases = self._images.inside(NAME)
        pages_id = len(self._named) + 1
        number = self._add(self._bases.create_file(f"pages-{pages_id}"))
        self._named[number] = pages_id
        return number

    def put(self, source: int, pieces: Iterable[Piece], slots: Sequence[Piece]) -> None:
        """Copy pieces of a file to their places in others; both are of the same sizes."""
        for piece, slot in zip(pieces, slots, strict=True):
            with translated("write", "pages of a round"):
                data = os.pread(self.fd(source), piece.end - piece.start, piece.offset)
                os.pwrite(self.fd(slot.file), data, slot.offset)

    def drop(self, number: int) -> None:
        """Nothing in it is needed any more."""
        if number not in self._named:
            os.close(self._files.pop(number))

    def seal(self, layouts: Mapping[int, tuple[str, Sequence[Piece]]]) -> None:
        """Have the bases whole: number → name of the pagemap and all that is in the file."""
        if self._bases is None:
            return
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

    def _add(self, fd: int) -> int:
        self._count += 1
        self._files[self._count] = fd
        return self._count
