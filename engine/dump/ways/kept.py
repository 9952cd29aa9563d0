# SPDX-License-Identifier: Apache-2.0
"""Pages that earlier rounds have, by address: sorted pieces that do not overlap. Only computes."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Consecutive pages: addresses, and the offset of the first one in file number ``file``."""

    start: int
    end: int
    file: int
    offset: int


def from_runs(runs: "array[int]", file: int, offset: int) -> Iterator[Piece]:
    """Pieces of (address, bytes) runs whose bytes follow one another in a file."""
    for at, size in zip(runs[::2], runs[1::2], strict=True):
        yield Piece(at, at + size, file, offset)
        offset += size


def spans(runs: "array[int]") -> list[tuple[int, int]]:
    """(start, end) of (address, bytes) runs."""
    return [(at, at + size) for at, size in zip(runs[::2], runs[1::2], strict=True)]


def without(pieces: Sequence[Piece], ranges: Sequence[tuple[int, int]]) -> list[Piece]:
    """What lies in none of the ranges, which are sorted."""
    found: list[Piece] = []
    at = 0
    for piece in pieces:
        while at < len(ranges) and ranges[at][1] <= piece.start:
            at += 1
        low, i = piece.start, at
        while i < len(ranges) and ranges[i][0] < piece.end:
            if ranges[i][0] > low:
                found.append(_cut(piece, low, ranges[i][0]))
            low = max(low, ranges[i][1])
            i += 1
        if low < piece.end:
            found.append(_cut(piece, low, piece.end))
    return found


def within(pieces: Sequence[Piece], ranges: Sequence[tuple[int, int]]) -> list[Piece]:
    """What lies in one of the ranges, which are sorted and do not overlap."""
    found: list[Piece] = []
    at = 0
    for piece in pieces:
        while at < len(ranges) and ranges[at][1] <= piece.start:
            at += 1
        i = at
        while i < len(ranges) and ranges[i][0] < piece.end:
            found.append(_cut(piece, max(piece.start, ranges[i][0]), min(piece.end, ranges[i][1])))
            i += 1
    return found


def overlaid(pieces: Sequence[Piece], fresh: Iterable[Piece]) -> list[Piece]:
    """Both, and where they overlap the fresh ones."""
    new = sorted(fresh)
    if not pieces:
        return new
    return sorted([*without(pieces, [(one.start, one.end) for one in new]), *new])


def size_bytes(pieces: Iterable[Piece]) -> int:
    """Bytes of all."""
    return sum(piece.end - piece.start for piece in pieces)


def _cut(piece: Piece, start: int, end: int) -> Piece:
    return Piece(start, end, piece.file, piece.offset + start - piece.start)
