# SPDX-License-Identifier: Apache-2.0
"""Programs of many tasks that run beside each other, while the next ones are encoded.

A program's stop and go cost more than most of its calls do, and a task that runs does not keep us
from preparing the next. The tasks must not depend on each other's programs.
"""

from types import TracebackType
from typing import Self

from torpor.engine.errors import Error
from torpor.engine.program.ops import Program
from torpor.engine.restore.arena import Running
from torpor.engine.restore.spawn import Living


class Batch:
    """A context in which programs are started; at its end all have run.

    The threads of a task share its arena, so they run one after another. When one fails, the first
    error is raised as soon as none runs any more.
    """

    def __init__(self) -> None:
        self._running: dict[int, Running] = {}
        """By the pid of the task."""

    def start(self, task: Living, tid: int, program: Program, subject: str) -> None:
        """Have a thread of a task run a program. Raises what an earlier one of the task gave."""
        for piece in task.arena.pieces(tid, program, subject):
            if (before := self._running.get(task.pid)) is not None:
                before.finish()
            piece.start()
            self._running[task.pid] = piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        first: Error | None = None
        while self._running:
            _, running = self._running.popitem()
            try:
                running.finish()
            except Error as found:
                first = first or found
        if first is not None and error is None:
            raise first
