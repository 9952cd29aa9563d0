# SPDX-License-Identifier: Apache-2.0
"""The restore: takes a seed process and turns it into the dumped tree.

The seed is either a container's placeholder (`take_over`) or a child of ours
(`restore_tree`). From there on both are the same: the root executes its old program, creates
every descriptor, gets its memory, forks its children, which do the same; then threads,
descriptors, signals, timers, and credentials last. Nothing runs before all are complete; all
die with us until then (PTRACE_O_EXITKILL).
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from signal import SIGKILL

from torpor.engine import blobs, native
from torpor.engine.errors import Error, KernelError, Refused, Timeout
from torpor.engine.haste import OF_A_RESTORE, awake
from torpor.engine.images.directory import Verify
from torpor.engine.images.stats import RestoreStats, write_stats
from torpor.engine.kernel import clocks, proc, proctexts, rights
from torpor.engine.lazy import handing
from torpor.engine.memory import areas as area_kinds
from torpor.engine.options import (
    Lazy,
    Progress,
    ProgressFn,
    RestoreOptions,
    RestoreReport,
    TakeoverOptions,
    no_progress,
)
from torpor.engine.restore import (
    backings,
    births,
    cgroups,
    descriptors,
    groups,
    lazily,
    memories,
    orphans,
    owntime,
    pidfds,
    release,
    segments,
    spawn,
    state,
    terminals,
    tree,
    uring,
)
from torpor.engine.restore.arena import Arena, find_syscall, step_syscall
from torpor.engine.restore.contents import Contents
from torpor.engine.restore.load import Snapshot, load
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.work import Work
from torpor.engine.tasks.attributes import PR_SET_PDEATHSIG

CLONE_PARENT = 0x8000
GAVE_UP = 124


def take_over(options: TakeoverOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Turn a waiting placeholder into the dumped tree (see `torpor.engine.api`)."""
    snapshot = load(options.images_dir, verify=Verify.WITHOUT_PAGES, spare=options.spare_images)
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
        with awake():
            return restore.run(options.pid, stdio=(0, 1, 2), inherit={})
    finally:
        snapshot.close()


def restore_tree(options: RestoreOptions, *, progress: ProgressFn = no_progress) -> RestoreReport:
    """Create the tree anew on this host (see `torpor.engine.api`)."""
    snapshot = load(
        options.images_dir,
        verify=Verify.WITHOUT_PAGES,
        with_parents=True,
        later=options.filled_by is not None,
    )
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
        with awake():
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
        self.warnings: list[str] = []
        self.phases: dict[str, float] = {}
        self.living: dict[int, Living] = {}
        self.groups = cgroups.Groups()
        self.lazy = lazily.LazyMemory()
        if host is not None:
            pids = [task.pid for task in self.tree.tasks if task.memory]
            self.lazy = lazily.LazyMemory(
                wanted=self._is_lazy(host, pids),
                filled_by=host.filled_by,
                only_marked=host.filled_by is not None and not handing.fills_all(host.filled_by),
                only_lacking=not all(self.contents.of(pid).is_whole for pid in pids),
            )
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
        if seed is None:
            pid = self._spawn_seed(list(kept.values()))
        else:
            pid = seed
            self._warn(owntime.jump(self.snapshot.recorded))
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
            if not self.container:
                orphans.clear(self.snapshot.connections)
            self._build(root)
            with self.phase("verify"):
                self.contents.verify(but=self._lazy_files())
            if self.host is not None and self.host.at_stage is not None:
                OF_A_RESTORE.rest()
                self.host.at_stage("post-restore", pid)
                self.host.at_stage("pre-resume", pid)
            with self.phase("resume"):
                release.let_go(
                    self,
                    leave_stopped=self.host is not None and self.host.leave_stopped,
                    last=self._fill_later,
                )
        except BaseException:
            self.lazy.close()
            self._give_up(pid, root)
            self.groups.take_away()
            self.contents.verify()  # damaged pages may have led to any error
            raise
        self.lazy.finish(self)
        return RestoreReport(
            pid=pid,
            tasks=len(self.tree.tasks),
            threads=sum(len(t.threads) for t in self.tree.tasks),
            memory_bytes=self.contents.bytes_filled,
            total_s=time.perf_counter() - begin,
            phases_s=self.phases,
            warnings=tuple(self.warnings),
            lazy_bytes=self.lazy.size_bytes,
        )

    def stats(self, report: RestoreReport) -> RestoreStats:
        """What stats-restore tells."""
        return RestoreStats(
            forking_s=self.phases.get("tasks", 0.0),
            restore_s=report.total_s,
            pages_restored=report.memory_bytes // area_kinds.PAGE,
        )

    def _spawn_seed(self, kept: list[int]) -> int:
        """With the clocks that it is to live by."""
        assert self.host is not None
        recorded, policy = self.snapshot.recorded, self.host.clocks
        joined = self.host.time_namespace
        offsets = None if joined else owntime.offsets(recorded, policy)
        with owntime.opened(joined) as namespace:
            pid = self._spawn(kept, clocks.as_text(offsets) if offsets else b"", namespace)
            try:
                if joined is not None:
                    owntime.not_entered(pid, namespace, joined)
                else:
                    self._warn(owntime.missing(pid, offsets, recorded, policy))
            except Error:
                os.kill(pid, SIGKILL)
                with suppress(ChildProcessError):  # a sibling is not ours to be waited for
                    os.waitpid(pid, 0)
                raise
        return pid

    def _spawn(self, kept: list[int], offsets: bytes, time_namespace: int) -> int:
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
                clocks=offsets,
                time_namespace=time_namespace,
            )
        except KernelError as error:
            of_files = error.errno == errno.EMFILE
            raise KernelError(
                "cannot be started" if of_files else f"pid {root.pid} cannot be had again",
                errno=error.errno,
                subject=root.subject,
                remedy="raise the limit of open files (ulimit -n)"
                if of_files
                else spawn.PID_REMEDY,
            ) from error

    def _warn(self, text: str | None) -> None:
        if text is not None:
            self.warnings.append(text)

    def _seize(self, pid: int, options: int) -> Living:
        root = self.tree.root
        try:
            native.seize(pid, options | spawn.PTRACE_O_SUSPEND_SECCOMP)
            self.suspend_seccomp = True
        except Error:
            native.seize(pid, options)
        native.settle(pid)  # a seed may still be in its execve, and stops there first
        native.set_sigmask(pid, HELD_SIGNALS)
        task = Living(image=root, memory_of=root, pid=pid, arena=Arena(base=0), syscall_address=0)
        task.syscall_address = find_syscall(pid, *memories.special_areas(pid).code)
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
            memories.execute(self, root, native.get_regs(root.pid).rsp)
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
            memories.lay_out_executed(self, root)
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
            self.lazy.hand_over(self)
            state.task_states(self)
            state.unlock_network(self)
            state.finish_descriptors(self)
            for task in self.alive():
                self.lazy.prepare(task)
            state.last_states(self)

    def give_memory(self, task: Living, maker: Living) -> Iterator[None]:
        """What a task that was just forked by ``maker`` had (see `memories.give`)."""
        return memories.give(self, task, maker)

    def _is_lazy(self, host: RestoreOptions, pids: Sequence[int]) -> bool:
        if host.lazy is not Lazy.AUTO or host.filled_by is not None:
            return host.lazy is Lazy.ON or host.filled_by is not None
        runs = [one for pid in pids for one in self.contents.of(pid).runs]
        stored = sum(one.run.size_bytes for one in runs if one.offset is not None)
        in_memory = lazily.is_in_memory(self.snapshot.images.fd)
        return lazily.is_worth_it(stored, in_memory=in_memory)

    def _lazy_files(self) -> set[str]:
        """Pages files of which not all is read before the tasks run."""
        files_ = {self.contents.of(t.image.pid).file for t in self.alive() if t.lazy}
        if files_ - self.contents.verified:
            self.warnings.append("memory that is filled lazily is not checked against its digest")
        return files_

    def _fill_later(self) -> None:
        self.lazy.begin(self)

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
