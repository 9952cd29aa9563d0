# SPDX-License-Identifier: Apache-2.0
"""What taking a task's memory goes by: made of its areas, mostly before it is stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torpor.engine.dump import later
from torpor.engine.dump.ways import scan
from torpor.engine.kernel.maps import Vma
from torpor.engine.memory import marks
from torpor.engine.memory.areas import Area


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Of one address space."""

    private: Sequence[tuple[bool, Sequence[Area]]] = ()
    """Areas with memory of its own, cut where a fork begins (True) or ends to carry it."""
    is_forked: bool = False
    """Others have the same pages copy-on-write."""
    markable: Sequence[later.Range] = ()
    """See `later.markable`."""
    maybe_guarded: Sequence[Vma] = ()
    """Where guard regions may lie."""


def of(vmas: Sequence[Vma], areas: Sequence[Area]) -> Layout:
    """That of a task with these areas."""
    return Layout(
        private=[
            (is_carried, tuple(mine))
            for is_carried, mine in groupby(scan.wanted(areas), scan.is_carried)
        ],
        is_forked=any(map(scan.has_common_pages, vmas)),
        markable=later.markable(areas),
        maybe_guarded=[vma for vma in vmas if marks.may_have_guards(vma)],
    )
