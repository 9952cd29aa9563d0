# SPDX-License-Identifier: Apache-2.0
"""How threads are shared out to waves; asking them is tested with live tasks."""

from torpor.engine.kernel.borrow import WAVE, _waves


def test_every_thread_is_asked_once_and_few_at_a_time():
    counts = [(1, 8), (100, 24), (9, 8)]
    waves = _waves(counts)
    asked = {(n, i) for wave in waves for n, first, last in wave for i in range(first, last)}
    assert asked == {(n, i) for n, (count, _) in enumerate(counts) for i in range(count)}
    for wave in waves:
        assert sum(last - first for _, first, last in wave) <= WAVE
        assert len({number for number, _, _ in wave}) == len(wave)
        assert all(last - first <= counts[number][1] for number, first, last in wave)
    assert sum(last - first for wave in waves for _, first, last in wave) == 110


def test_waves_are_as_full_as_may_be():
    assert [sum(b - a for _, a, b in wave) for wave in _waves([(1, 8)] * 150)] == [64, 64, 22]
    assert _waves([]) == []
