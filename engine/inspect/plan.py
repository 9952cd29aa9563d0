# SPDX-License-Identifier: Apache-2.0
"""The plan of a restore, for reading: what `restore/launch.py` would do, task by task.

The operations are made by the same functions that a restore calls, from the images and from
what this process has (limits, credentials), but for a vDSO block at a fixed address, so that
the text is the same each time. Steps that are no operations (fork, exec, filling pages,
registers) are done from outside while the task is stopped; they are said in words.
"""

import os
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torpor.engine import native
from torpor.engine.files import ttyplan
from torpor.engine.images.directory import Verify
from torpor.engine.inspect.calls import explain_all
from torpor.engine.kernel import proc
from torpor.engine.memory import areas, vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group
from torpor.engine.program.ops import Program
from torpor.engine.restore import (
    backings,
    build,
    descriptors,
    layout,
    release,
    terminals,
    tree,
)
from torpor.engine.restore.arena import Arena, find_hole
from torpor.engine.restore.load import Snapshot, load
from torpor.engine.restore.memories import special_areas
from torpor.engine.restore.state import current_scheduling
from torpor.engine.tasks import creds
from torpor.engine.tasks.model import SHARED, STOPPED, Memory, TaskImage
from torpor.engine.text import count, size

FRESH_VDSO = 0x7FFFF7FC0000
"""Where the plan pretends that a fresh program has its vDSO."""
PHASES = ("make the task and its memory", "put descriptors in place", "set its state",
          "limits, pending signals, credentials")  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Section:
    """Everything of one task, by phase: lines, each an operation or (with `*`) a step in words."""

    title: str
    phases: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PHASES})

    def say(self, phase: int, *words: str) -> None:
        """Steps that torpor does from outside."""
        self.phases[PHASES[phase]] += [f"* {text}" for text in words]

    def run(self, phase: int, program: Program) -> None:
        """Operations that the task does itself."""
        self.phases[PHASES[phase]] += explain_all(program.ops)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """Sections in the order in which the tasks are made."""

    path: str
    sections: Sequence[Section]
    warnings: Sequence[str]


def restore_plan(path: Path, *, verify: Verify = Verify.ALL) -> RestorePlan:
    """Compile the images; nothing of the machine is touched.

    Raises:
        BadImage, Refused: a restore would refuse for the same reason.
    """
    snapshot = load(path, verify=verify, with_parents=True)
    try:
        tree.check(snapshot.tree)
        return _Planner(snapshot).plan(str(path))
    finally:
        snapshot.close()


class _Planner:
    """Goes the way of a restore."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.tree = snapshot, snapshot.tree
        self.warnings: list[str] = []
        self.sections: dict[int, Section] = {}
        self.opened: dict[int, set[int]] = {}
        self.memory_of = {self.tree.root.pid: self.tree.root}
        self.files = descriptors.plan(
            snapshot, descriptors.Seed(stdio=(0, 1, 2), terminal=0), path_map={}, address_map={},
            new_container=False, warn=self.warnings.append,
        )  # fmt: skip
        self.terminals = terminals.states_of(snapshot, self.files)
        self.backings = backings.of_plan(snapshot, self.files)
        used = [(a.start, a.end) for t in self.tree.tasks for a in (t.memory or _NOTHING).areas
                if a.end <= areas.TASK_SIZE]  # fmt: skip
        self.arena = Arena(base=find_hole(used, Arena(base=0).size_bytes))

    def plan(self, path: str) -> RestorePlan:
        self._root()
        for step in tree.births(self.tree):
            self._born(step)
        for task in self.tree.tasks:
            if not task.zombie:
                self._descriptors(task)
                self._state(task)
                self._last(task)
        return RestorePlan(path=path, sections=tuple(self.sections.values()),
                           warnings=tuple(self.warnings))  # fmt: skip

    # ---- the task and its memory

    def _root(self) -> None:
        task = self.tree.root
        section = self.sections[task.pid] = Section(title=_title(task))
        session = ", in a new session" if task.sid == task.pid else ""
        section.say(0, f"start a process with pid {task.pid}{session}, and hold it")
        self._executed(task, section)
        self._group(task)
        if task.sid == task.pid:
            self._lead(task.pid)

    def _lead(self, pid: int) -> None:
        ops = ttyplan.lead(pid, self.terminals, self.files.context)
        self.sections[pid].run(0, Program("session", ops))

    def _born(self, step: tree.Step) -> None:
        if isinstance(step, tree.NewSession):
            self.sections[step.pid].say(0, "setsid()")
            self._lead(step.pid)
        elif isinstance(step, tree.Ghost):
            self.sections[step.parent].say(
                0, f"fork a helper with pid {step.pid}, setsid() there: its session's leader has "
                   "ended")  # fmt: skip
            self.memory_of[step.pid] = self.memory_of[step.parent]
        else:
            self._forked_by(step)

    def _forked_by(self, step: tree.Fork) -> None:
        task, base = step.task, self.memory_of[step.maker]
        section = self.sections[task.pid] = Section(title=_title(task))
        shared = "".join(f", sharing its {SHARED[name].what}" for name in step.shares)
        way = f"by a helper that ends, so that {task.ppid} adopts it" if step.adopted else ""
        section.say(0, f"fork task {step.maker}{' ' if way else ''}{way}; the child gets pid "
                       f"{task.pid}{shared}")  # fmt: skip
        if task.zombie:
            section.say(0, f"let it end with wait status {task.exit_code:#x}; its parent has not "
                           "waited for it, so it stays a zombie")  # fmt: skip
            self.memory_of[task.pid] = base
            return
        self.memory_of[task.pid] = task
        if layout.forked_from(_memory(task), _memory(base)):
            self._forked(task, base, section)
        else:
            self._executed(task, section)
        self._group(task)

    def _group(self, task: TaskImage) -> None:
        if task.pgid == task.pid != task.sid:
            self.sections[task.pid].say(0, "setpgid(0, 0): lead a process group")
        elif task.pgid not in (task.pid, task.sid):
            self.sections[task.pid].say(0, f"setpgid(0, {task.pgid}): join the group")

    def _executed(self, task: TaskImage, section: Section) -> None:
        memory = _memory(task)
        section.say(0, f"execute {memory.exe}, and stop it before its first instruction",
                    f"map room for the restore program at {self.arena.base:#x}")  # fmt: skip
        if task is self.tree.root:
            for segment in self.snapshot.segments:
                length = size(segment.size_bytes)
                section.say(0, f"make System V segment {segment.shm_id}, {length}")
            for pair in ttyplan.pairs(self.terminals, self.files.context):
                section.say(0, f"open {pair.path} until it is pseudo terminal {pair.index}")
                section.run(0, Program("terminal", list(pair.ops)))
            section.run(0, self.files.create)
            for number in self.files.segments:
                section.say(0, f"make shared memory {number}, and fill it")
        filled = self._filled(task)
        block, code = _fresh_block()
        used = [(a.start, a.end) for a in memory.areas if a.backing is not Backing.VSYSCALL]
        spare = find_hole([*used, (self.arena.base, self.arena.end)], block.end - block.start)
        saved = next((a for a in memory.areas if a.backing is Backing.VDSO), None)
        old_code = self.snapshot.contents.area_bytes(task.pid, saved) if saved else None
        plan = vdso.plan(vdso.group(memory.areas), old_code, block, code, spare)
        section.run(0, layout.after_exec(self.arena, memory.areas, block, plan, self.backings,
                                         filled))  # fmt: skip
        section.say(0, self._pages(task, memory.areas, "write"))
        if plan.patches:
            section.say(0, f"make {count(len(plan.patches), 'function')} of the old vDSO jump to "
                           "this kernel's")  # fmt: skip
        self.opened[task.pid] = filled

    def _forked(self, task: TaskImage, parent: TaskImage, section: Section) -> None:
        memory, before = _memory(task), _memory(parent).areas
        filled = self._filled(task)
        program, kept = layout.after_fork(
            memory.areas, before, vdso.group(before), vdso.group(memory.areas), self.backings,
            filled, keep_old_code=False,
        )  # fmt: skip
        section.run(0, program)
        section.say(0, self._pages(task, memory.areas, "where they differ from the parent's, set"))
        starts = {a.start for a in kept}
        self.opened[task.pid] = filled | (self.opened.get(parent.pid, set()) & starts)

    def _pages(self, task: TaskImage, wanted: Sequence[Area], verb: str) -> str:
        runs = self.snapshot.contents.private_runs(task.pid, wanted)
        total = sum(length for _, length, _ in runs)
        return f"{verb} {size(total)} of its pages, {count(len(runs), 'run')}"

    def _filled(self, task: TaskImage) -> set[int]:
        own = self.snapshot.contents.of(task.pid)
        return {
            a.start for a in _memory(task).areas
            if not a.shared and a.backing is not Backing.VVAR and own.within(a)
        }  # fmt: skip

    # ---- descriptors, state, credentials

    def _descriptors(self, task: TaskImage) -> None:
        section = self.sections[task.pid]
        late = Program("late", list(self.files.late.get(task.pid, ())))
        if task.files_of is not None:
            section.say(1, f"has the descriptors of task {task.files_of}")
            section.run(1, late)
            return
        held = self.snapshot.tables.get(task.pid, ())
        place, close = descriptors.placement(held, self.files)
        for program in (place, late, close):
            section.run(1, program)

    def _state(self, task: TaskImage) -> None:
        section = self.sections[task.pid]
        section.run(2, build.task_program(task, _memory(task), self.opened[task.pid], 0))
        current = current_scheduling(os.getpid())
        for thread in task.threads:
            if thread.tid != task.pid:
                section.say(2, f"make thread {thread.tid} ({_text(thread.comm)})")
            section.run(2, build.thread_program(thread, current))
        if task.ended is not None:
            section.say(2, f"let its main thread end with wait status {task.exit_code:#x}; thread "
                           f"{task.threads[0].tid} stands for it from here on")  # fmt: skip
        if task.oom_score_adj != int(proc.read_text("self", "oom_score_adj")):
            section.say(2, f"write {task.oom_score_adj} to its oom_score_adj")

    def _last(self, task: TaskImage) -> None:
        section = self.sections[task.pid]
        section.run(2, Program("last", list(self.files.last.get(task.pid, ()))))
        limits = [_unsigned(resource.getrlimit(n)) for n in range(len(task.rlimits))]
        section.run(3, build.queue_program(task, limits, self.warnings.append))
        current = creds.collect(proc.read_text("self", "status"), 0)
        for thread in reversed(task.threads):
            if len(task.threads) > 1:
                section.say(3, f"thread {thread.tid}:")
            section.run(3, build.last_program(task, thread, _memory(task), current,
                                              self.warnings.append))  # fmt: skip
        for tid, ops in release.last_calls(task):
            if ops and len(task.threads) > 1:
                section.say(3, f"thread {tid}:")
            section.run(3, Program("last calls", ops))
        stopped = ", still stopped" if task.state == STOPPED else ""
        threads = count(len(task.threads), "thread")
        section.say(3, "unmap the restore program's room",
                    f"set the registers of {threads}, and let go{stopped}")  # fmt: skip


_NOTHING = Memory(
    start_code=0, end_code=0, start_data=0, end_data=0, start_brk=0, brk=0, start_stack=0,
    arg_start=0, arg_end=0, env_start=0, env_end=0, auxv=b"", areas=(), exe="", dumpable=0,
    thp_disabled=False,
)  # fmt: skip


def _memory(task: TaskImage) -> Memory:
    return task.memory or _NOTHING


def _title(task: TaskImage) -> str:
    whose = f"child of {task.ppid}" if task.ppid else "the root"
    threads = f", {count(len(task.threads), 'thread')}" if len(task.threads) > 1 else ""
    return f"task {task.pid} ({_text(task.comm)}), {whose}{threads}"


def _text(comm: bytes) -> str:
    return comm.decode("utf-8", "replace")


def _fresh_block() -> tuple[Group, bytes]:
    """This kernel's vDSO, as if a fresh program had it at FRESH_VDSO; and its code."""
    ours = special_areas(os.getpid())
    start, end = ours.code
    shift = FRESH_VDSO - ours.start
    parts = tuple((word, a + shift, b + shift) for word, a, b in ours.parts)
    code = native.read_memory(os.getpid(), start, end - start)
    return Group(start=ours.start + shift, end=ours.end + shift, parts=parts), code


def _unsigned(limit: tuple[int, int]) -> tuple[int, int]:
    soft, hard = (value & (1 << 64) - 1 for value in limit)
    return soft, hard


def plan_lines(plan: RestorePlan) -> Iterator[tuple[str, str]]:
    """(text, kind) of each line; kind is heading, phase, step, op or text."""
    yield f"What a restore of {plan.path} would do on this machine. Nothing has been done.", "text"
    yield "", "text"
    yield ("Lines like system calls are made inside the task that is restored, in this order; "
           "$name is the", "text")  # fmt: skip
    yield ("result of an earlier line (@load32 takes it out of a buffer), and what follows # says "
           "what it is", "text")  # fmt: skip
    yield ("for. Lines with * torpor does from outside while the task is stopped. All tasks end a "
           "phase", "text")  # fmt: skip
    yield ("before the next one begins, and none runs before everything is done; if a line fails, "
           "all of", "text")  # fmt: skip
    yield "them are ended.", "text"
    for text in plan.warnings:
        yield f"warning: {text}", "warning"
    for section in plan.sections:
        yield "", "text"
        yield section.title, "heading"
        for number, (phase, steps) in enumerate(section.phases.items(), 1):
            if steps:
                yield f"  {number}. {phase}", "phase"
            for text in steps:
                yield f"     {text}", "step" if text.startswith("*") else "op"
