# SPDX-License-Identifier: Apache-2.0
"""The descriptors of a stopped tree, table by table."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from torpor.engine.deferred import Deferred
from torpor.engine.dump import mapped, sharing
from torpor.engine.dump.capture import Captured
from torpor.engine.dump.netns import NetnsSockets
from torpor.engine.dump.owners import owners
from torpor.engine.dump.terminals import controlling
from torpor.engine.dump.treedump import Asked, TreeDump
from torpor.engine.errors import Error
from torpor.engine.files import table
from torpor.engine.files.grouping import Collected, Table, foresee
from torpor.engine.kernel import fdtexts, fdview
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kind import DumpContext
from torpor.engine.kinds import FILE_KINDS
from torpor.engine.sockets import packet
from torpor.engine.tasks.encode import FIRST_ID


def grouped(alive: Sequence[Captured], shared: sharing.Shared) -> list[list[Captured]]:
    """Tasks grouped by shared descriptor tables, each group behind its first member."""
    groups: dict[int, list[Captured]] = {}
    for item in alive:
        owner = shared["files_of"].get(item.task.pid, item.task.pid)
        groups.setdefault(owner, []).append(item)
    return list(groups.values())


def look(dump: TreeDump, pids: Iterable[int]) -> None:
    """See descriptors of tasks that run, to know them again when they stand."""
    seen = {}
    for pid in pids:
        with suppress(Error):
            seen[pid] = fdview.look_before(pid)
    views = [one.view for each in seen.values() for one in each.found.values()]
    context = DumpContext(
        tcp=dump.options.tcp,
        container=dump.options.container,
        ghost_limit_bytes=dump.options.ghost_limit_bytes,
        is_stopped=False,
    )
    try:
        dump.seen, dump.foreseen = seen, foresee(views, FILE_KINDS, fdview.ask, context)
    finally:
        fdview.leave(seen)


def collect(
    dump: TreeDump, alive: Sequence[Captured], groups: Sequence[Sequence[Captured]]
) -> Collected:
    """Every descriptor of a tree, and the files that it only maps; `finish` is to follow."""
    context = DumpContext(
        tcp=dump.options.tcp,
        container=dump.options.container,
        ghost_limit_bytes=dump.options.ghost_limit_bytes,
        half_pipes=dump.options.half_pipes,
        link_remap=dump.options.link_remap,
        warn=dump.warnings.append,
        tasks={c.task.process: c.capture.ns_pid for c in dump.captured},
        owners=Deferred(
            lambda: owners(
                (parse_status(c.capture.texts["status"]), c.inside) for c in dump.captured
            )
        ),
        threads=Deferred(lambda: {t: inner for c in alive for t, inner in c.inside.items()}),
        realtime_ns=dump.realtime_ns,
        skip_in_flight=dump.options.skip_in_flight,
        same_netns=fdtexts.same_netns(dump.options.pid),
        mapped=Deferred(lambda: mapped.ranges(alive)),
        shell_job=dump.options.shell_job,
        external=dump.options.external,
        terminals=Deferred(
            lambda: controlling(
                (c.capture.texts["stat"], c.capture.texts["status"]) for c in dump.captured
            )
        ),
    )
    with (
        NetnsSockets(alive) as sockets,
        fdview.open_views(
            {group[0].task.pid: group[0].capture.ns_pid for group in groups},
            netns_socket=sockets.get,
            guard=dump.guard,
            seen=dump.seen,
        ) as views,
    ):
        if not dump.lock.hold(views, dump.options.tcp, dump.options.network_lock):
            views.leave_connections()
        directories = {
            (view.ns_pid, view.name): view
            for view in views.removed_directories([c.task.pid for c in alive])
        }
        number = {c.capture.ns_pid: i for i, c in enumerate(dump.captured, FIRST_ID)}
        tables = [
            Table(
                number=number[group[0].capture.ns_pid],
                tasks=tuple(c.capture.ns_pid for c in group),
                views=views.of(group[0].task.pid),
            )
            for group in groups
        ]
        nameless = mapped.find(alive)
        opened = mapped.open_all(nameless, views)
        context.ask, context.rank, context.foreseen = fdview.ask, views.rank, dump.foreseen
        found = table.take(tables, FILE_KINDS, context, directories, opened)
        unattached = mapped.unattached(alive, views)
        views.let_run()
    mapped.number(nameless, found.mapped)
    packets = found.states.get(packet.KIND.name, {})
    found.refusals += mapped.packet_rings(alive, found.views, packets, dump.warnings.append)
    dump.loose = {**context.loose, **unattached}
    dump.asked = Asked(tables=tables, context=context)
    return found


def finish(dump: TreeDump) -> None:
    """Make states of what was asked of descriptors; their tasks may run on.

    Raises: Findings.
    """
    assert dump.asked is not None
    table.finish(dump.files, dump.asked.tables, FILE_KINDS, dump.asked.context)
    dump.files.refuse()
