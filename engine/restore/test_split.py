# SPDX-License-Identifier: Apache-2.0
"""Which huge pages are made before filling begins."""

import pytest

from torpor.engine.restore.contents import split


@pytest.mark.parametrize(
    ("size", "first", "rest"),
    [
        (0, [], [(0, 8), (10, 14)]),
        (5, [(0, 5)], [(5, 8), (10, 14)]),
        (8, [(0, 8)], [(10, 14)]),
        (9, [(0, 8), (10, 11)], [(11, 14)]),
        (99, [(0, 8), (10, 14)], []),
    ],
)
def test_split(size, first, rest):
    assert split([(0, 8), (10, 14)], size) == (first, rest)
