# SPDX-License-Identifier: Apache-2.0
"""Directories of rounds inside of images: where they are, told without a link.

The rounds of a pre-copy that were taken elsewhere before the stop are directories `precopy-N`
inside of the images. Each leads to the one before, the images to the last, by a fact in their
torpor.json. So nothing leads out of the images, and a store that keeps no links has all of it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torpor.engine.errors import BadImage

LAST = "round"
"""Fact of a dump: number of the round that has the pages which it leaves out; 0 is none."""
MAX_ROUNDS = 200
_NAME = re.compile(r"precopy-[1-9][0-9]{0,2}")


def round_name(number: int) -> str:
    """The directory of a round."""
    return f"precopy-{number}"


def before(path: Path, facts: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The directory of the round that images lead to.

    Raises: BadImage.
    """
    number = facts.get("dump", {}).get(LAST)
    if not number:
        return None
    if not isinstance(number, int) or not 0 < number <= MAX_ROUNDS:
        raise BadImage("no number of a round", subject=str(path), cause=repr(number)[:80])
    folder = path.parent if _NAME.fullmatch(path.name) else path
    found = folder / round_name(number)
    if found.is_symlink() or not found.is_dir():
        what = "a round is a link" if found.is_symlink() else "a round is missing"
        raise BadImage(what, subject=str(found), remedy="take the images from an intact copy")
    return found
