# SPDX-License-Identifier: Apache-2.0
"""Trying a dump again, while what stands in its way goes by itself.

A client that waits to be accepted, an answer that is not read yet: a running program clears it
within moments (the probe of a kubelet connects at any time). So the tree runs on and is stopped
again, a few times, with more time between while it is the same. What does not go is then refused.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from torpor.engine.errors import Error, Findings, Refused, Vanished
from torpor.engine.kernel import proc
from torpor.engine.options import DumpOptions, Progress, ProgressFn

BREAKS_S = (0.05, 0.1, 0.2, 0.4)
"""Between one try and the next, as long as the same stands in its way."""
MOST_TRIES = 15
"""Of a workload in which it is something else each time."""

T = TypeVar("T")


def until_clear(
    once: Callable[[Callable[[], None]], T],
    trees: Sequence[DumpOptions],
    progress: ProgressFn,
) -> T:
    """What ``once`` gives; it is handed what to call when there is no way back to a new try."""
    is_final = False

    def commit_to_it() -> None:
        nonlocal is_final
        is_final = True

    last, repeated = "", 0
    for _ in range(MOST_TRIES - 1):
        try:
            return once(commit_to_it)
        except Error as error:
            repeated = repeated + 1 if str(error) == last else 0
            if is_final or repeated == len(BREAKS_S) or not goes_by_itself(error, trees):
                raise
            last = str(error)
            progress(Progress(phase="again", text=last))
        time.sleep(BREAKS_S[repeated])
    return once(commit_to_it)


def goes_by_itself(error: Error, trees: Sequence[DumpOptions]) -> bool:
    """Whether the same dump may succeed a moment later."""
    if isinstance(error, Vanished):
        return all(_lives(options.pid) for options in trees)
    items = error.items if isinstance(error, Findings) else (error,)
    return all(isinstance(item, Refused) and item.is_passing for item in items)


def _lives(pid: int) -> bool:
    with suppress(Vanished):
        return proc.parse_stat(proc.read_text(proc.face(pid), "stat")).state not in proc.ENDED
    return False
