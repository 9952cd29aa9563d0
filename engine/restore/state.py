# SPDX-License-Identifier: Apache-2.0
"""What a task has besides memory: descriptors, threads, signals, limits, credentials last."""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from torpor.engine import native
from torpor.engine.errors import Error, KernelError
from torpor.engine.kernel import iptables, nftables, proc, proctexts
from torpor.engine.program.ops import Program
from torpor.engine.restore import build, descriptors, rings, spawn
from torpor.engine.restore.batch import Batch
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.work import Work, memory_of
from torpor.engine.tasks import attributes, creds
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.model import EndedThread


def create_descriptors(work: Work, root: Living) -> None:
    """All of them by the root; meanwhile helpers have the numbers of tasks that are not there."""
    place, scratch = root.syscall_address, root.arena.scratch
    helpers: dict[int, int] = {}
    with ExitStack() as ending:
        for pid in sorted(work.plan.context.helpers):
            helper = spawn.fork(root.pid, place, scratch, pid, spawn.HELPER_FLAGS, work.choose)
            ending.enter_context(spawn.passing(root, helper))
            helpers[pid] = helper
        root.arena.run(root.pid, work.plan.create, root.image.subject, helpers)


def place_descriptors(work: Work) -> None:
    """Every table at its numbers, late operations, then the service numbers closed."""
    closing: dict[int, Program] = {}
    with Batch() as batch:
        for task in work.alive():
            owner = task.image.files_of or task.image.pid
            if owner in closing:
                continue
            held = work.snapshot.tables.get(owner, ())
            place, close = descriptors.placement(held, work.plan)
            closing[owner] = close
            batch.start(task, task.pid, place, task.image.subject)
    for pid, ops in work.plan.late.items():
        task = work.living[pid]
        task.arena.run(task.pid, Program("late descriptors", list(ops)), task.image.subject)
    with Batch() as batch:
        for pid, close in closing.items():
            task = work.living[pid]
            batch.start(task, task.pid, close, task.image.subject)


def finish_descriptors(work: Work) -> None:
    """What needs all threads, and no number but the final ones: locks, owners, connections."""
    for pid, ops in work.plan.last.items():
        task = work.living[pid]
        task.arena.run(
            task.pid, Program("locks, owners, connections", list(ops)), task.image.subject
        )


def unlock_network(work: Work) -> None:
    """Let packets of kept connections pass again: there is no way back after this."""
    if work.snapshot.lock_table:
        nftables.unlock(work.snapshot.lock_table)
    if work.snapshot.has_rules and not work.container:
        states = work.snapshot.connections.values()
        work.warnings += iptables.unlock(s.ends for s in states if s.connected or s.calling)


def task_states(work: Work) -> None:
    """The tasks' own settings, their threads and theirs."""
    alive = work.alive()
    for task in alive:
        _loginuid(work, task)
        rings.create(task)
    with Batch() as batch:
        for task in alive:
            status = proc.parse_status(proc.read_text(task.pid, "status"))
            set_now = status.sig_ign | status.sig_cgt
            program = build.task_program(task.image, memory_of(task), task.opened, set_now)
            batch.start(task, task.pid, program, task.image.subject)
    for task in alive:
        _make_threads(work, task)
    with Batch() as batch:
        for task in alive:
            for thread in task.image.threads:
                tid = task.tids[thread.tid]
                program = build.thread_program(thread, current_scheduling(tid))
                batch.start(task, tid, program, f"{task.image.subject}, thread {thread.tid}")
    for task in alive:
        if task.image.ended is not None:
            _end_main_thread(task, task.image.ended)
        _oom_score(work, task)
        _core_filter(work, task)
        _session_nice(work, task)


def _make_threads(work: Work, task: Living) -> None:
    for thread in task.image.threads:
        if thread.tid in task.tids:
            continue
        tid = spawn.fork(
            task.pid,
            task.syscall_address,
            task.arena.scratch,
            thread.tid,
            spawn.CLONE_THREAD_FLAGS,
            work.choose,
        )
        native.set_sigmask(tid, HELD_SIGNALS)
        task.tids[thread.tid] = tid


def _end_main_thread(task: Living, ended: EndedThread) -> None:
    """Before anybody has a parent-death signal, which its children would get from its end.

    From here on the first of the threads that live stands for the task.
    """
    image, current = task.image, current_scheduling(task.pid)
    wanted = replace(current, policy=ended.policy, priority=ended.priority, nice=ended.nice)
    has = creds.collect(proc.read_text(task.pid, "status"), 0)
    ops = [
        *attributes.plan_name(image.comm),
        *attributes.plan_scheduling(wanted, current),
        *creds.plan(ended.creds, has),
    ]
    task.arena.run(task.pid, Program("main thread", ops), image.subject)
    spawn.end_thread(task.pid, task.syscall_address, image.exit_code, ended.sigmask)
    del task.tids[image.pid]
    task.pid = task.tids[image.threads[0].tid]


def _loginuid(work: Work, task: Living) -> None:
    """On a host as it was; a new container keeps the audit identity that it was given."""
    wanted, now = task.image.loginuid, loginuid_of(task.pid)
    if wanted is None or wanted == now:
        return
    if not work.container:
        with suppress(KernelError):
            program = build.loginuid_program(wanted)
            task.arena.run(task.pid, program, task.image.subject)
        now = loginuid_of(task.pid)
    if now != wanted:
        work.warnings.append(f"{task.image.subject}: loginuid stays {now} instead of {wanted}")


def _oom_score(work: Work, task: Living) -> None:
    """In a container only of tasks that had another than its init, which the kubelet chose."""
    wanted = task.image.oom_score_adj
    if not (work.container and wanted == work.tree.root.oom_score_adj):
        _write(work, task, "oom_score_adj", wanted, int)


def _session_nice(work: Work, task: Living) -> None:
    if task.image.session_nice:
        _write(work, task, "autogroup", task.image.session_nice, attributes.parse_autogroup)


def _core_filter(work: Work, task: Living) -> None:
    if task.image.coredump_filter is not None:
        _write(
            work, task, "coredump_filter", task.image.coredump_filter, lambda text: int(text, 16)
        )


def _write(work: Work, task: Living, name: str, wanted: int, parse: Callable[[str], int]) -> None:
    """A number in a file of /proc, unless it is there."""
    now = parse(proc.read_text(task.pid, name))
    if now == wanted:
        return
    try:
        with open(f"/proc/{task.pid}/{name}", "w", encoding="ascii") as file:
            file.write(str(wanted))
    except OSError:
        work.warnings.append(f"{task.image.subject}: {name} stays {now} instead of {wanted}")


def last_states(work: Work) -> None:
    """Queued signals, timers, limits, and credentials: nothing may need a right after it."""
    alive, warn = work.alive(), work.warnings.append
    with Batch() as batch:
        for task in alive:
            limits = proctexts.parse_limits(proc.read_text(task.pid, "limits"))
            program = build.queue_program(task.image, limits, warn)
            batch.start(task, task.pid, program, task.image.subject)
    with Batch() as batch:
        for task in alive:
            image, memory = task.image, memory_of(task)
            for thread in reversed(image.threads):
                tid = task.tids[thread.tid]
                current = creds.collect(proc.read_text(task.pid, f"task/{tid}/status"), 0)
                program = build.last_program(image, thread, memory, current, warn)
                batch.start(task, tid, program, f"{image.subject}, thread {thread.tid}")


def current_scheduling(tid: int) -> Scheduling:
    """What a fresh task has, to set only what differs."""
    return Scheduling(
        policy=os.sched_getscheduler(tid),
        priority=os.sched_getparam(tid).sched_priority,
        nice=os.getpriority(os.PRIO_PROCESS, tid),
        affinity=attributes.narrowed(proc.affinity(tid), os.cpu_count() or 1),
        ioprio=native.ioprio_get(tid),
        timerslack_ns=_timerslack(tid),
    )


def _timerslack(tid: int) -> int:
    with suppress(Error):
        return int(proc.read_text(tid, "timerslack_ns"))
    return 0


def loginuid_of(pid: int) -> int | None:
    """None on a kernel without audit."""
    with suppress(Error):
        return int(proc.read_text(pid, "loginuid"))
    return None
