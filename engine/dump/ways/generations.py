# SPDX-License-Identifier: Apache-2.0
"""Rounds of a pre-copy as images of their own, each of which somebody has before the next.

Who follows the images takes each round elsewhere, and a round is over when that is done; so the
next one also copies what was written while the last one was on its way, and what is left to the
stop is little for the road, not only for the copy. Nothing that was told of is changed: what comes
again is in a later round as well. A round says where it finds what it has not: in the one before.
"""

from array import array
from collections.abc import Collection

from torpor.engine.dump import pagesfile
from torpor.engine.dump.images import inventory
from torpor.engine.dump.ways import kept
from torpor.engine.dump.ways.copies import Written
from torpor.engine.dump.ways.tracked import Tracked
from torpor.engine.errors import Bug
from torpor.engine.images.pages import PAGE_BYTES, PageFlags, PageRun, write_pagemap
from torpor.engine.images.rounds import round_name
from torpor.engine.images.writing import NewImageDirectory


class Generations:
    """`Copies` of one tree, in directories inside of its images."""

    sets_pace = True

    def __init__(self, images: NewImageDirectory) -> None:
        self._images = images
        self._count = 0

    def copy(self, written: Written) -> int:
        """See `Copies`."""
        if not any(runs for _, runs in written):
            return 0
        number = self._count + 1
        images = self._images.inside(round_name(number))
        copied = 0
        try:
            images.follow_round(number - 1)
            for pages_id, (one, runs) in enumerate(written, 1):
                copied += _write(images, number, pages_id, one, runs)
            inventory(images)
            images.finish()
        except BaseException:
            images.abort()
            raise
        self._count = number
        self._images.catch_up()
        return copied

    def seal(self, tracked: Collection[Tracked]) -> None:
        """See `Copies`; every round is whole at once."""

    def link(self) -> None:
        """See `Copies`."""
        self._images.follow_round(self._count)

    def is_parents(self, number: int) -> bool:
        """See `Copies`."""
        return number <= self._count

    def fd(self, number: int) -> int:
        """See `Copies`."""
        raise Bug("a round is read again", subject=round_name(number))

    def close(self) -> None:
        """See `Copies`; the images remove what is inside of them."""


def _write(
    images: NewImageDirectory, number: int, pages_id: int, one: Tracked, runs: "array[int]"
) -> int:
    """What was written of one address space, and a pagemap of all that is kept of it."""
    one.kept = kept.overlaid(one.kept, kept.from_runs(runs, number, 0))
    if not one.kept:
        return 0
    write_pagemap(
        images,
        f"pagemap-{one.ns_pid}",
        pages_id,
        [
            PageRun(
                vaddr=piece.start,
                page_count=(piece.end - piece.start) // PAGE_BYTES,
                flags=PageFlags.PRESENT if piece.file == number else PageFlags.PARENT,
            )
            for piece in one.kept
        ],
    )
    if not runs:
        return 0
    return pagesfile.write(images, f"pages-{pages_id}", one.extents(runs), lenient=True)
