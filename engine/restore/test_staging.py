# SPDX-License-Identifier: Apache-2.0
"""Which parts of ranges were staged, against a model of single huge pages."""

from hypothesis import given
from hypothesis import strategies as st

from torpor.engine import native
from torpor.engine.restore.staging import HUGE, staged_pieces


@st.composite
def ranges_and_places(draw):
    at, staged, ranges = 0, 1 << 40, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=6)):
        at += gap
        ranges.append((at * HUGE, length * HUGE, staged))
        at += length
        staged += length * HUGE
    count = sum(size for _, size, _ in ranges) // HUGE
    places = st.sampled_from([native.STAGED, 2])
    return ranges, bytes(draw(st.lists(places, min_size=count, max_size=count)))


@given(ranges_and_places())
def test_staged_pieces(drawn):
    ranges, places = drawn
    wanted = [
        (start + at, staged + at) for start, size, staged in ranges for at in range(0, size, HUGE)
    ]
    wanted = [pair for pair, place in zip(wanted, places, strict=True) if place == native.STAGED]
    found = staged_pieces(ranges, places)
    assert [
        (start + at, staged + at) for start, size, staged in found for at in range(0, size, HUGE)
    ] == wanted
    joined = [(a[0] + a[1], a[2] + a[1]) for a in found]
    inside = {start for start, _, _ in ranges}
    assert all(b[0] in inside or (b[0], b[2]) not in joined for b in found)
