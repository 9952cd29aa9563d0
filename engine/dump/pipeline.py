# SPDX-License-Identifier: Apache-2.0
"""The dump: look, stop, take, let go, write. The order is in `dump_trees`, in one place.

Everything that can refuse is asked before the stop where it can be seen from /proc, and the
rest before anything is written; a refusal or an error at any point lets every task run on.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from torpor.engine.dump import cgroups, ipcns, mapped, pages, sharing
from torpor.engine.dump.assemble import BY_CASE as LIMITS
from torpor.engine.dump.assemble import assemble
from torpor.engine.dump.buffers import Capture
from torpor.engine.dump.capture import Captured, capture_tasks
from torpor.engine.dump.freeze import StoppedTask, StoppedTree, list_tasks, stopped
from torpor.engine.dump.netlock import Lock
from torpor.engine.dump.netns import NetnsSockets
from torpor.engine.dump.owners import owners
from torpor.engine.dump.terminals import controlling
from torpor.engine.errors import Error, Findings, Refused, Timeout, Vanished
from torpor.engine.files import table
from torpor.engine.files.table import Collected, Table
from torpor.engine.images.dedup import dedup
from torpor.engine.images.directory import PAGES_ELSEWHERE, ImageDirectory, Verify
from torpor.engine.images.inventory import new_run_id, write_inventory
from torpor.engine.images.pageserver import Client
from torpor.engine.images.parents import Chain
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.stats import DumpStats, write_stats
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.kernel import disks, fdview, nftables, nslinks, proc, repair, sysvipc
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kernel.ptrace import Option
from torpor.engine.kind import DumpContext, refuse
from torpor.engine.kinds import FILE_KINDS
from torpor.engine.memory import aio, areas, semaphores, sysv
from torpor.engine.memory.semaphores import Kept
from torpor.engine.options import (
    After,
    DumpOptions,
    DumpReport,
    NetworkLock,
    Progress,
    ProgressFn,
    TcpPolicy,
)
from torpor.engine.restore import tree as tree_shape
from torpor.engine.restore.load import processor_components
from torpor.engine.sockets import inet, inet_state
from torpor.engine.tasks import codec, namespaces, seccomp
from torpor.engine.tasks.cgroups import OWN_SET, Cgroups
from torpor.engine.tasks.cgroups import encode as encode_cgroups
from torpor.engine.tasks.model import Tree

CAP_SYS_ADMIN = 21
DISK_PATIENCE_S = 0.5


@dataclass(slots=True, kw_only=True)
class TreeDump:
    """One tree on its way to an image directory."""

    options: DumpOptions
    captured: list[Captured] = field(default_factory=list)
    tree: Tree | None = None
    files: Collected = field(default_factory=Collected)
    loose: Mapping[int, Sequence[tuple[int, bytes]]] = field(default_factory=dict)
    """Content of memfds that no task maps (see `DumpContext`)."""
    semaphores: Sequence[Kept] = ()
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
        self.lock = Lock(nftables.table_name(self.run_id))


class Phases:
    """Durations by name, told as progress."""

    def __init__(self, progress: ProgressFn, timeout_s: float) -> None:
        self.progress, self.seconds = progress, dict[str, float]()
        self.begin, self.timeout_s = time.perf_counter(), timeout_s

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is inside and tell its name."""
        self.progress(Progress(phase=name))
        begin = time.perf_counter()
        if begin - self.begin > self.timeout_s and name != "commit":
            raise Timeout(
                f"the dump took longer than {self.timeout_s:g} s",
                subject=f"phase {name}",
                cause=", ".join(f"{n} {s:.2f} s" for n, s in self.seconds.items()),
                remedy="give it more time (--timeout)",
            )
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def dump_trees(
    trees: Sequence[DumpOptions],
    *,
    while_frozen: Callable[[], None] | None,
    commit: Callable[[tuple[DumpReport, ...]], None] | None,
    progress: ProgressFn,
) -> tuple[DumpReport, ...]:
    """See `torpor.engine.api.dump`."""
    phase = Phases(progress, max(options.timeout_s for options in trees))
    dumps = [TreeDump(options=options) for options in trees]
    hold = any(options.after is not After.CONTINUE or options.hold for options in trees)
    with ExitStack() as cleanup:
        for dump in dumps:
            cleanup.enter_context(dump.lock)
            cleanup.callback(dump.guard.end)
        with phase("look"):
            may_read = may_read_filters()
            for dump in dumps:
                preflight(dump.options, may_read)
                dump.parents = parents_of(dump.options, cleanup)
            images = [cleanup.enter_context(directory_for(d.options)) for d in dumps]
            captures = [cleanup.enter_context(capture_for(d.options.pid)) for d in dumps]
        frozen_at = time.perf_counter()
        links = cleanup.enter_context(ExitStack())
        links.callback(_remove_links, dumps)
        with stopped(trees, Option.SUSPEND_SECCOMP if may_read else 0) as trees_stopped:
            phase.seconds["stop"] = time.perf_counter() - frozen_at
            for dump, stop, capture in zip(dumps, trees_stopped, captures, strict=True):
                _take(dump, stop, capture, phase, may_read)
                dump.guard.end()
            if while_frozen is not None:
                with phase("files of the root"):
                    while_frozen()
            if not hold:
                with phase("let go"):
                    for dump, stop in zip(dumps, trees_stopped, strict=True):
                        dump.lock.release()
                        stop.release()
            frozen_s = time.perf_counter() - frozen_at
            with phase("check"):
                for dump in dumps:
                    _check(dump)
            _write_all(dumps, images, phase, frozen_s)
            if commit is not None:
                with phase("commit"):
                    commit(tuple(report_of(dump, phase, frozen_s) for dump in dumps))
            links.pop_all()
            for stop in trees_stopped:
                if stop.options.after is After.STOP:
                    _end(dumps[trees_stopped.index(stop)], stop)
                elif stop.options.after is After.PAUSE:
                    stop.pause()
    return tuple(report_of(dump, phase, frozen_s) for dump in dumps)


def parents_of(options: DumpOptions, cleanup: ExitStack) -> Chain | None:
    """Earlier dumps whose pages need not be written again."""
    if not options.parent:
        return None
    return cleanup.enter_context(Chain.open((options.images_dir / options.parent).resolve()))


def directory_for(options: DumpOptions) -> NewImageDirectory:
    """The directory to write."""
    return NewImageDirectory.create(options.images_dir, replace=options.replace)


def _remove_links(dumps: Sequence[TreeDump]) -> None:
    """Names that were made for a dump which has failed."""
    for dump in dumps:
        for pid, path in dump.links:
            with suppress(Error):
                fdview.remove_name(pid, path)


def _end(dump: TreeDump, stop: StoppedTree) -> None:
    """Kill the tasks; their connections go on, or have their ports free for a restore here."""
    states = dump.files.states.get(inet.KIND.name, {})
    outside = {c.capture.ns_pid: c.task.pid for c in dump.captured}
    for file_id, end in inet_state.before_kill(states).items():
        for holder in dump.files.holders.get(file_id, ())[:1]:
            with suppress(Error):
                fdview.free_port(outside[holder.task], holder.fd, end, dump.guard)
    stop.end()
    if dump.options.tcp is TcpPolicy.KEEP:
        dump.lock.stay()


def may_read_filters() -> bool:
    """Whether PTRACE_SECCOMP_GET_FILTER will be permitted to us."""
    status = parse_status(proc.read_text(os.getpid(), "status"))
    return bool(status.cap_eff >> CAP_SYS_ADMIN & 1) and status.seccomp == 0


def preflight(options: DumpOptions, may_read: bool) -> None:
    """What can be refused by looking only.

    Raises:
        Findings: all refusals.
    """
    refused: list[Refused] = []
    ours = {os.getpid()}
    spaces = nslinks.namespaces(options.pid)
    if not options.container:
        here = nslinks.namespaces(os.getpid())
        refused += namespaces.check_root(f"pid {options.pid}", spaces, here, ())
    tasks = list_tasks(options.pid)
    refused += sharing.vforks(tasks)
    for task in tasks:
        subject = f"pid {task.pid}"
        if task.pid in ours:
            raise Refused(
                "the dumping process is inside the tree",
                subject=subject,
                remedy="dump from outside of the tree",
            )
        try:
            status = parse_status(proc.read_text(task.pid, "status"))
        except Vanished:  # it ended meanwhile: the tree is listed again when it is stopped
            continue
        if status.tracer_pid:
            refused.append(
                Refused(
                    "is traced",
                    subject=subject,
                    cause=f"by pid {status.tracer_pid} ({_name_of(status.tracer_pid)})",
                    remedy="detach the debugger",
                )
            )
        if task.pid != options.pid:
            refused += namespaces.check_task(subject, nslinks.namespaces(task.pid), spaces)
        refused += _filter_refusals(task, options.runtime_seccomp_filters, may_read)
        if task.tids and task.tids[0] != task.pid:
            refused.append(refuse(LIMITS["dead-leader"], subject))
    root = parse_status(proc.read_text(options.pid, "status"))
    if root.ns_sid[-1] != root.ns_pid[-1] and not (options.shell_job or options.container):
        refused.append(
            Refused(
                "its session was made by a task outside of the tree",
                subject=f"pid {options.pid}",
                cause=f"session {root.ns_sid[-1]}",
                remedy="dump with --shell-job: it comes back in the session of the restorer",
            )
        )
    if refused:
        raise Findings(tuple(refused))


def _name_of(pid: int) -> str:
    with suppress(Vanished):
        return proc.read_text(pid, "comm").strip()
    return "gone"


def _filter_refusals(task: StoppedTask, runtime_filters: int, may_read: bool) -> list[Refused]:
    """Filters are a thread's own: each may have more than its leader."""
    found = []
    for tid in task.tids:
        with suppress(Vanished):
            text = proc.read_text(task.pid, f"task/{tid}/status")
            where = f"pid {task.pid}" if tid == task.pid else f"pid {task.pid}, thread {tid}"
            found.append(seccomp.preflight(text, runtime_filters, may_read, where))
    return [refusal for refusal in found if refusal is not None]


def capture_for(pid: int) -> Capture:
    """Buffers as large as the tree's memory may need, ready before the stop."""
    capture = Capture()
    total = 0
    for task in list_tasks(pid):
        with suppress(Vanished):
            raw = parse_status(proc.read_text(task.pid, "status")).raw
            total += sum(
                int(raw.get(name, "0").split()[0]) << 10
                for name in ("RssAnon", "RssShmem", "VmSwap")
            )
    capture.prepare(total)
    return capture


def _take(
    dump: TreeDump, stop: StoppedTree, capture: Capture, phase: Phases, may_read: bool
) -> None:
    """Everything of one stopped tree."""
    dump.captured = capture_tasks(stop.tasks, may_read, phase)
    alive = [c for c in dump.captured if not c.capture.zombie]
    with phase("descriptors"):
        dump.shared = sharing.find([c.task.pid for c in alive])
        groups = _tables(alive, dump.shared)
        dump.files = _descriptors(dump, alive, groups)
    refused = [*dump.files.refusals, *(r for c in dump.captured for r in c.refused)]
    if alive and not sysvipc.same_namespace(dump.options.pid):
        refused += ipcns.check(alive[0], filters_are_suspended=may_read)
    if refused:
        raise Findings(tuple(refused))
    for view, path in dump.files.links:
        fdview.add_name(view.pid, view.fd, path)
        dump.links.append((view.pid, path))
    if sysvipc.same_namespace(dump.options.pid):
        dump.semaphores = semaphores.collect(
            sysvipc.semaphore_sets(),
            {c.task.pid: c.capture.ns_pid for c in alive},
            ended=dump.options.after is After.STOP,
        )
    with phase("memory"):
        _await_disks(dump)
        dump.taken = pages.take(alive, capture, dump.loose)


def _await_disks(dump: TreeDump) -> None:
    """What a program has asked of a disk ends by itself, in a ring that is about to be read."""
    has_rings = any(aio.rings_of(item.areas) for item in dump.captured)
    if has_rings and not disks.are_idle(DISK_PATIENCE_S):
        dump.warnings.append("a disk is busy: a request of io_submit under way would be lost")


def _check(dump: TreeDump) -> None:
    """Make the tree of the captures; the tasks may run on already."""
    dump.tree = assemble(
        dump.captured,
        dump.shared,
        dump.options.runtime_seccomp_filters,
        dump.files.directories,
    )
    tree_shape.check(dump.tree)
    if not dump.options.container:
        dump.tree, dump.cgroups = cgroups.collect(
            dump.captured, dump.tree, dump.options.cgroup_controllers
        )


def _tables(alive: Sequence[Captured], shared: sharing.Shared) -> list[list[Captured]]:
    """Tasks grouped by shared descriptor tables, each group behind its first member."""
    groups: dict[int, list[Captured]] = {}
    for item in alive:
        owner = shared["files_of"].get(item.task.pid, item.task.pid)
        groups.setdefault(owner, []).append(item)
    return list(groups.values())


def _descriptors(
    dump: TreeDump, alive: Sequence[Captured], groups: Sequence[Sequence[Captured]]
) -> Collected:
    context = DumpContext(
        tcp=dump.options.tcp,
        container=dump.options.container,
        ghost_limit_bytes=dump.options.ghost_limit_bytes,
        half_pipes=dump.options.half_pipes,
        link_remap=dump.options.link_remap,
        warn=dump.warnings.append,
        tasks={c.task.pid: c.capture.ns_pid for c in dump.captured},
        owners=owners(
            (
                parse_status(c.capture.texts["status"]),
                {t.tid: t.ns_tid for t in c.capture.threads},
            )
            for c in dump.captured
        ),
        threads={t.tid: t.ns_tid for c in alive for t in c.capture.threads},
        realtime_ns=time.time_ns(),
        skip_in_flight=dump.options.skip_in_flight,
        same_netns=fdview.same_netns(dump.options.pid),
        mapped=mapped.ranges(alive),
        shell_job=dump.options.shell_job,
        external=dump.options.external,
        terminals=controlling(
            (c.capture.texts["stat"], c.capture.texts["status"]) for c in dump.captured
        ),
    )
    with (
        NetnsSockets(alive) as sockets,
        fdview.open_views(
            [group[0].task.pid for group in groups], netns_socket=sockets.get, guard=dump.guard
        ) as views,
    ):
        if not dump.lock.hold(views, dump.options.tcp, dump.options.network_lock):
            views.leave_connections()
        directories = {
            (view.ns_pid, view.name): view
            for view in views.removed_directories([c.task.pid for c in alive])
        }
        number = {c.capture.ns_pid: i for i, c in enumerate(dump.captured, codec.FIRST_ID)}
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
        found = table.collect_tables(tables, FILE_KINDS, context, directories, opened)
        unattached = mapped.unattached(alive, views)
    mapped.number(nameless, found.mapped)
    dump.loose = {**context.loose, **unattached}
    return found


def _write_all(
    dumps: Sequence[TreeDump], images: Sequence[NewImageDirectory], phase: Phases, frozen_s: float
) -> None:
    with phase("write"):
        for dump, out in zip(dumps, images, strict=True):
            _write(dump, out)
    with phase("sync"):
        for dump, out in zip(dumps, images, strict=True):
            finish(dump, out, phase, frozen_s)


def finish(dump: TreeDump, out: NewImageDirectory, phase: Phases, frozen_s: float) -> None:
    """Have the images whole, then what goes beside them."""
    path = out.finish()
    if dump.options.dedup and dump.parents is not None:
        with ImageDirectory.open(path, verify=Verify.NOTHING) as images:
            dedup(images)
    write_stats(dump.options.work_dir or path, _stats(dump, phase, frozen_s))
    dump.image_bytes = sum(f.stat().st_size for f in path.iterdir() if f.is_file())


def _write(dump: TreeDump, out: NewImageDirectory) -> None:
    assert dump.tree is not None
    assert dump.taken is not None
    inventory(
        out,
        tcp_close=dump.options.tcp is TcpPolicy.CLOSE_ALL,
        locked=dump.options.tcp is TcpPolicy.KEEP
        and dump.options.network_lock is NetworkLock.NFTABLES,
        run_id=dump.run_id,
    )
    table.encode_tables(dump.files, FILE_KINDS, out)
    if dump.cgroups is not None:
        encode_cgroups(dump.cgroups, out)
    codec.encode_tree(dump.tree, out, processor_components(), dump.files.first_free_id)
    segments = {
        number: sysv.parse(number, raw) for c in dump.captured for number, raw in c.segments.items()
    }
    sysv.encode(segments.values(), out)
    semaphores.encode(dump.semaphores, out)
    out.extra(
        "dump",
        "machine",
        dict(zip(("system", "node", "release", "version", "machine"), os.uname(), strict=True)),
    )
    out.extra("dump", "monotonic_ns", time.monotonic_ns())
    out.extra("dump", "realtime_ns", time.time_ns())
    out.extra("dump", "time", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    out.extra("dump", "warnings", dump.warnings)
    write_pages(dump, out)


def inventory(
    out: NewImageDirectory, *, tcp_close: bool = False, locked: bool = False, run_id: str = ""
) -> None:
    """What every directory has."""
    write_inventory(
        out,
        root_ids=pb.task_kobj_ids_entry(
            vm_id=1, files_id=1, fs_id=1, sighand_id=1, **codec.NAMESPACE_IDS
        ),
        root_cgroup_set=OWN_SET,
        tcp_close=tcp_close,
        locked=locked,
        run_id=run_id,
    )


def write_pages(dump: TreeDump, out: NewImageDirectory) -> None:
    """Pagemaps, pages and the link to those that have the others."""
    assert dump.taken is not None
    if dump.parents is not None:
        out.link_parent(dump.options.parent)
    if dump.options.page_server is not None:
        out.extra("dump", PAGES_ELSEWHERE, True)
        pages.send(dump.taken, Client(dump.options.page_server))
        dump.written_bytes = dump.taken.size_bytes
        return
    dump.written_bytes = pages.write(dump.taken, out, dump.parents)


def _stats(dump: TreeDump, phase: Phases, frozen_s: float) -> DumpStats:
    assert dump.taken is not None
    count = dump.taken.size_bytes // areas.PAGE
    return DumpStats(
        freezing_s=phase.seconds.get("stop", 0.0),
        frozen_s=frozen_s,
        memory_dump_s=phase.seconds.get("memory", 0.0),
        memory_write_s=phase.seconds.get("write", 0.0),
        pages_scanned=count,
        pages_written=dump.written_bytes // areas.PAGE,
        pages_skipped_parent=count - dump.written_bytes // areas.PAGE,
    )


def report_of(dump: TreeDump, phase: Phases, frozen_s: float) -> DumpReport:
    """What a dump did."""
    assert dump.taken is not None
    return DumpReport(
        images_dir=dump.options.images_dir,
        tasks=len(dump.captured),
        threads=sum(len(c.capture.threads) for c in dump.captured),
        descriptors=dump.files.descriptors,
        memory_bytes=dump.taken.size_bytes,
        image_bytes=dump.image_bytes,
        frozen_s=frozen_s,
        total_s=time.perf_counter() - phase.begin,
        phases_s=_flat(phase.seconds),
        warnings=tuple(dump.warnings),
        skipped_bytes=dump.taken.size_bytes - dump.written_bytes,
    )


def _flat(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}
