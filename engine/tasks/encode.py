# SPDX-License-Identifier: Apache-2.0
"""The tree of tasks in CRIU's messages: pstree, core-N, ids-N, mm-N, fs-N, seccomp.

Facts: one core-N for each thread, the leader's with `tc`; ids-N tells which fdinfo-N belongs
to a task (files_id); mm-N names its files by ids of REG entries in files.img; creds and the
signal mask travel in each thread's `thread_core`. What has no place there (the whole XSAVE
area, affinity, timer slack, io priority) is kept in torpor.json.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import ImageSink
from torpor.engine.memory import aio, areaimages, areas, marks, policies
from torpor.engine.tasks import creds, registers, signals, timers
from torpor.engine.tasks.model import (
    MAIN_ENDED,
    STOPPED,
    EndedThread,
    Memory,
    TaskImage,
    ThreadImage,
    Tree,
)
from torpor.engine.tasks.registers import Component
from torpor.engine.tasks.seccomp import Filter

MARKERS = {
    "start_code": "mm_start_code", "end_code": "mm_end_code", "start_data": "mm_start_data",
    "end_data": "mm_end_data", "start_brk": "mm_start_brk", "brk": "mm_brk",
    "start_stack": "mm_start_stack", "arg_start": "mm_arg_start", "arg_end": "mm_arg_end",
    "env_start": "mm_env_start", "env_end": "mm_env_end",
}  # fmt: skip
FIRST_ID = 2
"""Of kernel objects: 1 is the dumping process itself, and CRIU takes an equal id for sharing."""
SIGSTOP = 19
MAX_AUXV = 44
"""Words that CRIU 4.2 takes; the kernel ends a shorter vector itself, so AT_NULL can go."""
NAMESPACE_IDS = {
    "pid_ns_id": 1, "net_ns_id": 2, "ipc_ns_id": 3, "uts_ns_id": 4, "mnt_ns_id": 5,
    "user_ns_id": 6, "cgroup_ns_id": 7, "time_ns_id": 8,
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class PathFiles:
    """REG entries for paths that no descriptor holds: mapped files, exe, cwd, root."""

    next_id: int
    ids: dict[tuple[str, int], int] = field(default_factory=dict)

    def id(self, path: str, flags: int, images: ImageSink) -> int:
        """Id of the entry of a path, made at first use."""
        known = self.ids.get((path, flags))
        if known is not None:
            return known
        number = self.next_id
        self.next_id += 1
        self.ids[path, flags] = number
        entry = pb.file_entry(type=pb.REG, id=number)
        entry.reg.id, entry.reg.flags, entry.reg.pos = number, flags, 0
        entry.reg.name = path.encode("utf-8", "surrogateescape")
        entry.reg.fown.CopyFrom(pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0))
        images.add("files", entry)
        return number


def encode_tree(
    tree: Tree,
    images: ImageSink,
    components: tuple[Component, ...],
    first_free_id: int,
) -> None:
    """Write everything but descriptors and pages."""
    paths = PathFiles(next_id=first_free_id)
    filters = _FilterTable()
    for number, task in enumerate(tree.tasks, FIRST_ID):
        entry = pb.pstree_entry(
            pid=task.pid,
            ppid=task.ppid if task is not tree.root else 0,
            pgid=task.pgid,
            sid=task.sid,
        )
        entry.threads.extend(t.tid for t in task.threads)
        if task.zombie:
            entry.threads.append(task.pid)
        images.add("pstree", entry)
        _encode_task(task, images, components, filters)
        _encode_own(task, images)
        if task.memory is None:
            continue
        ids = pb.task_kobj_ids_entry(
            vm_id=number,
            files_id=table_id(tree, task, "files_of"),
            fs_id=table_id(tree, task, "fs_of"),
            sighand_id=number,
            **NAMESPACE_IDS,
        )
        images.add(f"ids-{task.pid}", ids)
        _encode_memory(task, task.memory, images, paths)
        images.add(
            f"fs-{task.pid}",
            pb.fs_entry(
                cwd_id=task.cwd_file or paths.id(task.cwd, 0o200000, images),
                root_id=task.root_file or paths.id(task.root, 0o200000, images),
                umask=task.umask,
            ),
        )
    message = pb.seccomp_entry()
    message.seccomp_filters.extend(filters.entries)
    images.add("seccomp", message)


def table_id(tree: Tree, task: TaskImage, name: str) -> int:
    """Number of a table of a task (a field of SHARED): that of the first task which has it."""
    found = getattr(task, name)
    owner = found if found is not None else task.pid
    return next(i for i, t in enumerate(tree.tasks, FIRST_ID) if t.pid == owner)


def _encode_own(task: TaskImage, images: ImageSink) -> None:
    """What of a task CRIU's messages have no place for."""
    own: dict[str, Any] = {"exit_signal": task.exit_signal, "settings": dict(task.settings)}
    if task.ended is not None:
        own["state"] = task.state
    if task.state == STOPPED:
        own["stop_told"] = not task.stop_signal
    if task.coredump_filter is not None:
        own["coredump_filter"] = task.coredump_filter
    if task.memory is not None and task.memory.thp_flags:
        own["thp_flags"] = task.memory.thp_flags
    if task.session_nice:
        own["session_nice"] = task.session_nice
    images.extra("tasks", str(task.pid), own)


class _FilterTable:
    """seccomp.img: filters chained by `prev`, from the oldest of a thread to its newest.

    Fact: so has CRIU 4.2, seen in its images; it sets them in the order of the chain.
    """

    def __init__(self) -> None:
        self.entries: list[pb.seccomp_filter] = []
        self.known: dict[tuple[tuple[bytes, int], ...], int] = {}

    def index(self, filters: Sequence[Filter]) -> int:
        """Index of the oldest filter of a thread (they are given newest first)."""
        chain = tuple((f.program, f.flags) for f in filters)
        for length in range(1, len(chain) + 1):
            if chain[:length] in self.known:
                continue
            code, flags = chain[length - 1]
            entry = pb.seccomp_filter(filter=code, flags=flags)
            if length > 1:
                entry.prev = self.known[chain[: length - 1]]
            self.known[chain[:length]] = len(self.entries)
            self.entries.append(entry)
        return self.known[chain]


def _encode_task(
    task: TaskImage, images: ImageSink, components: tuple[Component, ...], filters: _FilterTable
) -> None:
    for i, thread in enumerate(task.threads):
        core = pb.core_entry(mtype=pb.core_entry.X86_64)
        core.thread_info.clear_tid_addr = thread.tid_address
        registers.encode(thread.registers, core.thread_info, components)
        _encode_thread(thread, core.thread_core, filters)
        core.thread_core.cg_set = task.cgroup_set
        if i == 0 and task.ended is None:
            _encode_leader(task, core.tc)
        images.add(f"core-{thread.tid}", core)
        images.extra(
            "threads",
            str(thread.tid),
            {
                "xstate": base64.b64encode(thread.registers.xstate).decode("ascii"),
                "affinity": thread.scheduling.affinity.hex()
                if thread.scheduling.affinity
                else None,
                "ioprio": thread.scheduling.ioprio,
                "timerslack_ns": thread.scheduling.timerslack_ns,
                "deadline": thread.scheduling.deadline,
                "settings": dict(thread.settings),
            },
        )
    if task.zombie or task.ended is not None:
        core = pb.core_entry(mtype=pb.core_entry.X86_64)
        _encode_leader(task, core.tc)
        if task.ended is not None:
            _encode_ended(task.ended, core.thread_core)
        core.thread_info.clear_tid_addr = 0
        for name in registers.GP_FIELDS:
            setattr(core.thread_info.gpregs, name, 0)
        for name in ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask"):
            setattr(core.thread_info.fpregs, name, 0)
        images.add(f"core-{task.pid}", core)


def _encode_ended(ended: EndedThread, entry: Any) -> None:  # noqa: ANN401
    entry.futex_rla, entry.futex_rla_len = 0, 0
    entry.blk_sigset = ended.sigmask
    entry.sched_nice, entry.sched_policy = ended.nice, ended.policy
    entry.sched_prio = ended.priority
    creds.encode(ended.creds, entry.creds)


def _encode_leader(task: TaskImage, tc: Any) -> None:  # noqa: ANN401
    tc.task_state = task.state if task.ended is None else MAIN_ENDED
    tc.exit_code = task.exit_code
    tc.personality, tc.flags, tc.comm = task.personality, 0, task.comm
    tc.blk_sigset = task.threads[0].sigmask if task.threads else 0
    if task.zombie:
        return
    timers.encode(task.itimers, task.posix_timers, tc.timers)
    for soft, hard in task.rlimits:
        tc.rlimits.rlimits.add(cur=soft, max=hard)
    tc.signals_s.SetInParent()
    signals.encode_queue(task.shared_pending, tc.signals_s)
    if task.loginuid is not None:
        tc.loginuid = task.loginuid
    tc.oom_score_adj, tc.child_subreaper = task.oom_score_adj, task.subreaper
    if task.state == STOPPED:
        tc.stop_signo = task.stop_signal or SIGSTOP
    if task.membarrier:
        tc.membarrier_registration_mask = task.membarrier
    signals.encode_actions(task.actions, tc)


def _encode_thread(thread: ThreadImage, entry: Any, filters: _FilterTable) -> None:  # noqa: ANN401
    entry.futex_rla, entry.futex_rla_len = thread.robust
    entry.sched_nice = thread.scheduling.nice
    entry.sched_policy = thread.scheduling.policy
    if thread.scheduling.priority:
        entry.sched_prio = thread.scheduling.priority
    entry.blk_sigset = thread.sigmask
    entry.sas.ss_sp = thread.altstack.pointer
    entry.sas.ss_size = thread.altstack.size_bytes
    entry.sas.ss_flags = thread.altstack.flags
    if thread.pdeathsig:
        entry.pdeath_sig = thread.pdeathsig
    entry.signals_p.SetInParent()
    signals.encode_queue(thread.pending, entry.signals_p)
    creds.encode(thread.creds, entry.creds)
    entry.comm = thread.comm
    if thread.seccomp:
        entry.seccomp_mode = pb.filter
        entry.seccomp_filter = filters.index(thread.seccomp)
    if thread.seccomp_strict:
        entry.seccomp_mode = pb.strict
    if thread.rseq[0]:
        entry.rseq_entry.rseq_abi_pointer = thread.rseq[0]
        entry.rseq_entry.rseq_abi_size = thread.rseq[1]
        entry.rseq_entry.signature = thread.rseq[2]


def _encode_memory(
    task: TaskImage,
    memory: Memory,
    images: ImageSink,
    paths: PathFiles,
) -> None:
    entry = pb.mm_entry(exe_file_id=memory.exe_file or paths.id(memory.exe, 0, images))
    for name, field_name in MARKERS.items():
        setattr(entry, field_name, getattr(memory, name))
    words = memoryview(memory.auxv[: len(memory.auxv) & ~7]).cast("Q")
    entry.mm_saved_auxv.extend(words[: len(words) - 2 if len(words) > MAX_AUXV else None])
    for area in areaimages.data_joined(memory.areas):
        file_id = 0
        if area.path and not area.file_id:
            file_id = paths.id(area.path, areas.O_RDWR if area.writable_file else 0, images)
        areaimages.encode(
            area,
            entry.vmas.add(),
            file_id=file_id,
            heap=(memory.start_brk, memory.brk),
            stack=memory.start_stack,
        )
    marks.encode_guards(memory.marks, entry.vmas)
    entry.aios.extend(aio.encode(area) for area in aio.rings_of(memory.areas))
    entry.dumpable, entry.thp_disabled = memory.dumpable, memory.thp_disabled
    images.add(f"mm-{task.pid}", entry)
    marked = marks.encode(memory.marks)
    if marked:
        images.extra("marks", str(task.pid), marked)
    bound = policies.encode(memory.policies)
    if bound:
        images.extra("policies", str(task.pid), bound)
