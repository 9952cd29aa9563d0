# SPDX-License-Identifier: Apache-2.0
"""A mapping that is made late is the same mapping, and made once."""

from torpor.engine.deferred import Deferred


def test_it_is_made_when_it_is_looked_into_and_once():
    made = []

    def make():
        made.append(True)
        return {1: 2, 3: 4}

    found = Deferred(make)
    assert not made
    assert found[1] == 2
    assert 5 not in found
    assert dict(found) == {1: 2, 3: 4}
    assert len(found) == 2
    assert len(made) == 1
