# SPDX-License-Identifier: Apache-2.0
"""The restore: takes a seed process and turns it into the dumped tree.

The seed is either a container's placeholder (`take_over`) or a child of ours
(`restore_tree`). From there on both are the same: the root executes its old program, creates
every descriptor, gets its memory, forks its children, which do the same; then threads,
descriptors, signals, timers, and credentials last. Nothing runs before all are complete; all
die with us until then (PTRACE_O_EXITKILL).
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from torpor.engine import blobs, native
from torpor.engine.errors import Error, KernelError, Refused, Timeout
from torpor.engine.images.directory import Verify
from torpor.engine.images.stats import RestoreStats, write_stats
from torpor.engine.kernel import maps, proc, proctexts, rights
from torpor.engine.memory import areas as area_kinds
from torpor.engine.memory import vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group
from torpor.engine.options import (
    Progress,
    ProgressFn,
    RestoreOptions,
    RestoreReport,
    TakeoverOptions,
    no_progress,
)
from torpor.engine.program.ops import Program
from torpor.engine.restore import (
    backings,
    births,
    cgroups,
    descriptors,
    groups,
    layout,
    pidfds,
    release,
    segments,
    spawn,
    state,
    terminals,
    tree,
    uring,
)
from torpor.engine.restore.arena import Arena, find_hole, find_syscall, step_syscall
from torpor.engine.restore.contents import Contents
from torpor.engine.restore.load import Snapshot, clock_warning, load
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.staging import HugePages
from torpor.engine.restore.work import Work, memory_of
from torpor.engine.tasks.attributes import PR_SET_PDEATHSIG

CLONE_PARENT = 0x8000
GAVE_UP = 124
SCRATCH_BELOW_STACK = 8192


def take_over(options: TakeoverOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Turn a waiting placeholder into the dumped tree (see `torpor.engine.api`)."""
    snapshot = load(options.images_dir, verify=Verify.WITHOUT_PAGES)
    try:
        choose = None
        if options.choose_pid is not None:
            chooser = options.choose_pid

            def choose(want: int) -> None:
                chooser(options.pid, want)

        restore = _Restore(
            snapshot,
            progress=progress,
            choose=choose,
            path_map=dict(options.path_map),
            address_map=dict(options.address_map),
            timeout_s=options.timeout_s,
        )
        return restore.run(options.pid, stdio=(0, 1, 2), inherit={})
    finally:
        snapshot.close()


def restore_tree(options: RestoreOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Create the tree anew on this host (see `torpor.engine.api`)."""
    snapshot = load(options.images_dir, verify=Verify.WITHOUT_PAGES, with_parents=True)
    try:
        restore = _Restore(
            snapshot,
            progress=progress,
            choose=None,
            path_map={},
            address_map={},
            timeout_s=options.timeout_s,
            host=options,
        )
        if options.shell_job:
            restore.terminal = terminals.own_terminal()
        report = restore.run(None, stdio=(), inherit=options.inherit)
    finally:
        snapshot.close()
    if options.work_dir is not None:
        try:
            write_stats(options.work_dir, restore.stats(report))
        except Error as error:  # the tree runs
            return replace(report, warnings=(*report.warnings, f"no statistics: {error}"))
    return report


class _Restore(Work):
    """One restore in progress."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        progress: ProgressFn,
        choose: spawn.ChoosePid | None,
        path_map: dict[str, str],
        address_map: dict[str, str],
        timeout_s: float,
        host: RestoreOptions | None = None,
    ) -> None:
        self.host, container = host, host is None
        self.snapshot, self.progress, self.choose = snapshot, progress, choose
        self.path_map, self.address_map, self.container = path_map, address_map, container
        self.contents: Contents = snapshot.contents
        self.tree = snapshot.tree
        self.warnings: list[str] = [*filter(None, [clock_warning(snapshot.source)])]
        self.phases: dict[str, float] = {}
        self.living: dict[int, Living] = {}
        self.groups = cgroups.Groups()
        self.suspend_seccomp = False
        self.terminal: int | None = None
        self.deadline = time.perf_counter() + timeout_s

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and tell it."""
        self.progress(Progress(phase=name))
        begin = time.perf_counter()
        if begin > self.deadline:
            raise Timeout(
                "the restore took longer than it may",
                subject=f"phase {name}",
                cause=", ".join(f"{n} {s:.2f} s" for n, s in self.phases.items()),
                remedy="give it more time (--timeout)",
            )
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - begin

    def run(
        self, seed: int | None, *, stdio: tuple[int, ...], inherit: "dict[str, int] | object"
    ) -> RestoreReport:
        """Everything, from the seed to the running tree."""
        begin = time.perf_counter()
        tree.check(self.tree)
        kept = dict(inherit) if isinstance(inherit, dict) else {}
        pid = seed if seed is not None else self._spawn_seed(list(kept.values()))
        options = spawn.OPTIONS
        root: Living | None = None
        try:
            with self.phase("seize"):
                root = self._seize(pid, options)
                self._prepare_groups(root)
            numbers = {name: i + 3 for i, name in enumerate(kept)}
            self.plan = descriptors.plan(
                self.snapshot,
                descriptors.Seed(
                    stdio=stdio if seed is not None else (0, 1, 2),
                    inherit=numbers if seed is None else {},
                    limit=descriptor_limits(root.pid)[1],
                    uid=proc.parse_status(proc.read_text(root.pid, "status")).uid[0],
                    terminal=self.terminal,
                ),
                path_map=self.path_map,
                address_map=self.address_map,
                new_container=self.container,
                tcp_repair=not self.container and "NET_ADMIN" in rights.effective(),
                tcp_close=self.host is not None and self.host.tcp_close,
                check_files=self.host is not None and self.host.check_files,
                warn=self.warnings.append,
            )
            self._build(root)
            with self.phase("verify"):
                self.contents.verify()
            if self.host is not None and self.host.at_stage is not None:
                self.host.at_stage("post-restore", pid)
                self.host.at_stage("pre-resume", pid)
            with self.phase("resume"):
                release.let_go(
                    self, leave_stopped=self.host is not None and self.host.leave_stopped
                )
        except BaseException:
            self._give_up(pid, root)
            self.groups.take_away()
            self.contents.verify()  # damaged pages may have led to any error
            raise
        return RestoreReport(
            pid=pid,
            tasks=len(self.tree.tasks),
            threads=sum(len(t.threads) for t in self.tree.tasks),
            memory_bytes=self.contents.bytes_filled,
            total_s=time.perf_counter() - begin,
            phases_s=self.phases,
            warnings=tuple(self.warnings),
        )

    def stats(self, report: RestoreReport) -> RestoreStats:
        """What stats-restore tells."""
        return RestoreStats(
            forking_s=self.phases.get("tasks", 0.0),
            restore_s=report.total_s,
            pages_restored=report.memory_bytes // area_kinds.PAGE,
        )

    def _spawn_seed(self, kept: list[int]) -> int:
        """Until it is traced, a parent-death signal ends it with us."""
        root, sibling = self.tree.root, self.host is not None and self.host.sibling
        try:
            return native.spawn_seed(
                os.fsencode(blobs.program("torpor-placeholder")),
                [b"torpor-placeholder", b"seed"],
                set_tid=root.pid,
                new_session=root.sid == root.pid,
                kept=kept,
                flags=CLONE_PARENT if sibling else 0,
                dies_with_us=not sibling,
            )
        except KernelError as error:
            raise KernelError(
                f"pid {root.pid} cannot be had again",
                errno=error.errno,
                subject=root.subject,
                remedy=spawn.PID_REMEDY,
            ) from error

    def _seize(self, pid: int, options: int) -> Living:
        root = self.tree.root
        try:
            native.seize(pid, options | spawn.PTRACE_O_SUSPEND_SECCOMP)
            self.suspend_seccomp = True
        except Error:
            native.seize(pid, options)
        native.interrupt(pid)
        native.wait_stop(pid)
        native.set_sigmask(pid, HELD_SIGNALS)
        task = Living(image=root, memory_of=root, pid=pid, arena=Arena(base=0), syscall_address=0)
        task.syscall_address = find_syscall(pid, *special_areas(pid).code)
        task.tids[root.pid] = pid
        self.living[root.pid] = task
        if self.host is not None:  # traced now: it ends with us by PTRACE_O_EXITKILL
            step_syscall(pid, task.syscall_address, "prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0)
        return task

    def _prepare_groups(self, root: Living) -> None:
        """Have the control groups; the root goes there first."""
        if self.host is None:
            return
        self.groups = cgroups.prepare(
            self.snapshot.images,
            self.snapshot.source,
            self.tree,
            self.host.cgroups,
            self.host.cgroup_roots,
            self.warnings,
        )
        self.groups.enter(root.image, root.pid)
        self.groups.now = root.image.cgroup_set

    def _build(self, root: Living) -> None:
        with self.phase("memory"):
            self._execute(root, native.get_regs(root.pid).rsp)
            if root.image.pgid == root.image.pid != root.image.sid:
                root.arena.call(root.pid, "setpgid", 0, 0)
        with self.phase("files"):
            self._raise_descriptor_limit(root)
            terminals.create(self, root)
            state.create_descriptors(self, root)
            terminals.fill(self, root)
            pidfds.of_ended(self, root)
            self.backings = backings.create(self, root)
        with self.phase("memory"):
            self._lay_out_executed(root)
        with self.phase("tasks"):
            births.make_all(self)
            segments.doom(self, root)
            groups.groups(self)
            groups.zombies(self)
            for task in self.alive():
                self.groups.enter(task.image, task.pid)
        with self.phase("state"):
            backings.seal(self, root)
            uring.create(self, root)
            segments.take_semaphores(self, root)
            state.place_descriptors(self)
            for task in self.alive():
                state.task_state(self, task)
            state.unlock_network(self)
            state.finish_descriptors(self)
            for task in self.alive():
                state.last_state(self, task)

    # ---- memory

    def _execute(self, task: Living, stack: int) -> None:
        """Exec the old program and map the arena into its fresh address space."""
        memory = memory_of(task)
        scratch = (stack - SCRATCH_BELOW_STACK) & -64
        program = "/proc/self/exe" if memory.exe_file else memory.exe
        spawn.execute(task.pid, task.syscall_address, scratch, program, task.image.comm)
        fresh = maps.parse_maps(proc.read_text(task.pid, "maps"))
        current = special_areas(task.pid)
        task.syscall_address = find_syscall(task.pid, *current.code)
        used = [(v.start, v.end) for v in fresh]
        for other in self.tree.tasks:
            used += [(a.start, a.end) for a in (other.memory.areas if other.memory else ())]
        used = [(a, b) for a, b in used if a < area_kinds.TASK_SIZE]
        task.arena = Arena(base=find_hole(used, Arena(base=0).size_bytes))
        task.arena.map_into(task.pid, task.syscall_address, task.image.subject)

    def _lay_out_executed(self, task: Living) -> None:
        memory, current = memory_of(task), special_areas(task.pid)
        old = vdso.group(memory.areas)
        code_area = next((a for a in memory.areas if a.backing is Backing.VDSO), None)
        code = self.contents.area_bytes(task.image.pid, code_area) if code_area else None
        now = native.read_memory(task.pid, current.code[0], current.code[1] - current.code[0])
        used = [(a.start, a.end) for a in memory.areas if a.backing is not Backing.VSYSCALL]
        spare = find_hole([*used, (task.arena.base, task.arena.end)], current.end - current.start)
        plan = vdso.plan(old, code, current, now, spare)
        filled = self._filled(task)
        program = layout.after_exec(task.arena, memory.areas, current, plan, self.backings, filled)
        task.arena.run(task.pid, program, task.image.subject)
        if memory.exe_file:
            backings.set_program(task, self.backings.files[memory.exe_file])
        task.areas, task.opened, task.special = tuple(memory.areas), filled, old
        wanted = [
            a for a in memory.areas if a.backing not in area_kinds.SPECIAL or plan.keep_old_code
        ]
        moved = next((m for m in plan.moves if m.source == current.code[0]), None)
        if moved is not None:
            task.syscall_address = find_syscall(
                task.pid, moved.target, moved.target + moved.size_bytes
            )
        self.contents.fill(task.pid, task.image.pid, wanted, HugePages(task=task))
        for address, content in plan.patches:
            native.write_memory(task.pid, address, content)
        if moved is None:
            task.syscall_address = own_syscall(task.pid, memory.areas, task.image.subject)

    def give_memory(self, task: Living, maker: Living) -> None:
        """What a task that was forked by ``maker`` had: from its maker, or from its program."""
        before = maker.memory_of.memory
        assert before is not None
        if layout.forked_from(memory_of(task), before):
            self._lay_out_forked(task, maker)
        else:
            self._execute(task, task.arena.scratch + SCRATCH_BELOW_STACK)
            self._lay_out_executed(task)

    def _lay_out_forked(self, task: Living, parent: Living) -> None:
        memory = memory_of(task)
        filled = self._filled(task)
        program, kept = layout.after_fork(
            memory.areas,
            parent.areas,
            vdso.group(parent.areas),
            vdso.group(memory.areas),
            self.backings,
            filled,
            keep_old_code=False,
        )
        task.arena.run(task.pid, program, task.image.subject)
        starts = {a.start for a in kept}
        fresh = [
            a for a in memory.areas if a.start not in starts and a.backing not in area_kinds.SPECIAL
        ]
        drops = self.contents.fill_forked(
            task.pid, task.image.pid, parent.memory_of.pid, kept, fresh, HugePages(task=task)
        )
        task.arena.run(task.pid, Program("drop pages", drops), task.image.subject)
        task.areas = tuple(memory.areas)
        task.opened = filled | (parent.opened & starts)
        task.special = parent.special

    def _filled(self, task: Living) -> set[int]:
        pages = self.contents.of(task.image.pid)
        return {
            area.start
            for area in memory_of(task).areas
            if not area.shared and area.backing is not Backing.VVAR and pages.within(area)
        }

    # ---- tasks

    def _raise_descriptor_limit(self, root: Living) -> None:
        soft, hard = descriptor_limits(root.pid)
        if self.plan.highest > hard:
            raise Refused(
                f"{self.plan.highest} descriptors are needed while restoring",
                subject=root.image.subject,
                cause=f"the hard limit is {hard}",
                remedy="raise RLIMIT_NOFILE of the new container or of this shell",
            )
        if self.plan.highest > soft:
            import resource

            resource.prlimit(root.pid, resource.RLIMIT_NOFILE, (hard, hard))

    # ---- end

    def _give_up(self, pid: int, root: Living | None) -> None:
        others = [t for t in self.living.values() if t is not root]
        if root is not None and root.syscall_address:
            if root.image.root == "/" or "state" not in self.phases:  # its paths lead elsewhere
                root.arena.take_back(root.pid)
            spawn.end(root, others, GAVE_UP)
            spawn.reap_ours([pid, *(t.pid for t in others)])
            return
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            return


def descriptor_limits(pid: int) -> tuple[int, int]:
    """Soft and hard RLIMIT_NOFILE of a live task."""
    return proctexts.parse_limits(proc.read_text(pid, "limits"))[descriptors.RLIMIT_NOFILE]


def special_areas(pid: int) -> Group:
    """The kernel's own block in a live task."""
    parts = []
    for vma in maps.parse_maps(proc.read_text(pid, "maps")):
        if vma.name == "[vdso]":
            parts.append((Backing.VDSO.value, vma.start, vma.end))
        elif vma.name.startswith("[vvar"):
            parts.append((Backing.VVAR.value, vma.start, vma.end))
    if not parts:
        raise Refused("this kernel gives its tasks no vDSO", remedy="boot with vdso=1")
    parts.sort(key=lambda part: part[1])
    return Group(start=parts[0][1], end=parts[-1][2], parts=tuple(parts))


def own_syscall(pid: int, found: Sequence[Area], subject: str) -> int:
    """A system call instruction in the code of a task that has unmapped its vDSO."""
    for area in found:
        if area.prot & area_kinds.PROT_EXEC and area.backing not in area_kinds.SPECIAL:
            with suppress(Error):
                return find_syscall(pid, area.start, area.end)
    raise Refused(
        "has no vDSO, and no system call instruction of its own",
        subject=subject,
        remedy="leave the vDSO mapped",
    )
