# SPDX-License-Identifier: Apache-2.0
"""Trying a dump again, while what stands in its way goes by itself.

A client that waits to be accepted, an answer that is not read yet: a running program clears it
within moments (the probe of a kubelet connects at any time). So the tree runs on and is stopped
again, a few times, with more time between. What does not go is then refused.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from torpor.engine.errors import Error, Findings, Refused, Vanished
from torpor.engine.kernel import proc
from torpor.engine.options import DumpOptions, Progress, ProgressFn

BREAKS_S = (0.05, 0.1, 0.2, 0.4)
"""Between one try and the next."""

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

    for length_s in BREAKS_S:
        try:
            return once(commit_to_it)
        except Error as error:
            if is_final or not goes_by_itself(error, trees):
                raise
            progress(Progress(phase="again", text=str(error)))
        time.sleep(length_s)
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
