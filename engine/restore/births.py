# SPDX-License-Identifier: Apache-2.0
"""Making the tasks below the root, in the order of `tree.births`.

Facts: a task that is traced is reparented like any other (kernel/exit.c,
forget_original_parent; v6.18); until their own settings come back no task of the tree is a
child subreaper but the one that is about to adopt.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from torpor.engine import native
from torpor.engine.errors import Refused
from torpor.engine.options import Progress
from torpor.engine.program.ops import Program
from torpor.engine.restore import spawn, terminals
from torpor.engine.restore.arena import check
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.tree import Fork, Ghost, NewSession, births
from torpor.engine.restore.work import Work
from torpor.engine.tasks.attributes import PR_SET_CHILD_SUBREAPER
from torpor.engine.tasks.model import SHARED, SIGCHLD, TaskImage
from torpor.engine.tasks.signals import plan_default


def make_all(work: Work) -> None:
    """Fork everything; every task is stopped, with all signals blocked, and has its memory."""
    root = work.living[work.tree.root.pid]
    not_ignored = Program("signals", plan_default(SIGCHLD))  # ignored, it would reap zombies
    root.arena.run(root.pid, not_ignored, root.image.subject)
    if root.image.sid == root.image.pid:
        terminals.lead(work, root)
    there = _There(root)
    with ExitStack() as ghosts:
        for step in births(work.tree):
            if isinstance(step, Fork):
                _fork(work, step, there)
            elif isinstance(step, Ghost):
                there.add(_ghost(work, step, there.ready(step.parent), ghosts))
            elif isinstance(step, NewSession):
                leader = there.ready(step.pid)
                _set_session(leader)
                terminals.lead(work, leader)
        there.all_ready()


class _There:
    """The tasks made so far. Some still get their memory, while the next ones are made."""

    def __init__(self, root: Living) -> None:
        self._tasks = {root.image.pid: root}
        self._growing: dict[int, Iterator[None]] = {}

    def add(self, task: Living, growing: Iterator[None] | None = None) -> None:
        """A new one, and what is left to be done for it, of which the first step is done here."""
        self._tasks[task.image.pid] = task
        if growing is not None:
            self._growing[task.image.pid] = growing
            self._step(task.image.pid)

    def ready(self, pid: int) -> Living:
        """A task that has its memory and stands still."""
        while pid in self._growing:
            self._step(pid)
        return self._tasks[pid]

    def all_ready(self) -> None:
        """None grows any more; one step of each in turn."""
        while self._growing:
            for pid in list(self._growing):
                self._step(pid)

    def _step(self, pid: int) -> None:
        try:
            next(self._growing[pid])
        except StopIteration:
            del self._growing[pid]


def _fork(work: Work, step: Fork, there: _There) -> None:
    image, maker = step.task, there.ready(step.maker)
    work.progress(
        Progress(
            phase="tasks", text=image.subject, done=len(work.living), total=len(work.tree.tasks)
        )
    )
    flags = image.exit_signal
    for name in step.shares:
        flags |= SHARED[name].clone_flag
    if step.adopted:
        pid = _fork_adopted(work, image, maker, there.ready(image.ppid), flags)
    else:
        pid = _clone(work, maker, maker.pid, image.pid, flags)
    task = _living(image, pid, maker)
    task.tids[image.pid] = pid
    work.living[image.pid] = task
    if image.zombie:
        there.add(task)
        return
    there.add(task, work.give_memory(task, maker))


def _fork_adopted(work: Work, image: TaskImage, maker: Living, parent: Living, flags: int) -> int:
    """By a helper of the maker, which ends: then the nearest subreaper is the parent."""
    helper = _clone(work, maker, maker.pid, 0, flags & ~0xFF | spawn.FORK_FLAGS)
    with ExitStack() as undo:
        with spawn.passing(maker, helper):
            pid = _clone(work, maker, helper, image.pid, flags & ~0xFF | spawn.FORK_FLAGS)
            undo.callback(spawn.discard, pid)  # nobody else knows of it yet
            _adopt(parent, 1)
        _adopt(parent, 0)
        undo.pop_all()
    return pid


def _adopt(parent: Living, value: int) -> None:
    result = parent.arena.call(parent.pid, "prctl", PR_SET_CHILD_SUBREAPER, value, 0, 0, 0)
    check(result, "prctl", parent.image.subject, "see what forbids it: seccomp filters")


def _clone(work: Work, maker: Living, by: int, want: int, flags: int) -> int:
    pid = spawn.fork(by, maker.syscall_address, maker.arena.scratch, want, flags, work.choose)
    native.set_sigmask(pid, HELD_SIGNALS)
    return pid


def _living(image: TaskImage, pid: int, maker: Living) -> Living:
    return Living(
        image=image,
        memory_of=maker.memory_of,
        pid=pid,
        arena=maker.arena,
        syscall_address=maker.syscall_address,
        areas=maker.areas,
        special=maker.special,
        opened=maker.opened,
    )


def _ghost(work: Work, step: Ghost, parent: Living, ghosts: ExitStack) -> Living:
    """Its session is there as long as any task has it; it ends with ``ghosts``."""
    image = TaskImage(
        pid=step.pid, ppid=step.parent, pgid=step.pid, sid=step.pid, state=0, exit_code=0,
        comm=b"ended session leader",
    )  # fmt: skip
    ghost = _living(image, _clone(work, parent, parent.pid, step.pid, spawn.FORK_FLAGS), parent)
    ghosts.enter_context(spawn.passing(parent, ghost.pid))
    _set_session(ghost)
    return ghost


def _set_session(task: Living) -> None:
    result = task.arena.call(task.pid, "setsid")
    if result < 0:
        raise Refused(
            "setsid failed",
            subject=task.image.subject,
            cause=str(result),
            remedy="see what forbids it: seccomp filters, or limits of the restorer",
        )
