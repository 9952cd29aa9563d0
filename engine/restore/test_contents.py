# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of ranges and runs, against a model that counts single pages."""

from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.images.pages import LocatedRun, PageRun
from torpor.engine.memory.areas import PAGE, Area, Backing
from torpor.engine.restore.contents import TaskPages, pages_of, subtract

small = st.integers(0, 60)


@st.composite
def ranges(draw):
    """Sorted, not overlapping, in pages."""
    points = sorted(draw(st.sets(small, max_size=12)))
    return [(a * PAGE, b * PAGE) for a, b in zip(points[::2], points[1::2], strict=False)]


def single(found):
    return {page for start, end in found for page in range(start, end, PAGE)}


@given(ranges(), ranges())
def test_subtract(whole, minus):
    rest = subtract(whole, minus)
    assert single(rest) == single(whole) - single(minus)
    assert all(start < end for start, end in rest)
    assert rest == sorted(rest)


@st.composite
def runs_and_pages(draw):
    offset, runs = 0, []
    for start, end in draw(ranges()):
        runs.append((start, end - start, offset))
        offset += end - start
    pages = sorted(single([(s, s + n) for s, n, _ in runs]))
    wanted = sorted(draw(st.sets(st.sampled_from(pages)))) if pages else []
    return runs, wanted


@given(runs_and_pages())
def test_pages_of(drawn):
    runs, wanted = drawn
    found = pages_of(runs, wanted)
    assert sorted(single([(s, s + n) for s, n, _ in found])) == wanted
    place = {s + i: o + i for s, n, o in runs for i in range(0, n, PAGE)}
    assert all(place[s + i] == o + i for s, n, o in found for i in range(0, n, PAGE))


@given(runs_and_pages(), small, st.integers(1, 30))
def test_runs_within_an_area(drawn, first, length):
    runs, _ = drawn
    located = tuple(
        LocatedRun(run=PageRun(vaddr=s, page_count=n // PAGE), offset=o) for s, n, o in runs
    )
    area = Area(start=first * PAGE, end=(first + length) * PAGE, prot=3, backing=Backing.ANON)
    found = TaskPages(runs=located, fd=-1).within(area)
    inside = single([(area.start, area.end)])
    assert (
        single([(s, s + n) for s, n, _ in found])
        == single([(s, s + n) for s, n, _ in runs]) & inside
    )
    place = {s + i: o + i for s, n, o in runs for i in range(0, n, PAGE)}
    assert all(place[s] == o for s, _, o in found)


def test_runs_of_a_parent_image_are_left_out():
    run = LocatedRun(run=PageRun(vaddr=0, page_count=4), offset=None)
    area = Area(start=0, end=4 * PAGE, prot=3, backing=Backing.ANON)
    assert TaskPages(runs=(run,), fd=-1).within(area) == []
