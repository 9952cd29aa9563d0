# SPDX-License-Identifier: Apache-2.0
"""Shared anonymous memory of a child: in place, moved, in part, or not to be had (`layout`)."""

from dataclasses import replace

import pytest

from tests.fixtures import trees
from torpor.engine.errors import Refused
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.restore.layout import Backings, after_fork, forked_from, joined

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


def plan(wanted, inherited, made=()):
    program, kept = after_fork(
        wanted, inherited, None, None, Backings(memfds={}, made=made), set(), keep_old_code=False
    )
    return [op.describe().split("  #")[0] for op in program.ops], [hex(a.start) for a in kept]


def test_the_same():
    assert plan([WHOLE], [WHOLE]) == ([], ["0x10000"])


def test_the_end_of_it():
    end = replace(WHOLE, start=0x14000, offset=0x4000)
    assert plan([end], [WHOLE]) == (["munmap(0x10000, 0x4000)"], ["0x14000"])


def test_two_pieces_of_other_protection():
    first = replace(WHOLE, end=0x12000, prot=1)
    second = replace(WHOLE, start=0x12000, offset=0x2000)
    assert plan([first, second], [WHOLE]) == ([], ["0x10000", "0x12000"])
    assert plan([WHOLE], [first, second]) == ([], ["0x10000"])
    assert joined([first, second]) == [WHOLE]


def test_elsewhere():
    moved = Area(
        start=0x50000, end=0x52000, prot=3, backing=Backing.SHARED, shared_id=7, offset=0x1000
    )
    ops, kept = plan([moved], [WHOLE])
    assert kept == []
    assert ops[0].startswith("mremap(0x11000, 0, 0x2000, 3, 0x50000)")
    assert ops[1:] == ["munmap(0x10000, 0x10000)"]


def test_what_no_parent_maps():
    with pytest.raises(Refused, match="common parent has unmapped"):
        plan([WHOLE], [], made={7})
    ops, _ = plan([WHOLE], [])
    assert ops[0].startswith("mmap(0x10000")
