# SPDX-License-Identifier: Apache-2.0
"""What of an address space is not there yet, and where in a file it is: plain arithmetic."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

Piece = tuple[int, int, int]
"""Address, end, offset in the file."""


@dataclass(slots=True)
class Missing:
    """Pieces by address that do not overlap."""

    pieces: list[Piece]

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "Missing":
        """From pieces in any order."""
        return cls(sorted(pieces))

    def copy(self) -> "Missing":
        """That of a fork's child."""
        return Missing(list(self.pieces))

    def at(self, address: int) -> Piece | None:
        """What begins at an address."""
        i = bisect_right(self.pieces, address, key=lambda piece: piece[0]) - 1
        if i < 0 or address >= self.pieces[i][1]:
            return None
        start, end, offset = self.pieces[i]
        return address, end, offset + address - start

    def next(self, address: int) -> Piece | None:
        """What comes first at or behind an address, or else first of all."""
        found = self.at(address)
        if found is not None or not self.pieces:
            return found
        i = bisect_right(self.pieces, address, key=lambda piece: piece[0])
        return self.pieces[i % len(self.pieces)]

    def take(self, start: int, end: int) -> list[Piece]:
        """Take out what is between two addresses."""
        first = bisect_right(self.pieces, start, key=lambda piece: piece[1])
        last, taken, rest = first, [], []
        for low, high, offset in self.pieces[first:]:
            if low >= end:
                break
            last += 1
            cut_low, cut_high = max(low, start), min(high, end)
            taken.append((cut_low, cut_high, offset + cut_low - low))
            if low < start:
                rest.append((low, start, offset))
            if high > end:
                rest.append((end, high, offset + end - low))
        self.pieces[first:last] = rest
        return taken

    def move(self, source: int, target: int, size: int) -> None:
        """The memory at ``source`` is at ``target`` now (mremap)."""
        moved = self.take(source, source + size)
        self.take(target, target + size)
        shift = target - source
        self.pieces = sorted(
            self.pieces + [(low + shift, high + shift, offset) for low, high, offset in moved]
        )

    @property
    def size_bytes(self) -> int:
        """How much it is."""
        return sum(end - start for start, end, _ in self.pieces)
