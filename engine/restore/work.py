# SPDX-License-Identifier: Apache-2.0
"""What the steps of one restore share: the images, the plan, the tasks that live so far."""

from collections.abc import Iterator

from torpor.engine.options import ProgressFn
from torpor.engine.restore.contents import Contents
from torpor.engine.restore.descriptors import Descriptors
from torpor.engine.restore.layout import Backings
from torpor.engine.restore.lazily import LazyMemory
from torpor.engine.restore.load import Snapshot
from torpor.engine.restore.spawn import ChoosePid, Living
from torpor.engine.tasks.model import Memory, Tree


class Work:
    """One restore in progress."""

    snapshot: Snapshot
    tree: Tree
    plan: Descriptors
    contents: Contents
    living: dict[int, Living]
    """Pid of a task, as it sees itself, to the task."""
    warnings: list[str]
    choose: ChoosePid | None
    container: bool
    progress: ProgressFn
    backings: Backings
    lazy: LazyMemory
    suspend_seccomp: bool
    """No filter that the tasks are under is asked while they are restored."""

    def give_memory(self, task: Living, maker: Living) -> Iterator[None]:
        """What a task that was just forked by ``maker`` had (see `memories.give`)."""
        raise NotImplementedError

    def alive(self) -> list[Living]:
        """Tasks that live, parents first."""
        return [self.living[t.pid] for t in self.tree.tasks if t.pid in self.living]


def memory_of(task: Living) -> Memory:
    """The memory that a living task had."""
    assert task.image.memory is not None
    return task.image.memory
