# SPDX-License-Identifier: Apache-2.0
"""Which pages are left out, and reading them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.dump.increment import Piece
from torpor.engine.dump.later import LeftPages, cut, marked
from torpor.engine.dump.ways.way import Content, Left, Part, Segment
from torpor.engine.errors import BadImage
from torpor.engine.images.pages import PageFlags, PageRun
from torpor.engine.memory.areas import PAGE

places = st.integers(0, 30)


@st.composite
def ranges(draw):
    points = sorted(draw(st.sets(places, max_size=8)))
    return [(low * PAGE, high * PAGE) for low, high in zip(points[::2], points[1::2], strict=False)]


@given(places, st.integers(1, 20), ranges())
def test_each_page_is_in_one_part(at, count, later):
    whole = Piece(run=PageRun(vaddr=at * PAGE, page_count=count), start=5 * PAGE)
    parts = list(cut(whole, later))
    flags = {
        part.run.vaddr + i * PAGE: (part.run.flags, part.start + i * PAGE)
        for part in parts
        for i in range(part.run.page_count)
    }
    assert sum(part.run.page_count for part in parts) == count
    for i in range(count):
        address = (at + i) * PAGE
        left = any(low <= address < high for low, high in later)
        wanted = PageFlags.LAZY if left else PageFlags.PRESENT
        assert flags[address] == (wanted, (5 + i) * PAGE)


runs = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 3), st.sampled_from([4, 1])), max_size=6
)


@given(runs, ranges())
def test_pages_are_marked_where_they_may_come_later(sizes, later):
    whole, at = [], 0
    for count, gap, flags in sizes:
        whole.append(PageRun(vaddr=at * PAGE, page_count=count, flags=PageFlags(flags)))
        at += count + gap

    def pages(found):
        return [(r.vaddr + i * PAGE, r.flags) for r in found for i in range(r.page_count)]

    wanted = [
        (address, flags | PageFlags.LAZY)
        if flags == PageFlags.PRESENT and any(low <= address < high for low, high in later)
        else (address, flags)
        for address, flags in pages(whole)
    ]
    assert pages(marked(whole, later)) == wanted


def test_what_the_parent_has_stays_there():
    one = Piece(run=PageRun(vaddr=0, page_count=3, flags=PageFlags.PARENT), start=0)
    assert list(cut(one, [(0, 1 << 20)])) == [one]


@pytest.fixture
def left():
    """Pages 2 to 4 and, of another part, page 5."""
    first = b"".join(bytes([n]) * PAGE for n in range(5))
    parts = [
        Part(pid=0, runs=array("Q", [0, 5 * PAGE]), source=Content(first)),
        Part(pid=0, runs=array("Q", [5 * PAGE, PAGE]), source=Content(b"\5" * PAGE)),
    ]
    segment = Segment(name="pagemap-7", parts=parts, later=[(2 * PAGE, 6 * PAGE)])
    segment.left = [
        Left(2 * PAGE, 5 * PAGE, parts[0], 2 * PAGE),
        Left(5 * PAGE, 6 * PAGE, parts[1], 0),
    ]
    return LeftPages([segment, Segment(name="pagemap-shmem-3", parts=[])])


def test_pages_are_read_over_the_edge_of_a_part(left):
    assert left.must_be_wanted
    got = left.read(7, 3 * PAGE, 3 * PAGE)
    assert got == b"\3" * PAGE + b"\4" * PAGE + b"\5" * PAGE


@pytest.mark.parametrize(("pid", "first", "count"), [(7, 1, 1), (7, 1, 2), (7, 5, 2), (8, 2, 1)])
def test_other_pages_are_not_given(left, pid, first, count):
    with pytest.raises(BadImage, match="not left out"):
        left.read(pid, first * PAGE, count * PAGE)


def test_nobody_has_to_want_nothing():
    assert not LeftPages([Segment(name="pagemap-7", parts=[])]).must_be_wanted
