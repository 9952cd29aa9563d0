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


def measured_bytes_s(rounds: Sequence[Round]) -> float:
    """How fast rounds have gone, all of what they take included."""
    copied, seconds = sum(one.copied_bytes for one in rounds), sum(one.seconds for one in rounds)
    return max(copied, 1) / max(seconds, 1e-6)


def why_stop(rounds: Sequence[Round], rules: PreCopyRules, bytes_s: float = COPY_BYTES_S) -> str:
    """Why there is no further round; empty when there is one. The first is rounds[0].

    ``bytes_s`` is how fast the last stop would be.
    """
    last = rounds[-1]
    left_s = last.dirty_bytes / bytes_s
    copied, first = sum(one.copied_bytes for one in rounds), rounds[0].copied_bytes
    count = f"{len(rounds)} rounds" if len(rounds) > 1 else "one round"
    left = f"{_mib(last.dirty_bytes)} left after {count}"
    if left_s <= rules.pause_goal_s:
        return left
    if len(rounds) >= rules.max_rounds:
        return f"{left}, which is the most"
    if copied + last.dirty_bytes > rules.max_copies * max(first, 1):
        return f"{left}, {_mib(copied)} were copied already"
    if sum(one.seconds for one in rounds) >= rules.max_seconds:
        return f"{left}, which took {rules.max_seconds:g} s"
    if left_s >= STALL_S and _stalls(rounds):
        written_s = last.dirty_bytes / max(last.seconds, 1e-6)
        return (
            f"{left}, it writes faster than they get fewer: {_mib(written_s)} a second or more, "
            f"and {_mib(bytes_s)} a second are taken"
        )
    return ""


def _stalls(rounds: Sequence[Round]) -> bool:
    """Whether the last rounds brought nothing."""
    if len(rounds) <= PATIENCE:
        return False
    recent = [one.dirty_bytes for one in rounds[-PATIENCE - 1 :]]
    return all(now > PROGRESS * before for before, now in pairwise(recent))


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
