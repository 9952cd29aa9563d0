# SPDX-License-Identifier: Apache-2.0
"""Rounds of a pre-copy: what was written since the last one is copied while the tree runs.

A page is protected before it is copied. So bytes that a program changes while they are read do no
harm: the page counts as written, and comes again. The same holds for what is gone when it is
read: it is not there any more, or was written anew.
"""

import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.ways import kept
from torpor.engine.dump.ways.copies import Copies
from torpor.engine.dump.ways.tracked import Behind, Tracked
from torpor.engine.errors import Error, Vanished
from torpor.engine.kernel import proc
from torpor.engine.kernel.proc import parse_status
from torpor.engine.options import Round

SMALLEST_TASK = 1 << 20
"""Bytes; with less the last stop is done as fast."""


def nothing_against(_: int) -> str:
    """Any process may be watched."""
    return ""


@dataclass(slots=True, kw_only=True)
class Rounds:
    """All address spaces of a tree, and files with what was copied of them."""

    root: int
    copies: Copies
    seize: int = 0
    against: Callable[[int], str] = nothing_against
    """Why a process may not be watched; empty when it may."""
    tracked: dict[int, Tracked] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    """Processes that are left to the last stop, and why."""
    done: list[Round] = field(default_factory=list)

    def one(self) -> Round:
        """Copy what was written since the last one."""
        begin = time.monotonic()
        written = [(one, self._written(one)) for one in self._of_tree()]
        copied = self.copies.copy([each for each in written if each[0].pid in self.tracked])
        found = Round(
            number=len(self.done),
            copied_bytes=copied,
            seconds=time.monotonic() - begin,
            dirty_bytes=sum(one.dirty_bytes() for one in self.tracked.values()),
        )
        self.done.append(found)
        return found

    @property
    def kept_bytes(self) -> int:
        """What the last stop need not copy, as far as is known."""
        return sum(kept.size_bytes(one.kept) for one in self.tracked.values())

    def seal(self) -> None:
        """No base is changed from now on."""
        self.copies.seal(self.tracked.values())

    def watch_no_more(self) -> None:
        """Undo what the tasks have of it."""
        for one in self.tracked.values():
            one.end()
        self.tracked.clear()

    def _of_tree(self) -> list[Tracked]:
        """Those that are there now; others are forgotten."""
        there = {task.pid for task in list_tasks(self.root) if task.tids}
        for pid in set(self.tracked) - there:
            self.tracked.pop(pid).end()
        return [one for pid in sorted(there) if (one := self._begun(pid))]

    def _begun(self, pid: int) -> Tracked | None:
        if pid not in self.tracked and pid not in self.left_out and _is_worth_it(pid):
            if against := self.against(pid):
                self.left_out[pid] = against
                return None
            try:
                self.tracked[pid] = Tracked.begin(pid, self.seize)
            except Error as error:
                self.left_out[pid] = error.cause or error.what
        return self.tracked.get(pid)

    def _written(self, one: Tracked) -> "array[int]":
        try:
            return one.written()
        except Behind as behind:
            self.left_out[one.pid] = f"a device may write to its memory: {behind}"
        except (LookupError, Vanished):  # it has ended, or is another program: see the next round
            pass
        except Error as error:
            self.left_out[one.pid] = error.cause or error.what
        self.tracked.pop(one.pid).end()
        return array("Q")


def _is_worth_it(pid: int) -> bool:
    with suppress(Error):
        raw = parse_status(proc.read_text(pid, "status")).raw
        return int(raw.get("RssAnon", "0").split()[0]) << 10 >= SMALLEST_TASK
    return False
