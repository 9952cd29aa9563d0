# SPDX-License-Identifier: Apache-2.0
"""Taking the raw state of stopped tasks: what the workload's pause is spent on.

Whatever can be read from outside is read from outside; the rest is asked by calls injected
into the task (`kernel/remote.py`), which leave no mark. Nothing is parsed here that is not
needed to go on: captures are turned into images after the thaw.
"""

import os
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache

from torpor.engine import native
from torpor.engine.capture import PosixTimerCapture, TaskCapture, ThreadCapture, innermost
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Denied, Error, Refused
from torpor.engine.kernel import borrow, proc
from torpor.engine.kernel.borrow import Answer, Call, Question
from torpor.engine.kernel.maps import Vma, parse_smaps
from torpor.engine.kernel.proc import Status, parse_status
from torpor.engine.kernel.proctexts import parse_timers
from torpor.engine.kernel.remote import AddressSpace, Remote
from torpor.engine.memory import areas
from torpor.engine.memory.areas import Area
from torpor.engine.memory.sysv import IPC_STAT, STAT_BYTES
from torpor.engine.tasks import landlock, settings
from torpor.engine.tasks.attributes import SCHED_ATTR
from torpor.engine.tasks.seccomp import MODE_FILTER, filter_count

TEXTS = (
    "stat",
    "status",
    "smaps",
    "limits",
    "timers",
    "oom_score_adj",
    "loginuid",
    "personality",
    "comm",
    "cgroup",
    "coredump_filter",
)
MAY_BE_MISSING = ("timers", "loginuid", "smaps", "limits", "cgroup", "coredump_filter")
PR_GET_AUXV = 0x41555856
PR_GET_TID_ADDRESS, PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER = 40, 2, 37
PR_GET_TIMERSLACK = 30
ACTION_BYTES, ITIMER_BYTES, ALTSTACK_BYTES, SIGSET_BYTES = 32, 32, 24, 8
RESET_ON_FORK, DEADLINE = os.SCHED_RESET_ON_FORK, 6
ALWAYS_ASKED = 1 << signal.SIGCHLD - 1
"""Its flags matter with the default action too: whether children leave zombies."""
# where calls put their answers in the buffer
TID_ADDRESS_AT, PDEATHSIG_AT, SUBREAPER_AT, SETTINGS_AT = 32, 40, 44, 48
THREAD_BYTES = SETTINGS_AT + settings.SLOT_BYTES * len(settings.THREAD)
PROCESS_AT = THREAD_BYTES
ITIMERS_AT = PROCESS_AT + settings.SLOT_BYTES * len(settings.PROCESS)
ACTIONS_AT = ITIMERS_AT + 3 * ITIMER_BYTES


@dataclass(slots=True, kw_only=True)
class Captured:
    """A task as captured, with its areas parsed (they are needed to read memory)."""

    task: StoppedTask
    capture: TaskCapture
    vmas: Sequence[Vma]
    areas: Sequence[Area]
    refused: Sequence[Refused]
    guards: list[tuple[int, int]] = field(default_factory=list)
    """Guard regions, as they are found together with the pages."""
    exe_file: int = 0
    """Number of the description of a program whose file was deleted."""
    segments: dict[int, bytes]
    """System V segment id → struct shmid64_ds."""


@dataclass(slots=True, kw_only=True)
class _Begun:
    """A task of which the texts were read and the areas parsed."""

    task: StoppedTask
    texts: dict[str, str]
    vmas: Sequence[Vma]
    areas: Sequence[Area]
    refused: Sequence[Refused]
    space: AddressSpace
    status: Status
    signals: Sequence[int]
    """Those with an action that is not the default one."""


Step = Callable[[str], AbstractContextManager[None]]
"""Measures what is inside, under a name."""


def capture_tasks(
    tasks: Sequence[StoppedTask], may_read_filters: bool, step: Step
) -> list[Captured]:
    """Capture stopped tasks; the threads of all of them answer side by side."""
    zombies, begun = {}, []
    with step("texts of /proc"):
        found_texts = _texts(tasks)
    with step("areas"):
        for task, texts in zip(tasks, found_texts, strict=True):
            if task.tids:
                begun.append(_begin(task, texts))
            else:
                zombies[task.pid] = _capture_zombie(task, texts)
    with step("threads"):
        slacks = _slacks([tid for one in begun for tid in one.task.tids])
        ask_slack = any(slack is None for slack in slacks.values())
        answers = borrow.ask([(one.space, _questions(one, ask_slack)) for one in begun])
        found = {
            one.task.pid: _finish(one, answered, slacks, ask_slack, may_read_filters)
            for one, answered in zip(begun, answers, strict=True)
        }
    return [zombies.get(task.pid) or found[task.pid] for task in tasks]


def _texts(tasks: Sequence[StoppedTask]) -> list[dict[str, str]]:
    """TEXTS of each task. Raises for what must be there."""
    wanted = [(task.pid, name) for task in tasks for name in TEXTS]
    found = [
        text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else _without(name, text)
        for (_, name), text in zip(wanted, proc.read_many(wanted), strict=True)
    ]
    size = len(TEXTS)
    return [
        dict(zip(TEXTS, found[at : at + size], strict=True)) for at in range(0, len(found), size)
    ]


def _without(name: str, error: Error) -> str:
    if isinstance(error, Denied):
        if name == "personality":
            return ""
    elif name in MAY_BE_MISSING:
        return ""
    raise error


def _slacks(tids: Sequence[int]) -> dict[int, int | None]:
    """Timer slack of threads; None where it may not be read (it takes CAP_SYS_NICE)."""
    texts = proc.read_many([(tid, "timerslack_ns") for tid in tids])
    return {
        tid: int(text) if isinstance(text, bytes) else None
        for tid, text in zip(tids, texts, strict=True)
    }


def _begin(task: StoppedTask, texts: dict[str, str]) -> _Begun:
    vmas = parse_smaps(texts["smaps"])
    found, refused = areas.collect(vmas, f"task {innermost(texts['status'], task.pid)}")
    status = parse_status(texts["status"])
    changed = status.sig_cgt | status.sig_ign | ALWAYS_ASKED
    return _Begun(
        task=task,
        texts=texts,
        vmas=vmas,
        areas=found,
        refused=refused,
        space=AddressSpace.find(task.pid, vmas, status),
        status=status,
        signals=[s for s in range(1, 65) if changed >> (s - 1) & 1],
    )


def _questions(one: _Begun, ask_slack: bool) -> list[Question]:
    def of_thread(at: int) -> list[Call]:
        return _thread_calls(at, ask_slack)

    leader = Question(
        tid=one.task.pid,
        calls=lambda at: [*of_thread(at), *_leader_calls(at, one.signals)],
        answer_bytes=ACTIONS_AT + ACTION_BYTES * len(one.signals),
    )
    others = [
        Question(tid=tid, calls=of_thread, answer_bytes=THREAD_BYTES) for tid in one.task.tids[1:]
    ]
    return [leader, *others]


def _thread_calls(at: int, ask_slack: bool) -> list[Call]:
    slack: list[Call] = [("prctl", (PR_GET_TIMERSLACK, 0, 0, 0, 0))] if ask_slack else []
    return [
        ("sigaltstack", (0, at)),
        ("prctl", (PR_GET_TID_ADDRESS, at + TID_ADDRESS_AT, 0, 0, 0)),
        ("prctl", (PR_GET_PDEATHSIG, at + PDEATHSIG_AT, 0, 0, 0)),
        *settings.questions(_thread_settings(), at + SETTINGS_AT),
        *slack,
    ]


@cache
def _thread_settings() -> tuple[settings.Setting, ...]:
    ours = parse_status(proc.read_text("self", "status")).cap_eff
    return settings.thread_settings(proc.processor_flags(), ours)


def _leader_calls(at: int, signals: Sequence[int]) -> list[Call]:
    return [
        ("brk", (0,)),
        ("prctl", (PR_GET_CHILD_SUBREAPER, at + SUBREAPER_AT, 0, 0, 0)),
        *settings.questions(settings.PROCESS, at + PROCESS_AT),
        landlock.question(os.getpid()),
        *(("getitimer", (which, at + ITIMERS_AT + ITIMER_BYTES * which)) for which in range(3)),
        *(
            ("rt_sigaction", (signal, 0, at + ACTIONS_AT + ACTION_BYTES * i, SIGSET_BYTES))
            for i, signal in enumerate(signals)
        ),
    ]


def _finish(
    one: _Begun,
    answers: Sequence[Answer],
    slacks: Mapping[int, int | None],
    ask_slack: bool,
    may_read: bool,
) -> Captured:
    pid, leader = one.task.pid, answers[0]
    brk, _, *told = leader.results[len(_thread_calls(0, ask_slack)) :]
    values = settings.answers(
        settings.PROCESS, told[: len(settings.PROCESS)], leader.buffer[PROCESS_AT:]
    )
    (values["subreaper"],) = struct.unpack_from("<i", leader.buffer, SUBREAPER_AT)
    timers = [t.timer_id for t in parse_timers(one.texts["timers"])]
    auxv, posix, segments = _seldom(one, timers)
    capture = TaskCapture(
        pid=pid,
        ns_pid=one.status.ns_pid[-1],
        texts=one.texts,
        links=_links(pid),
        threads=tuple(_thread(one, a, slacks[a.facts.tid], may_read) for a in answers),
        shared_pending=tuple(native.pending_signals(pid, True)) if one.status.shd_pnd else (),
        sigactions=dict(
            zip(one.signals, _pieces(leader.buffer, ACTIONS_AT, ACTION_BYTES), strict=True)
        ),
        itimers=tuple(_pieces(leader.buffer[:ACTIONS_AT], ITIMERS_AT, ITIMER_BYTES)),
        posix_timers=posix,
        auxv=auxv,
        brk=brk,
        settings=values,
    )
    return Captured(
        task=one.task,
        capture=capture,
        vmas=one.vmas,
        areas=one.areas,
        refused=[
            *one.refused,
            *settings.refusals(values, capture.subject),
            *_landlock(one, told[len(settings.PROCESS)], capture.subject),
        ],
        segments=segments,
    )


def _landlock(one: _Begun, result: int, subject: str) -> list[Refused]:
    if result >= 0:
        return []
    depth = len(parse_status(proc.read_text("self", "status")).ns_pid)
    found = landlock.refusal(result, one.status, depth, subject)
    return [found] if found else []


def _pieces(raw: bytes, start: int, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(start, len(raw), size)]


def _seldom(
    one: _Begun, timers: Sequence[int]
) -> tuple[bytes, tuple[PosixTimerCapture, ...], dict[int, bytes]]:
    """What only some tasks have: auxv that may not be read, POSIX timers, System V segments."""
    pid = one.task.pid
    auxv: bytes | None = None
    with suppress(Denied):
        auxv = proc.read_bytes(pid, "auxv")
    if auxv is not None and not timers and not any(v.name.startswith("/SYSV") for v in one.vmas):
        return auxv, (), {}
    with Remote.safe(pid, one.space) as remote:
        if auxv is None:
            size = remote.call("prctl", PR_GET_AUXV, remote.buffer, 1024, 0, 0)
            auxv = remote.read(remote.buffer, size)
        return auxv, _posix_timers(remote, timers), _segments(remote, one.vmas)


def _capture_zombie(task: StoppedTask, texts: dict[str, str]) -> Captured:
    status = parse_status(texts["status"])
    capture = TaskCapture(pid=task.pid, ns_pid=status.ns_pid[-1], texts=texts, links={})
    return Captured(task=task, capture=capture, vmas=(), areas=(), refused=(), segments={})


def _links(pid: int) -> dict[str, str]:
    return {name: proc.read_link(pid, name) for name in ("exe", "cwd", "root")}


def _thread(one: _Begun, answer: Answer, slack: int | None, may_read: bool) -> ThreadCapture:
    facts, raw = answer.facts, answer.buffer
    asked, status = facts.asked, facts.status.decode("utf-8", "surrogateescape")
    told = 3 + len(_thread_settings())
    tid_address, pdeathsig = struct.unpack_from("<Qi", raw, TID_ADDRESS_AT)
    has_pending = proc.private_signals(facts.status) != 0
    return ThreadCapture(
        tid=facts.tid,
        comm=proc.thread_name(facts.status),
        status=status,
        regs=facts.restart.pack(),
        xstate=facts.xstate,
        sigmask=facts.mask,
        pending=tuple(native.pending_signals(facts.tid, False)) if has_pending else (),
        rseq=asked.rseq,
        robust=asked.robust,
        altstack=raw[:ALTSTACK_BYTES],
        tid_address=tid_address if answer.results[1] >= 0 else 0,
        pdeathsig=pdeathsig,
        policy=asked.policy,
        priority=asked.priority,
        nice=asked.nice,
        affinity=asked.affinity,
        ioprio=asked.ioprio,
        timerslack_ns=max(answer.results[told], 0) if slack is None else slack,
        sched_attr=_sched_attr(one, facts.tid)
        if asked.policy & ~RESET_ON_FORK == DEADLINE
        else b"",
        settings=settings.answers(_thread_settings(), answer.results[3:told], raw[SETTINGS_AT:]),
        seccomp=_filters(facts.tid, filter_count(status)[0], may_read),
    )


def _sched_attr(one: _Begun, tid: int) -> bytes:
    with Remote.safe(tid, one.space) as remote:
        remote.call("sched_getattr", 0, remote.buffer, SCHED_ATTR.size, 0)
        return remote.read(remote.buffer, SCHED_ATTR.size)


def _posix_timers(remote: Remote, ids: Sequence[int]) -> tuple[PosixTimerCapture, ...]:
    found = []
    for number in ids:
        results = remote.calls(
            [
                ("timer_gettime", (number, remote.buffer)),
                ("timer_getoverrun", (number,)),
            ]
        )
        found.append(
            PosixTimerCapture(
                timer_id=number,
                overrun=max(results[1], 0),
                setting=remote.read(remote.buffer, ITIMER_BYTES),
            )
        )
    return tuple(found)


def _segments(remote: Remote, vmas: Sequence[Vma]) -> dict[int, bytes]:
    found = {}
    for vma in vmas:
        if vma.name.startswith("/SYSV") and vma.inode not in found:
            remote.call("shmctl", vma.inode, IPC_STAT, remote.buffer)
            found[vma.inode] = remote.read(remote.buffer, STAT_BYTES)
    return found


def _filters(tid: int, mode: int, may_read: bool) -> tuple[tuple[bytes, int], ...] | None:
    """Newest first; the kernel counts from the oldest (kernel/seccomp.c, get_nth_filter)."""
    if mode != MODE_FILTER:
        return ()
    if not may_read:
        return None
    return tuple(reversed(native.seccomp_filters(tid)))
