# SPDX-License-Identifier: Apache-2.0
"""Progress of long work on a terminal.

The workload may be frozen while a step is told, so nothing is imported or drawn then unless
the work is long already: rich is loaded beforehand, and a bar appears after half a second, at
most five times a second, without a thread of its own.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torpor.engine.options import Progress, ProgressFn, no_progress

if TYPE_CHECKING:
    from rich.progress import TaskID

QUIET_S = 0.5
REDRAW_S = 0.2


@contextmanager
def shown(*, wanted: bool) -> Iterator[ProgressFn]:
    """A function to tell progress to; a bar on stderr when that is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield no_progress
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """Draws the present step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.fields[phase]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"), console=Console(stderr=True), auto_refresh=False,
            transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._next_draw = time.monotonic() + QUIET_S

    def __call__(self, step: Progress) -> None:
        """Note a step, and draw it when it is time."""
        now = time.monotonic()
        if now < self._next_draw:
            return
        self._next_draw = now + REDRAW_S
        if self._task is None:
            self._rich.start()
            self._task = self._rich.add_task("", phase="")
        self._rich.update(
            self._task, description=step.text, phase=step.phase, completed=step.done,
            total=step.total or None,
        )  # fmt: skip
        self._rich.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._rich.stop()
