# SPDX-License-Identifier: Apache-2.0
"""Which way the memory of a tree is taken, and why: decided before the stop, from /proc."""

from contextlib import suppress
from dataclasses import dataclass

from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.ways.frozen import Frozen
from torpor.engine.dump.ways.held import Held
from torpor.engine.dump.ways.way import Way
from torpor.engine.errors import Vanished
from torpor.engine.kernel import proc
from torpor.engine.kernel.proc import parse_status
from torpor.engine.options import DumpOptions, MemoryWay

SIZES = "RssAnon", "RssShmem", "VmSwap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A way and the reason for it."""

    way: MemoryWay
    reason: str
    held: bool = False
    """The tasks stand still until the images are whole."""
    size_bytes: int = 0

    @property
    def text(self) -> str:
        """As a plan says it."""
        return f"{self.way.value}: {self.reason}"


def choose(options: DumpOptions, *, held: bool) -> Choice:
    """Look at a tree that runs, or at one that will be stopped."""
    size = sum(_sizes(task.pid) for task in list_tasks(options.pid))
    if held:
        reason = "the tasks stand still until the images are whole, and are read straight into them"
        return Choice(way=MemoryWay.FROZEN, reason=reason, held=True)
    reason = "asked for" if options.memory is MemoryWay.FROZEN else "it always works"
    return Choice(way=MemoryWay.FROZEN, reason=reason, size_bytes=size)


def ready(options: DumpOptions, *, held: bool) -> Way:
    """The way that was chosen, prepared for the stop."""
    way = _way_of(choose(options, held=held))
    try:
        way.prepare()
    except BaseException:
        way.close()
        raise
    return way


def _way_of(choice: Choice) -> Way:
    if choice.held:
        return Held(choice.reason)
    return Frozen(choice.size_bytes, choice.reason)


def _sizes(pid: int) -> int:
    with suppress(Vanished):
        raw = parse_status(proc.read_text(pid, "status")).raw
        return sum(int(raw.get(name, "0").split()[0]) << 10 for name in SIZES)
    return 0
