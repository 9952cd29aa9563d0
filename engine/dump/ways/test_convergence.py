# SPDX-License-Identifier: Apache-2.0
"""When a pre-copy ends: rounds of programs that write slowly, fast, and less and less."""

import itertools

import pytest

from torpor.engine.dump.ways.convergence import COPY_BYTES_S, measured_bytes_s, why_stop
from torpor.engine.options import PreCopyRules, Round

MIB, GIB = 1 << 20, 1 << 30


def simulated(writes_bytes_s, rules, *, memory=GIB, hot=GIB, copy_bytes_s=GIB):
    """Rounds of a program that writes so fast, to no more than ``hot``, and why they ended."""
    rounds, dirty = [], memory
    for number in itertools.count():
        seconds = dirty / copy_bytes_s + 0.01
        copied, dirty = dirty, min(int(writes_bytes_s * seconds), hot)
        rounds.append(Round(number=number, copied_bytes=copied, seconds=seconds, dirty_bytes=dirty))
        reason = why_stop(rounds, rules)
        if reason:
            return rounds, reason
    raise AssertionError


def test_an_idle_program_takes_one_round():
    rounds, reason = simulated(0, PreCopyRules())
    assert len(rounds) == 1
    assert reason == "0.0 MiB left after one round"


@pytest.mark.parametrize("percent", [1, 5, 10])
def test_a_slow_writer_converges(percent):
    rules = PreCopyRules()
    rounds, reason = simulated(percent * GIB // 100, rules)
    assert rounds[-1].dirty_bytes / COPY_BYTES_S <= rules.pause_goal_s
    assert 2 <= len(rounds) <= 5
    assert reason.endswith("rounds")


def test_a_hot_set_stalls():
    """A tenth of its memory all the time: more rounds leave as much."""
    rounds, reason = simulated(10 * GIB, PreCopyRules(), hot=GIB // 10)
    assert "faster" in reason
    assert reason.endswith("2048.0 MiB a second are taken"), reason
    assert len(rounds) == 3


def test_a_writer_as_fast_as_the_copy_is_stopped_by_bytes():
    rules = PreCopyRules(max_copies=2.5, max_rounds=100)
    rounds, reason = simulated(0.95 * GIB, rules, hot=2 * GIB)
    assert "copied already" in reason or "faster" in reason
    assert sum(one.copied_bytes for one in rounds) <= 2.5 * GIB


def test_a_slow_store_is_stopped_by_time_or_rounds():
    rules = PreCopyRules(max_seconds=15, pause_goal_s=0, max_copies=100)
    _, reason = simulated(50 * MIB, rules, copy_bytes_s=100 * MIB)
    assert "took 15 s" in reason
    rules = PreCopyRules(max_rounds=2, pause_goal_s=0, max_copies=100)
    rounds, reason = simulated(50 * MIB, rules, copy_bytes_s=100 * MIB)
    assert len(rounds) == 2
    assert "the most" in reason


def test_little_is_no_stall():
    """Some pages more or less by chance do not end it before the goal is reached."""
    rules = PreCopyRules(pause_goal_s=0)
    rounds = [
        Round(number=n, copied_bytes=MIB, seconds=0.01, dirty_bytes=4096 * n) for n in range(1, 5)
    ]
    assert not why_stop(rounds[:3], rules)


def test_where_pages_go_sets_the_pace():
    """A copy of 10 MiB is short, its way to a slow store is not."""
    rules = PreCopyRules(pause_goal_s=0.1)
    rounds = [Round(number=0, copied_bytes=100 * MIB, seconds=2, dirty_bytes=10 * MIB)]
    assert measured_bytes_s(rounds) == 50 * MIB
    assert why_stop(rounds, rules)
    assert not why_stop(rounds, rules, measured_bytes_s(rounds))
