# SPDX-License-Identifier: Apache-2.0
"""The Python face of the engine: dump, take over, restore.

    from torpor.engine import api

`dump` takes several trees at once: all are stopped before the first is read, so that they
are cut at one instant (the containers of a pod). `while_frozen` runs during the pause, after
memory has been read: for what must be consistent with it (changed files of a root).
"""

from collections.abc import Callable, Sequence

from torpor.engine.haste import uncollected
from torpor.engine.options import (
    DumpOptions,
    DumpReport,
    ProgressFn,
    RestoreOptions,
    RestoreReport,
    TakeoverOptions,
    no_progress,
)


def dump(
    trees: Sequence[DumpOptions],
    *,
    while_frozen: Callable[[], None] | None = None,
    commit: Callable[[tuple[DumpReport, ...]], None] | None = None,
    progress: ProgressFn = no_progress,
) -> tuple[DumpReport, ...]:
    """Dump the trees at one instant; every image directory is whole on return.

    `commit` gets the reports when all image directories are whole; trees with `After.STOP` are
    still stopped then and are ended only after it returned.

    Raises:
        Error: nothing was kept, every task runs on as it was.
    """
    from torpor.engine.dump.pipeline import dump_trees

    return dump_trees(trees, while_frozen=while_frozen, commit=commit, progress=progress)


def pre_dump(options: DumpOptions, *, progress: ProgressFn = no_progress) -> DumpReport:
    """Copy the memory of a running tree, for a dump that names it as parent."""
    from torpor.engine.dump.predump import pre_dump as work

    return work(options, progress=progress)


def plan_dump(options: DumpOptions) -> str:
    """Say what a dump would save or refuse, without touching the tasks."""
    from torpor.engine.dump.preview import preview

    return preview(options)


def takeover(options: TakeoverOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Turn a waiting placeholder into the dumped tree; it runs on return.

    Raises:
        Error: the placeholder was killed (exit status 137) or never touched.
    """
    from torpor.engine.restore.launch import take_over

    with uncollected():
        return take_over(options, progress=progress)


def restore(options: RestoreOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Create the dumped tree anew from a process of the host."""
    from torpor.engine.restore.launch import restore_tree

    with uncollected():
        return restore_tree(options, progress=progress)
