# SPDX-License-Identifier: Apache-2.0
"""Which pages of a task's private memory are kept.

Facts (PAGEMAP_SCAN, Linux 6.7, fs/proc/task_mmu.c): a page of a private area is worth keeping
when it is present or swapped and neither the shared zero page nor an unmodified page of a file.
The vDSO is kept whole: its code tells a restore whether the kernel is the same.
"""

import os
import re
from array import array
from collections.abc import Sequence

from torpor.engine.kernel import pagemap
from torpor.engine.kernel.maps import Vma
from torpor.engine.memory.areas import RINGS, Area, Backing

WHOLE = (Backing.VDSO, *RINGS)
NOT_FORKED = frozenset((10, 18))
"""MADV_DONTFORK, MADV_WIPEONFORK."""
ANONYMOUS = re.compile(r"^Anonymous: +[1-9]", re.MULTILINE)
ALONE = "Shared_Clean:          0 kB", "Shared_Dirty:          0 kB"
"""Most mappings say so; to look for it is cheap."""
COMMON = re.compile(r"^Shared_(?:Clean|Dirty): +[1-9]", re.MULTILINE)


def wanted(found: Sequence[Area]) -> list[Area]:
    """Areas with memory of the task's own."""
    return [
        a
        for a in found
        if not a.shared and not a.droppable and a.backing not in (Backing.VVAR, Backing.VSYSCALL)
    ]


def is_carried(area: Area) -> bool:
    """Whether a fork has its memory too (madvise(2)).

    Reserved huge pages are taken from it when there are none to copy them to (mm/hugetlb.c,
    unmap_ref_private).
    """
    is_forked = NOT_FORKED.isdisjoint(area.advice) and not area.huge_shift
    return area.backing not in WHOLE and is_forked


def private_runs(pid: int, areas: Sequence[Area]) -> "array[int]":
    """(address, bytes) runs of areas that are `wanted`."""
    runs, whole = array("Q"), [(a.start, a.size_bytes) for a in areas if a.backing in WHOLE]
    if own := [(a.start, a.end) for a in areas if a.backing not in WHOLE]:
        fd = pagemap.open_pagemap(pid)
        try:
            runs = pagemap.private_runs(fd, own)
        finally:
            os.close(fd)
    if not whole:
        return runs
    pairs = sorted([*zip(runs[::2], runs[1::2], strict=True), *whole])
    return array("Q", [word for pair in pairs for word in pair])


def has_common_pages(vma: Vma) -> bool:
    """Anonymous pages that are in other tasks too; such pages of files are too few to matter."""
    return (
        not (vma.shared or vma.inode)
        and not (ALONE[0] in vma.details and ALONE[1] in vma.details)
        and ANONYMOUS.search(vma.details) is not None
        and COMMON.search(vma.details) is not None
    )
