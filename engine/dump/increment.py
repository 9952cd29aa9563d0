# SPDX-License-Identifier: Apache-2.0
"""Leaving out pages that an earlier dump has.

Facts: kernels without soft-dirty cannot tell what was written since, and whoever made the earlier
dump is gone, with every other way of tracking. So the pages that were taken are compared with those
that are stored, after the thaw, by content: what was unmapped, mapped anew or moved meanwhile makes
no difference.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.dump.ways.way import Source
from torpor.engine.images.pages import PageFlags, PageRun
from torpor.engine.images.parents import Stored, overlapping
from torpor.engine.memory.areas import PAGE

ALIKE = re.compile(rb"\x00+|\x01+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Pages of a task that are stored together; ``start`` is their place in what was taken."""

    run: PageRun
    start: int


def pieces(
    runs: "array[int]", shift: int, taken: Source | None, stored: Sequence[Stored]
) -> Iterator[Piece]:
    """(address, bytes) runs, cut where pages of an earlier dump begin or end."""
    same = _same(runs, shift, taken, stored)
    at = 0
    for i in range(0, len(runs), 2):
        first, count = at // PAGE, runs[i + 1] // PAGE
        for alike in ALIKE.finditer(same, first, first + count):
            skipped = same[alike.start()]
            yield Piece(
                run=PageRun(
                    vaddr=runs[i] - shift + (alike.start() - first) * PAGE,
                    page_count=alike.end() - alike.start(),
                    flags=PageFlags.PARENT if skipped else PageFlags.PRESENT,
                ),
                start=alike.start() * PAGE,
            )
        at += runs[i + 1]


def _same(
    runs: "array[int]", shift: int, taken: Source | None, stored: Sequence[Stored]
) -> bytearray:
    """A byte for each page: whether an earlier dump has it."""
    same = bytearray(sum(runs[1::2]) // PAGE)
    if taken is None or not stored:
        return same
    compared: dict[int, array[int]] = {}
    at = 0
    for i in range(0, len(runs), 2):
        start = runs[i] - shift
        for one in overlapping(stored, start, start + runs[i + 1]):
            triple = (at + one.vaddr - start, one.size_bytes, one.offset)
            compared.setdefault(one.fd, array("Q")).extend(triple)
        at += runs[i + 1]
    extents = taken.extents(0, at)
    for fd, triples in compared.items():
        native.same_pages(extents, fd, triples, same)
    return same
