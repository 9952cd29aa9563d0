# SPDX-License-Identifier: Apache-2.0
"""Looking at a tree before it is stopped: what can be refused."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from torpor.engine import native
from torpor.engine.dump import injected, sharing
from torpor.engine.dump.freeze import StoppedTask, list_tasks
from torpor.engine.dump.permits import Permits
from torpor.engine.errors import Findings, KernelError, Refused, Vanished
from torpor.engine.kernel import nslinks, proc
from torpor.engine.kernel.arch.x86_64 import syscall_name
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kernel.verdict import Verdict
from torpor.engine.kind import Limit, refuse
from torpor.engine.options import DumpOptions
from torpor.engine.tasks import namespaces, seccomp

LIMITS = (
    Limit(
        case="dead-leader",
        what="a task whose main thread has ended while others live, before Linux 6.9",
        remedy="keep the main thread alive, or use a kernel that opens pidfds of threads",
    ),
)


def preflight(options: DumpOptions, permits: Permits) -> frozenset[int]:
    """What can be refused by looking only; the tasks that were looked at.

    Raises:
        Findings: all refusals.
    """
    refused: list[Refused] = []
    spaces = nslinks.namespaces(options.pid)
    if not options.container:
        here = nslinks.namespaces(os.getpid())
        refused += namespaces.check_root(f"pid {options.pid}", spaces, here)
    tasks = list_tasks(options.pid)
    if os.getpid() in {task.process for task in tasks}:
        raise Refused(
            "the dumping process is inside the tree",
            subject=f"pid {os.getpid()}",
            remedy="dump from outside of the tree",
        )
    refused += sharing.vforks(tasks) or sharing.spaces(tasks)
    for task in tasks:
        refused += _refusals(task, options, spaces, permits)
    root = parse_status(proc.read_text(options.pid, "status"))
    if root.ns_sid[-1] != root.ns_tgid[-1] and not (options.shell_job or options.container):
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
    return frozenset(task.pid for task in tasks)


def check_newcomers(
    options: DumpOptions, tasks: Sequence[StoppedTask], seen: frozenset[int], permits: Permits
) -> None:
    """The same of stopped tasks that were forked after `preflight` had looked.

    They are traced by us by now. Raises: Findings.
    """
    new = [task for task in tasks if task.pid not in seen and task.tids]
    if not new:
        return
    spaces = nslinks.namespaces(options.pid)
    refused = [
        refusal
        for task in new
        for refusal in _refusals(task, options, spaces, permits, tracer=os.getpid())
    ]
    if refused:
        raise Findings(tuple(refused))


def _refusals(
    task: StoppedTask,
    options: DumpOptions,
    spaces: Mapping[str, str],
    permits: Permits,
    tracer: int = 0,
) -> list[Refused]:
    """Of one task; none of one that is gone: the tree is listed again when it is stopped."""
    subject = f"pid {task.pid}"
    refused: list[Refused] = []
    with suppress(Vanished):
        status = parse_status(proc.read_text(task.pid, "status"))
        if status.tracer_pid not in (0, tracer):
            traced = Refused(
                "is traced",
                subject=subject,
                cause=f"by pid {status.tracer_pid} ({_name_of(status.tracer_pid)})",
                remedy="detach the debugger",
            )
            traced.is_passing = True
            refused.append(traced)
        if task.pid != options.pid:
            refused += namespaces.check_task(subject, nslinks.namespaces(task.pid), spaces)
        if task.process != task.pid and not _leads_to_descriptors(task.pid):
            refused.append(refuse(LIMITS[0], subject))
        refused += _filter_refusals(task, options.runtime_seccomp_filters, permits)
    return refused


def _leads_to_descriptors(tid: int) -> bool:
    """Whether a thread has a pidfd: that of its process leads nowhere without its main thread."""
    try:
        os.close(native.pidfd_open(tid))
    except KernelError:
        return False
    return True


def _name_of(pid: int) -> str:
    with suppress(Vanished):
        return proc.read_text(pid, "comm").strip()
    return "gone"


def _filter_refusals(task: StoppedTask, runtime_filters: int, permits: Permits) -> list[Refused]:
    """Filters are a thread's own: each may have more than its leader."""
    found: list[Refused | None] = []
    may_read = permits.knows(task.pid)
    for tid in task.tids:
        with suppress(Vanished):
            text = proc.read_text(task.pid, f"task/{tid}/status")
            where = f"pid {task.pid}" if tid == task.pid else f"pid {task.pid}, thread {tid}"
            found.append(seccomp.preflight(text, runtime_filters, may_read, where))
    if may_read and not permits.suspended:
        found.append(seccomp.forbidden(_forbidden(task.pid, permits), f"pid {task.pid}"))
    return [refusal for refusal in found if refusal is not None]


def _forbidden(pid: int, permits: Permits) -> frozenset[str]:
    """Calls that it would be harmed by, or that it must be able to make."""
    harmful = (*injected.questions(), *injected.more_questions(pid))
    bad = [one for one in harmful if permits.worst(pid, (one,)) is Verdict.HARMS]
    bad += [one for one in injected.needed() if permits.worst(pid, (one,)) is Verdict.FAILS]
    return frozenset(syscall_name(one.number) for one in bad)
