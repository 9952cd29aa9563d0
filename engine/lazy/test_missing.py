# SPDX-License-Identifier: Apache-2.0
"""What is missing, against a model that has each page by itself."""

from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.lazy.missing import Missing

ROOM = 40
places = st.integers(0, ROOM)


@st.composite
def pieces(draw):
    points = sorted(draw(st.sets(places, max_size=12)))
    pairs = zip(points[::2], points[1::2], strict=False)
    return [(low, high, draw(st.integers(0, 1000))) for low, high in pairs]


changes = st.lists(
    st.one_of(
        st.tuples(st.just("take"), places, places),
        st.tuples(st.just("move"), places, places, st.integers(1, ROOM)),
    ),
    max_size=8,
)


def single(missing):
    return {
        at: offset + at - low for low, high, offset in missing.pieces for at in range(low, high)
    }


@given(pieces(), changes)
def test_against_single_pages(begun, asked):
    missing = Missing.of(reversed(begun))
    model = single(missing)
    for what, first, second, *more in asked:
        if what == "take":
            low, high = sorted((first, second))
            taken = single(Missing(missing.take(low, high)))
            assert taken == {at: model[at] for at in model if low <= at < high}
            model = {at: model[at] for at in model if not low <= at < high}
        else:
            (size,) = more
            missing.move(first, second, size)
            moved = {at - first + second: model[at] for at in model if first <= at < first + size}
            rest = {at: model[at] for at in model if not first <= at < first + size}
            kept = {at: rest[at] for at in rest if not second <= at < second + size}
            model = kept | moved
        assert single(missing) == model
        assert missing.pieces == sorted(missing.pieces)
        assert missing.size_bytes == len(model)


@given(pieces(), places)
def test_next(begun, address):
    missing = Missing.of(begun)
    model = single(missing)
    found = missing.next(address)
    if not model:
        assert found is None
        return
    behind = [at for at in model if at >= address] or list(model)
    assert found[0] == min(behind)
    assert found[2] == model[found[0]]
    here = missing.at(address)
    assert (here is not None) == (address in model)


def test_a_copy_stands_alone():
    missing = Missing.of([(0, 4, 0)])
    child = missing.copy()
    missing.take(0, 2)
    assert child.pieces == [(0, 4, 0)]
