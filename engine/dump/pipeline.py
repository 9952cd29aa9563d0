# SPDX-License-Identifier: Apache-2.0
"""The dump: look, stop, take, let go, write. The order is in `_dump_once`, in one place.

Everything that can refuse is asked before the stop where it can be seen from /proc, and the
rest before anything is written; a refusal or an error at any point lets every task run on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import ParamSpec

from torpor.engine.dump import again, beforehand, cgroups, injected, ipcns, sharing, tables
from torpor.engine.dump.assemble import assemble
from torpor.engine.dump.capture import capture_tasks
from torpor.engine.dump.freeze import StoppedTree, list_tasks, stopped
from torpor.engine.dump.images import directory_for, parents_of, write_all
from torpor.engine.dump.preflight import check_newcomers, preflight
from torpor.engine.dump.report import Phases, report_of
from torpor.engine.dump.treedump import TreeDump
from torpor.engine.dump.ways import choice
from torpor.engine.errors import Error, Findings, Refused
from torpor.engine.kernel import clocks, disks, fdview, proc, sysvipc
from torpor.engine.kind import End, FileId
from torpor.engine.memory import aio, semaphores
from torpor.engine.options import (
    After,
    DumpOptions,
    DumpReport,
    MemoryWay,
    ProgressFn,
    TcpPolicy,
)
from torpor.engine.restore import tree as tree_shape
from torpor.engine.sockets import inet, inet_state

DISK_PATIENCE_S = 0.5

P = ParamSpec("P")


def dump_trees(
    trees: Sequence[DumpOptions],
    *,
    while_frozen: Callable[[], None] | None,
    commit: Callable[[tuple[DumpReport, ...]], None] | None,
    progress: ProgressFn,
) -> tuple[DumpReport, ...]:
    """See `torpor.engine.api.dump`."""

    def once(no_way_back: Callable[[], None]) -> tuple[DumpReport, ...]:
        during, at_the_end = _behind(no_way_back, while_frozen), _behind(no_way_back, commit)
        return _dump_once(trees, during, at_the_end, progress)

    return again.until_clear(once, trees, progress)


def _behind(first: Callable[[], None], then: Callable[P, None] | None) -> Callable[P, None] | None:
    if then is None:
        return None

    def both(*args: P.args, **more: P.kwargs) -> None:
        first()
        then(*args, **more)

    return both


def _dump_once(
    trees: Sequence[DumpOptions],
    while_frozen: Callable[[], None] | None,
    commit: Callable[[tuple[DumpReport, ...]], None] | None,
    progress: ProgressFn,
) -> tuple[DumpReport, ...]:
    trees = [replace(options, pid=proc.face(options.pid)) for options in trees]
    phase = Phases(progress, max(options.timeout_s for options in trees))
    dumps = [TreeDump(options=options) for options in trees]
    hold = any(o.after is not After.CONTINUE or o.hold or o.serve is not None for o in trees)
    with ExitStack() as cleanup:
        for dump in dumps:
            cleanup.enter_context(dump.lock)
            cleanup.callback(dump.guard.end)
        with phase("look"):
            for dump in dumps:
                dump.permits.look(dump.options.pid)
                dump.ahead = clocks.ahead(dump.options.pid)
                dump.looked_at = preflight(dump.options, dump.permits)
                dump.parents = parents_of(dump.options, cleanup)
            images = [cleanup.enter_context(directory_for(d.options)) for d in dumps]
        with phase("prepare memory"):
            ways = [
                cleanup.enter_context(choice.ready(d.options, out, progress, hold, d.permits))
                for d, out in zip(dumps, images, strict=True)
            ]
            for dump, way in zip(dumps, ways, strict=True):
                dump.way = way
                tasks = [task for task in list_tasks(dump.options.pid) if task.tids]
                dump.spaces = beforehand.look(tasks)
                tables.look(dump, [task.pid for task in tasks])
                way.refresh({pid: looked.space for pid, looked in dump.spaces.items()})
        links = cleanup.enter_context(ExitStack())
        links.callback(_remove_links, dumps)
        with stopped(trees, dumps[0].permits.trace, phase.pause_begins) as trees_stopped:
            phase.all_stand()
            for dump, stop in zip(dumps, trees_stopped, strict=True):
                _take(dump, stop, phase)
                dump.guard.end()
            if while_frozen is not None:
                trees_stopped[0].haste.ease()
                with phase("files of the root"):
                    while_frozen()
            if not hold:
                with phase("let go"):
                    for dump, stop in zip(dumps, trees_stopped, strict=True):
                        dump.lock.release()
                        stop.release()
            frozen_s = phase.pause_ends()
            trees_stopped[0].calm()
            with phase("check"):
                for dump in dumps:
                    beforehand.verify(dump.spaces, dump.smaps)
                    dump.settle()
                    _check(dump)
            write_all(dumps, images, phase, frozen_s)
            if commit is not None:
                with phase("commit"):
                    commit(tuple(report_of(dump, phase, frozen_s) for dump in dumps))
            _serve(dumps, phase)
            links.pop_all()
            _take_leave(dumps, trees_stopped)
    return tuple(report_of(dump, phase, frozen_s) for dump in dumps)


def _serve(dumps: Sequence[TreeDump], phase: Phases) -> None:
    """What the images are without; there is no other copy of it but the tasks."""
    for dump in dumps:
        if dump.options.serve is not None:
            with phase("serve"):
                dump.serve()


def _remove_links(dumps: Sequence[TreeDump]) -> None:
    """Names that were made for a dump which has failed."""
    for dump in dumps:
        for pid, path in dump.links:
            with suppress(Error):
                fdview.remove_name(pid, path)


def _take_leave(dumps: Sequence[TreeDump], trees_stopped: Sequence[StoppedTree]) -> None:
    for dump, stop in zip(dumps, trees_stopped, strict=True):
        if stop.options.after is After.STOP:
            _end(dump, stop)
        elif stop.options.after is After.PAUSE:
            _pause(dump, stop)


def _end(dump: TreeDump, stop: StoppedTree) -> None:
    """Kill the tasks; their connections go on, or have their ports free for a restore here."""
    states = dump.files.states.get(inet.KIND.name, {})
    ends = inet_state.before_kill(states)
    _let_ports_go(dump, ends)
    stop.end()
    if dump.options.tcp is TcpPolicy.KEEP:
        dump.lock.stay({states[i].ends for i, end in ends.items() if end is End.SILENT})


def _pause(dump: TreeDump, stop: StoppedTree) -> None:
    """Leave the tasks stopped, with criu's choice for connections to the outside that are kept.

    They stand still until a restore, so that the peer does not hear of it when the tasks are
    killed; when the tasks are continued instead, these are dead. Those inside of the tree go on.
    """
    states = dump.files.states.get(inet.KIND.name, {})
    inside = inet_state.mates(states)
    ends = {i: end for i, end in inet_state.before_kill(states).items() if i not in inside}
    kept = {i: end for i, end in ends.items() if end is End.SILENT}
    if kept and dump.options.tcp is TcpPolicy.KEEP:
        _let_ports_go(dump, kept)
        dump.lock.stay({states[i].ends for i in kept})
        told = f"{len(kept)} TCP connections to the outside stand still until they are restored"
        dump.warnings.append(told)
    stop.pause()


def _let_ports_go(dump: TreeDump, ends: Mapping[FileId, End]) -> None:
    outside = {c.capture.ns_pid: c.task.pid for c in dump.captured}
    for file_id, end in ends.items():
        for holder in dump.files.holders.get(file_id, ())[:1]:
            with suppress(Error):
                fdview.free_port(outside[holder.task], holder.fd, end, dump.guard)


def _take(dump: TreeDump, stop: StoppedTree, phase: Phases) -> None:
    """Everything of one stopped tree."""
    assert dump.way is not None
    dump.clocks, dump.realtime_ns = clocks.now(dump.ahead), time.time_ns()
    dump.permits.verify(stop.tasks)
    check_newcomers(dump.options, stop.tasks, dump.looked_at, dump.permits)
    with phase("sharing"):  # before tasks are asked: two with one memory would use one scratch
        dump.shared = sharing.find([task.pid for task in stop.tasks if task.tids])
    dump.captured = capture_tasks(
        stop.tasks, dump.spaces, dump.permits.filters, phase, dump.way.watched
    )
    alive = [c for c in dump.captured if not c.zombie]
    with phase("descriptors"):
        groups = tables.grouped(alive, dump.shared)
        dump.files = tables.collect(dump, alive, groups)
    refused = [*dump.files.refusals, *(r for c in dump.captured for r in c.refused)]
    if alive and _may_ask_of_objects(dump, alive[0].task.pid):
        refused += ipcns.check(alive[0])
    if refused:
        raise Findings((*refused, *_finish(dump)))
    for view, path in dump.files.links:
        fdview.add_name(view.pid, view.fd, path)
        dump.links.append((view.pid, path))
    if sysvipc.same_namespace(dump.options.pid):
        dump.semaphores = semaphores.collect(
            sysvipc.semaphore_sets(),
            {c.task.process: c.capture.ns_pid for c in alive},
            ended=dump.options.after is After.STOP,
        )
    if dump.way.kind is not MemoryWay.SNAPSHOT and any(
        one.is_large for one in dump.spaces.values()
    ):
        stop.haste.ease()
    with phase("memory"):
        _await_disks(dump)
        dump.take(alive)


def _may_ask_of_objects(dump: TreeDump, pid: int) -> bool:
    """Whether a task sees others than ours, and its filters let it tell."""
    is_ours = sysvipc.same_namespace(dump.options.pid)
    return not is_ours and not dump.permits.against(pid, injected.of_objects(), "questions")


def _await_disks(dump: TreeDump) -> None:
    """What a program has asked of a disk ends by itself, in a ring that is about to be read."""
    has_rings = any(aio.rings_of(item.areas) for item in dump.captured)
    if has_rings and not disks.are_idle(DISK_PATIENCE_S):
        dump.warnings.append("a disk is busy: a request of io_submit under way would be lost")


def _finish(dump: TreeDump) -> list[Refused]:
    return [one for item in dump.captured for one in item.finish()]


def _check(dump: TreeDump) -> None:
    """Make the tree of the captures; the tasks may run on already."""
    dump.files.refusals += _finish(dump)
    tables.finish(dump)
    dump.tree = assemble(
        dump.captured,
        dump.shared,
        dump.options.runtime_seccomp_filters,
        dump.files.directories,
    )
    tree_shape.check(dump.tree)
    if not dump.options.container:
        dump.tree, dump.cgroups = cgroups.collect(
            dump.captured,
            dump.tree,
            dump.options.cgroup_controllers,
            dump.options.cgroup_settings,
        )
