# SPDX-License-Identifier: Apache-2.0
"""Pieces of memory, against a table with an entry for each page."""

import random
from array import array

import pytest

from torpor.engine.dump.ways.kept import Piece, from_runs, overlaid, size_bytes, spans, within
from torpor.engine.dump.ways.kept import without as left

PAGE = 4096
PAGES = 60


def table(pieces):
    """Page → (file, offset). Fails for pieces that are unsorted, empty or overlap."""
    found, end = {}, 0
    for piece in pieces:
        assert end <= piece.start < piece.end
        end = piece.end
        for at in range(piece.start, piece.end, PAGE):
            found[at] = (piece.file, piece.offset + at - piece.start)
    assert size_bytes(pieces) == len(found) * PAGE
    return found


def some_runs(chance):
    runs, at = array("Q"), 0
    while True:
        at += chance.randrange(0, 6) * PAGE
        size = chance.randrange(1, 6) * PAGE
        if at + size > PAGES * PAGE:
            return runs
        runs.extend((at, size))
        at += size


@pytest.mark.parametrize("seed", range(50))
def test_like_a_table(seed):
    chance = random.Random(seed)
    pieces, known = [], {}
    for file in range(6):
        runs = some_runs(chance)
        fresh = list(from_runs(runs, file, 7 * PAGE))
        pieces = overlaid(pieces, fresh)
        known.update(table(fresh))
        assert table(pieces) == known
        ranges = spans(some_runs(chance))
        inside = {at for low, high in ranges for at in range(low, high, PAGE)}
        assert table(within(pieces, ranges)) == {a: known[a] for a in known if a in inside}
        assert table(left(pieces, ranges)) == {a: known[a] for a in known if a not in inside}
        if chance.random() < 0.3:
            pieces = left(pieces, ranges)
            known = {at: value for at, value in known.items() if at not in inside}


def test_offsets_follow_one_another():
    runs = array("Q", [PAGE, 2 * PAGE, 8 * PAGE, PAGE])
    first, second = from_runs(runs, 3, 0)
    assert first == Piece(PAGE, 3 * PAGE, 3, 0)
    assert second == Piece(8 * PAGE, 9 * PAGE, 3, 2 * PAGE)
