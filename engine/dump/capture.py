# SPDX-License-Identifier: Apache-2.0
"""Taking the raw state of stopped tasks: what the workload's pause is spent on.

Whatever can be read from outside is read from outside; the rest is asked by calls injected
into the task (`kernel/remote.py`), which leave no mark. Nothing is parsed here that is not
needed to go on: captures are turned into images after the thaw.
"""

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace

from torpor.engine import native
from torpor.engine.capture import PosixTimerCapture, TaskCapture, process_inside
from torpor.engine.dump import questions, threads
from torpor.engine.dump.beforehand import Looked, Parsed, Spaces
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.dump.layout import Layout
from torpor.engine.dump.threads import FiltersOf, RawThread
from torpor.engine.errors import Denied, Error, Refused
from torpor.engine.kernel import borrow, proc
from torpor.engine.kernel.borrow import Answer, Question
from torpor.engine.kernel.maps import Vma
from torpor.engine.kernel.proc import Status, parse_status
from torpor.engine.kernel.proctexts import parse_timers
from torpor.engine.kernel.remote import AddressSpace, Remote
from torpor.engine.memory.areas import Area
from torpor.engine.memory.sysv import IPC_STAT, STAT_BYTES
from torpor.engine.tasks import landlock, settings

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


@dataclass(slots=True, kw_only=True)
class Captured:
    """A task as captured, with its areas parsed (they are needed to read memory)."""

    task: StoppedTask
    capture: TaskCapture
    vmas: Sequence[Vma]
    areas: Sequence[Area]
    layout: Layout = field(default_factory=Layout)
    refused: Sequence[Refused]
    guards: list[tuple[int, int]] = field(default_factory=list)
    """Guard regions, as they are found together with the pages."""
    exe_file: int = 0
    """Number of the description of a program whose file was deleted."""
    segments: dict[int, bytes]
    """System V segment id → struct shmid64_ds."""
    threads: Sequence[RawThread] = ()

    @property
    def zombie(self) -> bool:
        """The task has exited and waits for its parent."""
        return not self.task.tids

    @property
    def inside(self) -> Mapping[int, int]:
        """Its threads, as seen from here → as they see themselves."""
        return threads.inside(self.threads)

    def finish(self) -> list[Refused]:
        """Make of the answers what was not needed before; the task may run on. What is refused."""
        if self.zombie:
            return []
        self.capture = _with_answers(self.capture, self.threads)
        refused = settings.refusals(self.capture.settings, self.capture.subject)
        return [*refused, *_landlock(self.capture)]


@dataclass(slots=True, kw_only=True)
class _Begun:
    """A task of which the texts were read and the areas parsed."""

    task: StoppedTask
    texts: dict[str, str]
    parsed: Parsed
    space: AddressSpace
    status: Status
    question: Question


Step = Callable[[str], AbstractContextManager[None]]
"""Measures what is inside, under a name."""


def capture_tasks(
    tasks: Sequence[StoppedTask],
    spaces: Spaces,
    filters: FiltersOf,
    step: Step,
    watched: Collection[int] = (),
) -> list[Captured]:
    """Capture stopped tasks; the threads of all of them answer side by side.

    ``spaces`` were found before they were stopped.
    ``watched`` are those whose memory we watch: what their areas say of it is none of theirs.
    """
    zombies, begun = {}, []
    with step("texts of /proc"):
        found_texts = _texts(tasks, spaces)
    with step("areas"):
        for task, texts in zip(tasks, found_texts, strict=True):
            if task.tids:
                begun.append(_begin(task, texts, spaces.get(task.pid), task.pid in watched))
            else:
                zombies[task.pid] = _capture_zombie(task, texts)
    with step("threads"):
        answers = borrow.ask([(one.space, _questions(one)) for one in begun])
        found = {
            one.task.pid: _finish(one, answered, filters)
            for one, answered in zip(begun, answers, strict=True)
        }
    return [zombies.get(task.pid) or found[task.pid] for task in tasks]


def _texts(tasks: Sequence[StoppedTask], spaces: Spaces) -> list[dict[str, str]]:
    """TEXTS of each task. Raises for what must be there."""
    large = {pid for pid, looked in spaces.items() if looked.maps}
    wanted = [
        (task.pid, "maps" if name == "smaps" and task.pid in large else name)
        for task in tasks
        for name in TEXTS
    ]
    found = [
        text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else _without(name, text)
        for (_, name), text in zip(wanted, proc.read_many(wanted), strict=True)
    ]
    size = len(TEXTS)
    texts = [
        dict(zip(TEXTS, found[at : at + size], strict=True)) for at in range(0, len(found), size)
    ]
    for task, one in zip(tasks, texts, strict=True):
        if task.pid in spaces:
            one.update(spaces[task.pid].others)
        if task.pid in large:
            looked = spaces[task.pid]
            is_known = looked.knows(one["smaps"], one["status"])
            one["smaps"] = looked.smaps if is_known else proc.read_text(task.pid, "smaps")
    return texts


def _without(name: str, error: Error) -> str:
    if isinstance(error, Denied):
        if name == "personality":
            return ""
    elif name in MAY_BE_MISSING:
        return ""
    raise error


def _begin(
    task: StoppedTask, texts: dict[str, str], looked: Looked | None, watched: bool
) -> _Begun:
    status = parse_status(texts["status"])
    if looked and not watched and looked.parsed.text == texts["smaps"]:
        parsed, space = looked.parsed, looked.space  # is verified before it is used
    else:
        subject = f"task {process_inside(texts['status'], task.pid)}"
        parsed = Parsed.of(texts["smaps"], subject, watched=watched)
        if looked and looked.space.holds():
            space = looked.space
        else:
            space = AddressSpace.find(task.pid, parsed.vmas, status)
    return _Begun(
        task=task,
        texts=texts,
        parsed=parsed,
        space=space,
        status=status,
        question=questions.of_leader(status),
    )


def _questions(one: _Begun) -> list[tuple[int, Question]]:
    others = [(tid, threads.QUESTION) for tid in one.task.tids[1:]]
    return [(one.task.pid, one.question), *others]


def _finish(
    one: _Begun,
    answers: Sequence[Answer],
    filters: FiltersOf,
) -> Captured:
    pid = one.task.pid
    auxv, posix, segments = _seldom(one, [t.timer_id for t in parse_timers(one.texts["timers"])])
    capture = TaskCapture(
        pid=pid,
        ns_pid=one.status.ns_tgid[-1],
        texts=one.texts,
        ended=_ended(one.task),
        links=_links(pid),
        shared_pending=tuple(native.pending_signals(pid, True)) if one.status.shd_pnd else (),
        posix_timers=posix,
        auxv=auxv,
    )
    return Captured(
        task=one.task,
        capture=capture,
        threads=[threads.take(one.space, a, filters) for a in answers],
        vmas=one.parsed.vmas,
        areas=one.parsed.areas,
        layout=one.parsed.layout,
        refused=one.parsed.refused,
        segments=segments,
    )


def _with_answers(capture: TaskCapture, raws: Sequence[RawThread]) -> TaskCapture:
    """What the leader has answered for the whole process, and each thread for itself."""
    status, leader = parse_status(capture.texts["status"]), raws[0].answer
    buffer = leader.buffer
    brk, _, *told = leader.results[threads.CALLS.count :]
    values = settings.answers(
        settings.PROCESS, told[: len(settings.PROCESS)], buffer[questions.PROCESS_AT :]
    )
    (values["subreaper"],) = struct.unpack_from("<i", buffer, questions.SUBREAPER_AT)
    actions = _pieces(buffer, questions.ACTIONS_AT, questions.ACTION_BYTES)
    return replace(
        capture,
        threads=tuple(map(threads.finish, raws)),
        sigactions=dict(zip(questions.signals_asked(status), actions, strict=True)),
        itimers=tuple(
            _pieces(buffer[: questions.ACTIONS_AT], questions.ITIMERS_AT, questions.ITIMER_BYTES)
        ),
        brk=brk,
        settings=values,
        landlock=told[len(settings.PROCESS)],
    )


def _landlock(capture: TaskCapture) -> list[Refused]:
    if capture.landlock >= 0:
        return []
    depth = len(parse_status(proc.read_text("self", "status")).ns_pid)
    status = parse_status(capture.texts["status"])
    found = landlock.refusal(capture.landlock, status, depth, capture.subject)
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
    has_segments = any(v.name.startswith("/SYSV") for v in one.parsed.vmas)
    if auxv is not None and not timers and not has_segments:
        return auxv, (), {}
    with Remote.safe(pid, one.space) as remote:
        if auxv is None:
            size = remote.call("prctl", PR_GET_AUXV, remote.buffer, 1024, 0, 0)
            auxv = remote.read(remote.buffer, size)
        return auxv, _posix_timers(remote, timers), _segments(remote, one.parsed.vmas)


def _capture_zombie(task: StoppedTask, texts: dict[str, str]) -> Captured:
    status = parse_status(texts["status"])
    capture = TaskCapture(pid=task.pid, ns_pid=status.ns_pid[-1], texts=texts, links={})
    return Captured(task=task, capture=capture, vmas=(), areas=(), refused=(), segments={})


def _ended(task: StoppedTask) -> dict[str, str]:
    """What a main thread that has ended still tells."""
    if task.process == task.pid:
        return {}
    return {name: proc.read_text(task.process, name) for name in ("stat", "status", "comm")}


def _links(pid: int) -> dict[str, str]:
    return {name: proc.read_link(pid, name) for name in ("exe", "cwd", "root")}


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
                setting=remote.read(remote.buffer, questions.ITIMER_BYTES),
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
