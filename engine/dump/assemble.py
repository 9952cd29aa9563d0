# SPDX-License-Identifier: Apache-2.0
"""From captures to the tree of an image: parsing, after the thaw or for a preview."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from signal import SIGSTOP

from torpor.engine.capture import TaskCapture, ThreadCapture
from torpor.engine.dump.capture import Captured
from torpor.engine.dump.sharing import Shared
from torpor.engine.errors import Findings, Refused
from torpor.engine.kernel.maps import DELETED
from torpor.engine.kernel.proc import parse_stat, parse_status
from torpor.engine.kernel.proctexts import parse_limits, parse_timers
from torpor.engine.memory import marks, policies, vdso
from torpor.engine.memory.areas import Backing
from torpor.engine.tasks import creds, registers, seccomp, settings, signals, timers
from torpor.engine.tasks.attributes import (
    SCHED_DEADLINE,
    Scheduling,
    deadline_of,
    narrowed,
    parse_autogroup,
)
from torpor.engine.tasks.cgroups import OWN_SET
from torpor.engine.tasks.model import (
    ALIVE,
    DEAD,
    STOPPED,
    EndedThread,
    Memory,
    TaskImage,
    ThreadImage,
    Tree,
)
from torpor.engine.tasks.seccomp import MODE_STRICT, Filter, filter_count


def assemble(
    captured: Sequence[Captured],
    shared: Shared,
    runtime_filters: int,
    directories: Mapping[tuple[int, str], int] | None = None,
) -> Tree:
    """The tree; ``shared`` tells which tasks have tables in common.

    ``directories`` are the files that stand for removed directories, by task and name.

    Raises:
        Findings: everything that cannot be taken, not only the first.
    """
    inside = {c.task.pid: c.capture.ns_pid for c in captured}
    refused: list[Refused] = []
    tasks = [_task(c, inside, shared, runtime_filters, refused) for c in captured]
    if refused:
        raise Findings(tuple(refused))
    gone = directories or {}
    return Tree(
        tasks=tuple(
            replace(t, cwd_file=gone.get((t.pid, "cwd")), root_file=gone.get((t.pid, "root")))
            for t in tasks
        )
    )


def _task(
    item: Captured,
    inside: Mapping[int, int],
    shared: Shared,
    runtime_filters: int,
    refused: list[Refused],
) -> TaskImage:
    capture = item.capture
    stat, status = parse_stat(capture.texts["stat"]), parse_status(capture.texts["status"])
    main = {**capture.texts, **capture.ended}
    exit_signal = parse_stat(main["stat"]).exit_signal  # a thread has none
    comm = main["comm"].rstrip("\n").encode("utf-8", "surrogateescape")
    ppid = inside.get(item.task.ppid, 0)
    pgid, sid = status.ns_pgid[-1], status.ns_sid[-1]
    if capture.zombie:
        return TaskImage(
            pid=capture.ns_pid,
            ppid=ppid,
            pgid=pgid,
            sid=sid,
            state=DEAD,
            exit_code=stat.exit_code,
            exit_signal=exit_signal,
            cgroup_set=OWN_SET,  # until all sets are known
            comm=comm,
        )
    refused += item.refused
    threads = tuple(_thread(capture, t, runtime_filters) for t in capture.threads)
    for thread in threads:
        asks = seccomp.refusal(thread.seccomp, f"{capture.subject}, thread {thread.tid}")
        refused += [asks] if asks else []
    broken = vdso.check(item.areas, capture.subject)
    refused += [broken] if broken else []
    loginuid = capture.texts["loginuid"]
    is_stopped, threads, shared_pending = _stop_of(item, threads)
    return TaskImage(
        pid=capture.ns_pid,
        ppid=ppid,
        pgid=pgid,
        sid=sid,
        state=STOPPED if is_stopped else ALIVE,
        exit_code=parse_stat(main["stat"]).exit_code if capture.ended else 0,
        comm=comm,
        threads=threads,
        memory=_memory(item),
        cwd=capture.links["cwd"],
        root=capture.links["root"],
        umask=status.umask or 0,
        personality=int(capture.texts["personality"] or "0", 16),
        subreaper=bool(capture.settings.get("subreaper", 0)),
        oom_score_adj=int(capture.texts["oom_score_adj"]),
        loginuid=int(loginuid) if loginuid.strip() else None,
        rlimits=tuple(parse_limits(capture.texts["limits"])),
        actions=signals.parse_actions(capture.sigactions),
        shared_pending=shared_pending,
        itimers=timers.parse_itimers(capture.itimers),
        posix_timers=timers.parse_posix(
            parse_timers(capture.texts["timers"]),
            capture.posix_timers,
            {t.tid: t.ns_tid for t in capture.threads},
        ),
        settings=settings.kept(settings.PROCESS, capture.settings),
        membarrier=capture.settings.get("membarrier", 0),
        coredump_filter=_coredump_filter(capture.texts["coredump_filter"]),
        session_nice=parse_autogroup(capture.texts.get("autogroup", "")),
        stop_signal=stat.exit_code if item.task.state == "T" else SIGSTOP if is_stopped else 0,
        exit_signal=exit_signal,
        ended=_ended(capture) if capture.ended else None,
        cgroup_set=OWN_SET,  # until all sets are known
        **{name: inside.get(owners.get(item.task.pid, 0)) for name, owners in shared.items()},
    )


def _ended(capture: TaskCapture) -> EndedThread:
    text = capture.ended["status"]
    stat, status = parse_stat(capture.ended["stat"]), parse_status(text)
    is_realtime = stat.policy in (os.SCHED_FIFO, os.SCHED_RR)
    return EndedThread(
        sigmask=status.sig_blk,
        nice=stat.nice,
        policy=0 if stat.policy == SCHED_DEADLINE else stat.policy,
        priority=stat.rt_priority if is_realtime else 0,
        creds=creds.collect(text, 0),
    )


def _stop_of(
    item: Captured, threads: Sequence[ThreadImage]
) -> tuple[bool, tuple[ThreadImage, ...], tuple[bytes, ...]]:
    """Whether it is stopped, its threads, its queue: a SIGSTOP that waits is a stop already.

    It cannot be blocked, so that nothing could hold it back in a restored task.
    """
    kept = tuple(replace(t, pending=signals.without(SIGSTOP, t.pending)) for t in threads)
    queue = signals.without(SIGSTOP, item.capture.shared_pending)
    status = parse_status(item.capture.texts["status"])  # read before it was asked anything
    is_about_to = bool((status.shd_pnd | status.sig_pnd) >> SIGSTOP - 1 & 1)
    return item.task.state == "T" or is_about_to, kept, queue


def _coredump_filter(text: str) -> int | None:
    """None for a memory that is gone, and on a kernel without core files."""
    return int(text, 16) if text.strip() else None


def _thread(capture: TaskCapture, thread: ThreadCapture, runtime_filters: int) -> ThreadImage:
    own = thread.seccomp or ()
    kept = own[: max(len(own) - runtime_filters, 0)]
    return ThreadImage(
        tid=thread.ns_tid,
        comm=thread.comm,
        registers=registers.collect(thread),
        sigmask=thread.sigmask,
        pending=tuple(thread.pending),
        altstack=signals.parse_altstack(thread.altstack),
        rseq=thread.rseq,
        robust=thread.robust,
        tid_address=thread.tid_address,
        pdeathsig=thread.pdeathsig,
        scheduling=_scheduling(thread),
        creds=creds.collect(thread.status, thread.settings.get("securebits", 0)),
        settings=settings.kept(settings.THREAD, thread.settings),
        seccomp=tuple(Filter(program=code, flags=flags) for code, flags in kept),
        seccomp_strict=filter_count(thread.status)[0] == MODE_STRICT,
    )


def _scheduling(thread: ThreadCapture) -> Scheduling:
    return Scheduling(
        policy=thread.policy,
        priority=thread.priority,
        nice=thread.nice,
        affinity=narrowed(thread.affinity, os.cpu_count() or 1),
        ioprio=thread.ioprio,
        timerslack_ns=thread.timerslack_ns,
        deadline=deadline_of(thread.sched_attr),
    )


def _memory(item: Captured) -> Memory:
    capture = item.capture
    stat, thp = parse_stat(capture.texts["stat"]), capture.settings.get("thp_disable", 0)
    return Memory(
        start_code=stat.startcode,
        end_code=stat.endcode,
        start_data=stat.start_data,
        end_data=stat.end_data,
        start_brk=stat.start_brk,
        brk=capture.brk,
        start_stack=stat.startstack,
        arg_start=stat.arg_start,
        arg_end=stat.arg_end,
        env_start=stat.env_start,
        env_end=stat.env_end,
        auxv=capture.auxv,
        areas=tuple(a for a in item.areas if a.backing is not Backing.VSYSCALL),
        exe=capture.links["exe"].removesuffix(DELETED) if item.exe_file else capture.links["exe"],
        exe_file=item.exe_file,
        marks=marks.collect(item.vmas, item.guards),
        policies=policies.parse(capture.texts.get("numa_maps", "")),
        dumpable=capture.settings.get("dumpable", 1),
        thp_disabled=bool(thp & 1),
        thp_flags=thp & ~1,
    )
