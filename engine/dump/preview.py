# SPDX-License-Identifier: Apache-2.0
"""What a dump would save or refuse, told without stopping or changing anything.

It reads what the dump reads from outside. What only the stopped task itself can tell (signal
actions, timers) is never refused and not looked at; the tree may change before a dump.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torpor.engine.capture import innermost, process_inside
from torpor.engine.dump.freeze import StoppedTask, list_tasks
from torpor.engine.dump.owners import owners
from torpor.engine.dump.permits import Permits, may_read_filters
from torpor.engine.dump.preflight import preflight
from torpor.engine.dump.terminals import controlling
from torpor.engine.dump.ways import choice
from torpor.engine.errors import Findings, Refused, Unavailable
from torpor.engine.files import table
from torpor.engine.files.grouping import Collected, Table
from torpor.engine.kernel import fdtexts, fdview, proc
from torpor.engine.kernel.maps import Vma, parse_smaps
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kind import DumpContext
from torpor.engine.kinds import FILE_KINDS
from torpor.engine.memory import areas
from torpor.engine.options import After, DumpOptions


@dataclass(slots=True, kw_only=True)
class Preview:
    """The findings about a tree."""

    tasks: list[str] = field(default_factory=list)
    threads: int = 0
    memory_bytes: int = 0
    memory: str = ""
    """The way in which it would be taken, and why."""
    area_count: int = 0
    files: Collected = field(default_factory=Collected)
    refused: list[Refused] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def preview(options: DumpOptions) -> str:
    """The report as text."""
    found = look(options)
    lines = [
        f"A dump of pid {options.pid} would save {len(found.tasks)} tasks with "
        f"{found.threads} threads:",
        *(f"  {line}" for line in found.tasks),
    ]
    lines.append(f"memory: {found.area_count} areas, about {found.memory_bytes / 2**20:.1f} MiB")
    lines.append(f"  taken by the way {found.memory}")
    lines.append(f"descriptors: {found.files.descriptors} of {len(found.files.views)} open files")
    lines += [f"  {len(states):5} {name}" for name, states in sorted(found.files.states.items())]
    lines += [f"will differ after a restore: {text}" for text in found.warnings]
    if not found.refused:
        lines.append("nothing would be refused")
    for one in found.refused:
        lines.append(
            f"refused: {one.subject}: {one.what}" + (f" ({one.cause})" if one.cause else "")
        )
        lines.append(f"  remedy: {one.remedy}")
    return "\n".join(lines)


def look(options: DumpOptions) -> Preview:
    """Read the tree as it is now."""
    options = replace(options, pid=proc.face(options.pid))
    found = Preview()
    tasks = list_tasks(options.pid)
    permits = Permits(suspended=may_read_filters())
    permits.look(options.pid)
    try:
        preflight(options, permits)
    except Findings as error:
        found.refused += error.items
    held = options.after is not After.CONTINUE or options.hold
    found.memory = choice.choose(options, permits, held=held).text
    alive = [task for task in tasks if task.tids]
    for task in tasks:
        _look_at_task(task, found)
    found.files = _descriptors(options, alive, found)
    found.refused += found.files.refusals
    return found


def _look_at_task(task: StoppedTask, found: Preview) -> None:
    status = proc.read_text(task.pid, "status")
    name = proc.read_text(task.pid, "comm").strip()
    inside = process_inside(status, task.process)
    if not task.tids:
        found.tasks.append(f"task {inside} ({name}): a zombie, with its exit status")
        return
    vmas: Sequence[Vma] = parse_smaps(proc.read_text(task.pid, "smaps"))
    kept, refused = areas.collect(vmas, f"task {inside}")
    found.refused += refused
    own = sum(vma.sizes_kb.get("Anonymous", 0) << 10 for vma in vmas)
    found.memory_bytes += own
    found.area_count += len(kept)
    found.threads += len(task.tids)
    exe = proc.read_link(task.pid, "exe")
    found.tasks.append(
        f"task {inside} ({name}): {exe}, {len(task.tids)} threads, {own / 2**20:.1f} MiB of its own"
    )


def _descriptors(options: DumpOptions, alive: Sequence[StoppedTask], found: Preview) -> Collected:
    statuses = [(task, proc.read_text(task.pid, "status")) for task in alive]
    pids = {task.pid: process_inside(text, task.process) for task, text in statuses}
    context = DumpContext(
        tcp=options.tcp,
        container=options.container,
        ghost_limit_bytes=options.ghost_limit_bytes,
        warn=found.warnings.append,
        tasks={task.process: pids[task.pid] for task in alive},
        owners=owners(
            (parse_status(text), {tid: _inside(task.pid, tid) for tid in task.tids})
            for task, text in statuses
        ),
        realtime_ns=time.time_ns(),
        same_netns=fdtexts.same_netns(options.pid),
        is_stopped=False,
        shell_job=options.shell_job,
        external=options.external,
        terminals=controlling(
            (proc.read_text(task.pid, "stat"), proc.read_text(task.pid, "status")) for task in alive
        ),
    )
    try:
        with fdview.open_views(pids, netns_socket=_no_socket) as views:
            tables = [
                Table(number=i, tasks=(inside,), views=views.of(pid))
                for i, (pid, inside) in enumerate(pids.items(), 1)
            ]
            return table.collect_tables(tables, FILE_KINDS, context)
    except Unavailable as error:
        found.warnings.append(error.what)
        return Collected()


def _inside(pid: int, tid: int) -> int:
    return innermost(proc.read_text(pid, f"task/{tid}/status"), tid)


def _no_socket(pid: int, _: int) -> int:
    raise Unavailable(
        "sockets in another network namespace are only looked at by the dump itself",
        subject=f"pid {pid}",
        remedy="enter that network namespace (nsenter -n) for a preview",
    )
