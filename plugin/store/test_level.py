# SPDX-License-Identifier: Apache-2.0
"""The level follows from what chunks have cost."""

import pytest

from torpor.plugin.store.level import LEVELS, TRY_EVERY, Levels

CHUNK = 4 << 20
LEFT = dict(zip(LEVELS, (0.75, 0.65, 0.5, 0.45, 0.42, 0.40), strict=True))
SECONDS = {level: 0.004 * 2**i for i, level in enumerate(LEVELS)}


def settled(store_bytes_a_second):
    levels, taken = Levels(), []
    for _ in range(40 * TRY_EVERY):
        level = levels.next()
        taken.append(level)
        left = int(CHUNK * LEFT[level])
        levels.learn(level, CHUNK, left, SECONDS[level], left / store_bytes_a_second)
    last = taken[-4 * TRY_EVERY :]
    return max(set(last), key=last.count)


@pytest.mark.parametrize("bandwidth", [1 << 20, 20 << 20, 120 << 20, 400 << 20, 4 << 30])
def test_the_quickest_level_is_found(bandwidth):
    best = min(LEVELS, key=lambda level: SECONDS[level] + CHUNK * LEFT[level] / bandwidth)
    assert settled(bandwidth) == best


def test_a_slow_store_is_worth_more_than_a_quick_one():
    assert settled(1 << 20) > settled(4 << 30)


def test_the_first_is_a_middle_one_and_nothing_is_learnt_of_nothing():
    levels = Levels()
    levels.learn(1, 0, 0, 1.0, 1.0)
    assert levels.next() == 1
