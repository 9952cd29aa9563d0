# SPDX-License-Identifier: Apache-2.0
"""One tree on its way to an image directory: what is known of it so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.dump import pages, sharing
from torpor.engine.dump.beforehand import Spaces
from torpor.engine.dump.capture import Captured
from torpor.engine.dump.later import LeftPages
from torpor.engine.dump.netlock import Lock
from torpor.engine.dump.permits import Permits, may_read_filters
from torpor.engine.dump.ways.way import Way
from torpor.engine.files.grouping import Collected, Foreseen, Table
from torpor.engine.images.inventory import new_run_id
from torpor.engine.images.parents import Chain
from torpor.engine.kernel import clocks, nftables, repair
from torpor.engine.kernel.clocks import Clocks
from torpor.engine.kernel.fdview import Seen
from torpor.engine.kind import DumpContext
from torpor.engine.memory.semaphores import Kept
from torpor.engine.options import (
    DumpOptions,
)
from torpor.engine.tasks.cgroups import Cgroups
from torpor.engine.tasks.model import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Descriptor tables of stopped tasks whose descriptors have answered."""

    tables: Sequence[Table]
    context: DumpContext


@dataclass(slots=True, kw_only=True)
class TreeDump:
    """One tree on its way to an image directory."""

    options: DumpOptions
    looked_at: frozenset[int] = frozenset()
    """Tasks that were there before the stop, and have nothing to refuse."""
    permits: Permits = field(init=False)
    """What its filters let us do."""
    spaces: Spaces = field(default_factory=dict)
    captured: list[Captured] = field(default_factory=list)
    tree: Tree | None = None
    files: Collected = field(default_factory=Collected)
    ahead: Clocks = clocks.NONE
    """By how much its clocks are ahead of ours."""
    clocks: Clocks = clocks.NONE
    """What they said when it was stopped."""
    realtime_ns: int = 0
    seen: Seen = field(default_factory=dict)
    """Descriptors as they were before the stop."""
    foreseen: Foreseen = field(default_factory=dict)
    asked: Asked | None = None
    loose: Mapping[int, Sequence[tuple[int, bytes]]] = field(default_factory=dict)
    """Content of memfds that no task maps (see `DumpContext`)."""
    semaphores: Sequence[Kept] = ()
    way: Way | None = None
    """How memory is taken."""
    taken: pages.PagesTaken | None = None
    shared: sharing.Shared = field(default_factory=dict)
    run_id: str = field(default_factory=new_run_id)
    guard: repair.Guard = field(default_factory=repair.Guard)
    lock: Lock = field(init=False)
    warnings: list[str] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    """(pid, path in its root) of names that were made for this dump."""
    image_bytes: int = 0
    cgroups: Cgroups | None = None
    parents: Chain | None = None
    """Earlier dumps that have pages already."""
    written_bytes: int = 0

    def __post_init__(self) -> None:
        self.permits = Permits(suspended=may_read_filters(), read=self.options.read_filter)
        self.lock = Lock(nftables.table_name(self.run_id))

    @property
    def smaps(self) -> dict[int, str]:
        """What was captured of each task's areas."""
        return {c.task.pid: c.capture.texts["smaps"] for c in self.captured if not c.zombie}

    def take(self, alive: Sequence[Captured]) -> None:
        """Have the memory of stopped tasks."""
        assert self.way is not None
        self.taken = pages.take(alive, self.way, self.loose, leave=self.options.serve is not None)

    def serve(self) -> None:
        """Give away the pages that the images are without.

        Raises: Error when not all were wanted; the tasks must run on then.
        """
        if self.options.serve is None:
            return
        assert self.taken is not None
        assert self.way is not None
        with self.way.reading():
            self.options.serve(LeftPages(self.taken.segments))

    def settle(self) -> None:
        """What of taking memory may wait until after the thaw."""
        assert self.way is not None
        self.way.settle()
