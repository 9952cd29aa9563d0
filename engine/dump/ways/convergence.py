# SPDX-License-Identifier: Apache-2.0
"""When the rounds of a pre-copy end. Only computes.

After each round the pages that were written meanwhile are counted. They are what the last stop
would copy, so they say how long it would take. Another round pays when it leaves less; what a
program writes all the time never gets less.
"""

from collections.abc import Sequence
from itertools import pairwise

from torpor.engine.options import PreCopyRules, Round

COPY_BYTES_S = 2 << 30
"""At which scattered pages are read in the last stop (1.7 us each)."""
PROGRESS = 0.8
"""What is left after a round in comparison with what was left before: more is no progress."""
PATIENCE = 2
"""Rounds without progress."""
STALL_S = 0.005
"""Too short a pause to look for progress: chance decides how much was written."""


def predicted_s(dirty_bytes: int) -> float:
    """What the last stop would take to copy that much."""
    return dirty_bytes / COPY_BYTES_S


def why_stop(rounds: Sequence[Round], rules: PreCopyRules) -> str:
    """Why there is no further round; empty when there is one. The first is rounds[0]."""
    last = rounds[-1]
    copied, first = sum(one.copied_bytes for one in rounds), rounds[0].copied_bytes
    left = f"{_mib(last.dirty_bytes)} left after {len(rounds)} rounds"
    if predicted_s(last.dirty_bytes) <= rules.pause_goal_s:
        return left
    if len(rounds) >= rules.max_rounds:
        return f"{left}, which is the most"
    if copied + last.dirty_bytes > rules.max_copies * max(first, 1):
        return f"{left}, {_mib(copied)} were copied already"
    if sum(one.seconds for one in rounds) >= rules.max_seconds:
        return f"{left}, which took {rules.max_seconds:g} s"
    if _stalls(rounds):
        return f"{left}, it writes faster than they get fewer"
    return ""


def _stalls(rounds: Sequence[Round]) -> bool:
    """Whether the last rounds brought nothing."""
    if len(rounds) <= PATIENCE or predicted_s(rounds[-1].dirty_bytes) < STALL_S:
        return False
    recent = [one.dirty_bytes for one in rounds[-PATIENCE - 1 :]]
    return all(now > PROGRESS * before for before, now in pairwise(recent))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
