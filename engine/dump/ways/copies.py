# SPDX-License-Identifier: Apache-2.0
"""Where the rounds of a pre-copy put what they copy."""

from array import array
from collections.abc import Collection, Sequence
from typing import Protocol

from torpor.engine.dump.ways.tracked import Tracked

Written = Sequence[tuple[Tracked, "array[int]"]]
"""Of each address space that is watched the (address, bytes) runs that are to be copied."""


class Copies(Protocol):
    """Files with copies, by number (`kept.Piece.file`)."""

    sets_pace: bool
    """A round takes as long as the road of its pages to where they go, and so will the stop."""

    def copy(self, written: Written) -> int:
        """Copy what was written, and tell each address space what is kept of it; bytes."""

    def seal(self, tracked: Collection[Tracked]) -> None:
        """What only the rounds before the last one change is whole from now on."""

    def link(self) -> None:
        """Have the images lead to what is theirs of the copies; nothing is copied any more."""

    def is_parents(self, number: int) -> bool:
        """Whether the pages of a file are in the images already, or in a parent of theirs."""

    def fd(self, number: int) -> int:
        """Descriptor of a file whose pages are not."""

    def close(self) -> None:
        """Close all; what the images do not have is given up."""
