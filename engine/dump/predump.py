# SPDX-License-Identifier: Apache-2.0
"""The pre-dump: memory only, of a tree that runs on, for a dump that has it as parent.

The tree stands still while its pages are copied, as in a dump; nothing else of it is kept, so
nothing is refused for what else it holds.
"""

from contextlib import ExitStack
from dataclasses import replace

from torpor.engine.dump import again, beforehand, sharing
from torpor.engine.dump.capture import capture_tasks
from torpor.engine.dump.freeze import list_tasks, stopped
from torpor.engine.dump.images import directory_for, finish, inventory, parents_of, write_pages
from torpor.engine.dump.preflight import check_newcomers, preflight
from torpor.engine.dump.report import Phases, report_of
from torpor.engine.dump.treedump import TreeDump
from torpor.engine.dump.ways import choice
from torpor.engine.kernel import proc
from torpor.engine.options import DumpOptions, DumpReport, MemoryWay, ProgressFn


def pre_dump(options: DumpOptions, *, progress: ProgressFn) -> DumpReport:
    """See `torpor.engine.api.pre_dump`."""
    return again.until_clear(lambda _: _pre_dump_once(options, progress), [options], progress)


def _pre_dump_once(options: DumpOptions, progress: ProgressFn) -> DumpReport:
    options = replace(options, pid=proc.face(options.pid))
    phase = Phases(progress, options.timeout_s)
    dump = TreeDump(options=options)
    with ExitStack() as cleanup:
        with phase("look"):
            dump.permits.look(options.pid)
            dump.looked_at = preflight(options, dump.permits)
            dump.spaces = beforehand.look(list_tasks(options.pid))
            dump.parents = parents_of(options, cleanup)
            out = cleanup.enter_context(directory_for(options))
            dump.way = cleanup.enter_context(
                choice.ready(
                    replace(options, memory=MemoryWay.FROZEN), out, progress, False, dump.permits
                )
            )
        phase.pause_begins()
        with stopped([options], dump.permits.trace) as (stop,):
            phase.all_stand()
            dump.permits.verify(stop.tasks)
            check_newcomers(options, stop.tasks, dump.looked_at, dump.permits)
            sharing.find([task.pid for task in stop.tasks if task.tids])
            dump.captured = capture_tasks(stop.tasks, dump.spaces, dump.permits.filters, phase)
            with phase("memory"):
                alive = [c for c in dump.captured if not c.zombie]
                dump.take(alive)
            stop.release()
            frozen_s = phase.pause_ends()
            stop.calm()
            with phase("write"):
                dump.settle()
                inventory(out)
                write_pages(dump, out, progress)
            with phase("sync"):
                finish(dump, out, phase, frozen_s)
    return report_of(dump, phase, frozen_s)
