# SPDX-License-Identifier: Apache-2.0
"""Lines of output as pieces of text with a style, so that one text serves pipe and terminal."""

from collections.abc import Sequence

from torpor.engine.text import printable

Piece = tuple[str, str]
"""Text, and a style by its rich name; "" for none."""
Line = Sequence[Piece]

HEADING, DIM, NAME, NUMBER, WARN, GOOD, BAD = (
    "bold", "dim", "cyan", "green", "yellow", "green", "red",
)  # fmt: skip


def line(*pieces: str | Piece) -> Line:
    """Pieces; a bare string has no style. Nothing unprintable passes."""
    return tuple(
        (printable(piece), "") if isinstance(piece, str) else (printable(piece[0]), piece[1])
        for piece in pieces
    )


def plain(pieces: Line) -> str:
    """The text alone."""
    return "".join(text for text, _ in pieces).rstrip()
