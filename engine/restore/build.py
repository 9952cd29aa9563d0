# SPDX-License-Identifier: Apache-2.0
"""Programs for everything of a task that is neither memory nor descriptors."""

import struct
from collections.abc import Callable, Mapping, Sequence

from torpor.engine.kind import FileId
from torpor.engine.memory import mapping, policies
from torpor.engine.memory.areas import AT_FDCWD, O_CLOEXEC
from torpor.engine.program.ops import Data, Expect, Op, Program, Slot
from torpor.engine.tasks import attributes, creds, seccomp, settings, signals, timers
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.creds import Creds
from torpor.engine.tasks.model import Memory, TaskImage, ThreadImage

PR_SET_MM, PR_SET_MM_MAP = 35, 14
NO_EXE_FD = 0xFFFFFFFF
O_WRONLY, O_PATH = 1, 0o10000000
MM_MAP = struct.Struct("<11QQII")

Warn = Callable[[str], None]


def task_program(task: TaskImage, memory: Memory, opened: set[int], actions: int) -> Program:
    """What belongs to the whole task: directories, memory markers, signal actions.

    ``actions`` is the mask of signals whose action is not the default now.
    """
    program = Program("task")
    program.add(Op(call="umask", args=(task.umask,), subject="umask"))
    program.extend(mapping.plan_final(memory.areas, opened, memory.marks))
    program.extend(policies.plan(memory.policies, memory.areas))
    program.add(memory_markers(memory), _personality(task.personality))
    program.extend(signals.plan_actions(task.actions, actions))
    if task.fs_of is None and task.cwd_file is None and task.root_file is None:
        program.add(_chdir(task))
        if task.root != "/":
            program.add(_chroot(task.root))
    return program


def removed_directories(task: TaskImage, fds: Mapping[FileId, int]) -> list[Op]:
    """Go to directories that have no name, by the service numbers at which they are open."""
    if task.fs_of is not None or (task.cwd_file is None and task.root_file is None):
        return []
    here = Slot("cwd")
    ops = [_chdir(task) if task.cwd_file is None else _fchdir(fds[FileId(task.cwd_file)])]
    if task.root_file is not None:
        flags = O_PATH | O_CLOEXEC
        ops += [
            Op(call="openat", args=(AT_FDCWD, Data.path("."), flags, 0), yields=here),
            _fchdir(fds[FileId(task.root_file)]),
            _chroot("."),
            _fchdir(here),
            Op(call="close", args=(here,)),
        ]
    elif task.root != "/":
        ops.append(_chroot(task.root))
    return ops


def _chdir(task: TaskImage) -> Op:
    return Op(
        call="chdir",
        args=(Data.path(task.cwd),),
        subject="working directory",
        remedy="the directory must be there as before",
    )


def _fchdir(fd: int | Slot) -> Op:
    return Op(call="fchdir", args=(fd,), subject="removed directory")


def _chroot(path: str) -> Op:
    """Last: other paths of the images are those of the root before it."""
    return Op(
        call="chroot",
        args=(Data.path(path),),
        subject="root directory",
        remedy="chroot needs CAP_SYS_CHROOT",
    )


def _personality(wanted: int) -> Op:
    """After all mprotect calls: with READ_IMPLIES_EXEC they would give more than asked."""
    return Op(
        call="personality",
        args=(wanted,),
        subject="personality",
        remedy="let the seccomp profile of the container permit personality",
        expect=Expect.OK if wanted else Expect.ANY,
    )


def loginuid_program(wanted: int) -> Program:
    """The audit identity, which a task can only set itself."""
    opened, text = Slot("loginuid"), str(wanted).encode()
    subject = "loginuid"
    return Program(
        subject,
        [
            Op(
                call="openat",
                args=(AT_FDCWD, Data.path("/proc/self/loginuid"), O_WRONLY | O_CLOEXEC, 0),
                subject=subject,
                yields=opened,
            ),
            Op(
                call="write",
                args=(opened, Data(text, 1, (), str(wanted)), len(text)),
                subject=subject,
                note="may need CAP_AUDIT_CONTROL",
                expect=Expect.ANY,
            ),
            Op(call="close", args=(opened,), subject=subject),
        ],
    )


def memory_markers(memory: Memory, exe_fd: int = NO_EXE_FD) -> Op:
    """brk, stack, argument and environment areas, auxiliary vector, and the exe link if given."""
    auxv = Data(memory.auxv)
    raw = MM_MAP.pack(
        memory.start_code,
        memory.end_code,
        memory.start_data,
        memory.end_data,
        memory.start_brk,
        memory.brk,
        memory.start_stack,
        memory.arg_start,
        memory.arg_end,
        memory.env_start,
        memory.env_end,
        0,
        len(memory.auxv),
        exe_fd,
    )
    return Op(
        call="prctl",
        args=(PR_SET_MM, PR_SET_MM_MAP, Data(raw, 8, ((88, auxv),)), MM_MAP.size, 0),
        subject="memory markers",
        note="brk, stack, arguments, environment, auxv",
    )


def thread_program(thread: ThreadImage, current: Scheduling) -> Program:
    """What belongs to a thread and needs no right."""
    program = Program("thread")
    if thread.robust[0]:
        program.add(Op(call="set_robust_list", args=thread.robust, subject="robust list"))
    if thread.rseq[0]:
        pointer, size, signature, _ = thread.rseq
        program.add(Op(call="rseq", args=(pointer, size, 0, signature), subject="rseq"))
    program.add(Op(call="set_tid_address", args=(thread.tid_address,), subject="clear_child_tid"))
    program.extend(signals.plan_altstack(thread.altstack))
    program.extend(attributes.plan_name(thread.comm))
    program.extend(attributes.plan_scheduling(thread.scheduling, current))
    return program


def queue_program(task: TaskImage, limits: Sequence[tuple[int, int]], warn: Warn) -> Program:
    """Pending signals of the task, timers, resource limits: the leader runs it late."""
    program = Program("signals and timers")
    due = {
        timers.of_periodic(info, task.posix_timers)
        for queue in (task.shared_pending, *(thread.pending for thread in task.threads))
        for info in queue
    }
    program.extend(signals.plan_queue(_queued(task, task.shared_pending), task.pid, None))
    program.extend(timers.plan(task.itimers, task.posix_timers, due))
    program.extend(attributes.plan_rlimits(task.rlimits, limits, warn, task.subject))
    return program


def _queued(task: TaskImage, pending: Sequence[bytes]) -> list[bytes]:
    """Signals that no timer sends again."""
    return [info for info in pending if timers.of_periodic(info, task.posix_timers) is None]


def last_program(
    task: TaskImage, thread: ThreadImage, memory: Memory, current: Creds, warn: Warn
) -> Program:
    """Pending signals and credentials of a thread; nothing may need a right after it."""
    program = Program("credentials")
    leader = thread is task.threads[0]
    program.extend(signals.plan_queue(_queued(task, thread.pending), task.pid, thread.tid))
    program.extend(settings.plan(settings.THREAD, thread.settings))
    if leader:
        program.extend(_process_settings(task, memory))
    filters = seccomp.plan(thread.seccomp)
    last = creds.may_filter(thread.creds)
    if not last:
        program.extend(filters)
    program.extend(creds.plan(thread.creds, current))
    if leader:
        program.extend(
            attributes.plan_prctl(
                dumpable=memory.dumpable,
                subreaper=task.subreaper,
                thp_disabled=memory.thp_disabled,
                thp_flags=memory.thp_flags,
                warn=warn,
                subject=task.subject,
            )
        )
    program.extend(attributes.plan_pdeathsig(thread.pdeathsig))
    if last:
        program.extend(filters)
    if thread.seccomp_strict:
        program.extend(seccomp.plan_strict())
    return program


def _process_settings(task: TaskImage, memory: Memory) -> list[Op]:
    ops = settings.plan(settings.PROCESS, task.settings)
    ops += settings.plan_membarrier(task.membarrier)
    if "memory_merge" in task.settings:
        ops += settings.plan_unmerged(memory.areas)
    return ops


__all__ = [
    "AT_FDCWD",
    "last_program",
    "loginuid_program",
    "queue_program",
    "task_program",
    "thread_program",
]
