# SPDX-License-Identifier: Apache-2.0
"""Shared anonymous memory of a child: in place, moved, in part (`layout`)."""

from dataclasses import replace

import pytest

from tests.fixtures import trees
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.restore.layout import Backings, after_fork, forked_from

WHOLE = Area(start=0x10000, end=0x20000, prot=3, backing=Backing.SHARED, shared_id=7)


def vdso_at(start):
    return Area(start=start, end=start + 0x2000, prot=5, backing=Backing.VDSO)


@pytest.mark.parametrize(
    ("exe", "start", "wanted"),
    [("/a", 0x70000, True), ("/b", 0x70000, False), ("/a", 0x90000, False)],
)
def test_the_same_program_executed_anew_is_no_fork(exe, start, wanted):
    parent = trees.memory((vdso_at(0x70000),), exe="/a")
    assert forked_from(trees.memory((vdso_at(start),), exe=exe), parent) is wanted


def plan(wanted, inherited):
    program, kept = after_fork(
        wanted, inherited, None, None, Backings(segments={7: 600}), set(), keep_old_code=False
    )
    return [op.describe().split("  #")[0] for op in program.ops], [hex(a.start) for a in kept]


def test_the_same():
    assert plan([WHOLE], [WHOLE]) == ([], ["0x10000"])


def test_the_end_of_it():
    end = replace(WHOLE, start=0x14000, offset=0x4000)
    assert plan([end], [WHOLE]) == (
        ["munmap(0x10000, 0x10000)", "mmap(0x14000, 0xc000, 3, 17, 600, 0x4000)"],
        [],
    )


def test_elsewhere_and_twice():
    moved = replace(WHOLE, start=0x50000, end=0x52000, offset=0x1000)
    again = replace(WHOLE, start=0x60000, end=0x61000, prot=1)
    assert plan([moved, again], [WHOLE]) == (
        [
            "munmap(0x10000, 0x10000)",
            "mmap(0x50000, 0x2000, 3, 17, 600, 0x1000)",
            "mmap(0x60000, 0x1000, 1, 17, 600, 0)",
        ],
        [],
    )
