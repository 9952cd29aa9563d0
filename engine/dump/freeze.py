# SPDX-License-Identifier: Apache-2.0
"""Stopping a tree: every thread of every task, at one instant, and letting go on every path.

A cgroup, where there is one, is frozen first so that no new task slips away; then all threads
are seized and interrupted; then the cgroup is thawed (a task frozen by cgroup v1 reaches its
ptrace stop only when thawed), and by then none of them runs. Without a cgroup the lists of
tasks and threads are read again until nothing new appears.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.errors import Error, Refused, Timeout, Vanished
from torpor.engine.haste import Haste
from torpor.engine.kernel import proc, ptrace, vfork
from torpor.engine.kernel.freezer import frozen
from torpor.engine.options import DumpOptions

ROUNDS = 200
PROMPT_S = 0.02
"""All stand by then, as a rule."""


@dataclass(slots=True, kw_only=True)
class StoppedTask:
    """A task of the tree; ``tids`` is empty for a zombie. Pids as seen from here.

    ``pid`` is that of the thread by which it is looked at (`proc.face`), the first of ``tids``.
    """

    pid: int
    process: int
    """The pid that it goes by; another than ``pid`` when its main thread has ended."""
    ppid: int
    """``pid`` of its parent."""
    tids: list[int]
    state: str
    """Letter of stat before it was stopped: S, R, D, T, Z."""
    all_tids: Sequence[int] = ()
    """Also of threads that have ended."""


@dataclass(slots=True, kw_only=True)
class StoppedTree:
    """All tasks of one tree, parents first."""

    options: DumpOptions
    haste: Haste = field(default_factory=Haste)
    tasks: list[StoppedTask] = field(default_factory=list)
    seized: set[int] = field(default_factory=set)
    vanished: set[int] = field(default_factory=set)
    """Threads that ended before they stood; we may trace them, and are waited for then."""

    def release(self) -> None:
        """Let every thread run on. Never raises."""
        self.haste.press()
        ptrace.release_all(sorted(self.seized | self.vanished))
        self.seized.clear()
        self.vanished.clear()

    def calm(self) -> None:
        """What follows takes longer than moments; if the tasks run, nobody waits for it."""
        if self.seized:
            self.haste.ease()
        else:
            self.haste.end()

    def pause(self) -> None:
        """Let every thread go into a stop, as by SIGSTOP, and stand there."""
        alive = [task.pid for task in self.tasks if task.tids]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.release()
        for pid in alive:
            ptrace.await_stop(pid)

    def end(self) -> None:
        """Kill every task, the root last, and wait until they are gone."""
        for task in reversed(self.tasks):
            for tid in task.tids[:1]:
                native.kill_traced(tid)
        ptrace.reap(tid for task in reversed(self.tasks) for tid in reversed(task.tids))
        self.seized.clear()


@contextmanager
def stopped(
    trees: Sequence[DumpOptions], seize: int = 0, begins: Callable[[], None] | None = None
) -> Iterator[list[StoppedTree]]:
    """Stop all trees at one instant; whatever happens inside, nothing stays stopped.

    ``seize`` are PTRACE_O_* options for every thread; ``begins`` is told when the first one is
    about to be stopped.
    """
    cgroups = [path for options in trees for path in options.freezer_cgroups]
    haste = Haste(pressing=True)
    result = [StoppedTree(options=options, haste=haste) for options in trees]
    with ExitStack() as stack:
        stack.callback(haste.end)
        haste.begin()
        for tree in result:
            stack.callback(tree.release)
            tree.tasks = list_tasks(tree.options.pid)
        if begins is not None:
            begins()
        if cgroups:
            patience_s = max(options.stop_timeout_s for options in trees)
            with frozen(cgroups, timeout_s=patience_s) as freezer:
                for tree in result:
                    _seize_tree(tree, seize, wait=False)
                freezer.thaw()
                for tree in result:
                    _settle(tree, seize)
        for tree in result:
            _seize_tree(tree, seize, wait=True)
        for tree in result:
            for task in tree.tasks:
                if task.tids:
                    task.state = _state_at(task)
        yield result


def _state_at(task: StoppedTask) -> str:
    """T if it stands in a job control stop, or is on its way into one, whatever it did before.

    What its tracer's stop tells may be older than a SIGCONT: it is made to tell anew.
    """
    tid = task.tids[0]
    with suppress(Vanished):
        if native.stop_signal(tid):
            native.settle(tid, stopped=True)
            if native.stop_signal(tid):
                return "T"
    return "S" if task.state == "T" else task.state


def _seize_tree(tree: StoppedTree, options: int, *, wait: bool) -> None:
    """Seize until no new task or thread appears (one round inside a frozen cgroup)."""
    for number in range(ROUNDS):
        is_listed = wait and not number and not tree.seized
        tasks = tree.tasks if is_listed else list_tasks(tree.options.pid)
        fresh = [tid for task in tasks for tid in task.tids if tid not in tree.seized]
        known = {task.pid: task.state for task in tree.tasks}
        for task in tasks:
            task.state = known.get(task.pid, task.state)
        tree.tasks = tasks
        if not fresh:
            return
        if wait:
            gone, late = native.stop_all(fresh, options, PROMPT_S)
            tree.seized.update(tid for tid in fresh if tid not in gone)
            _await_late(tree, late, options)
        else:
            gone = []
            for tid in fresh:
                try:
                    native.seize(tid, options)
                    native.interrupt(tid)
                except Vanished:
                    gone.append(tid)
            tree.seized.update(tid for tid in fresh if tid not in gone)
        tree.vanished.update(gone)
    raise Timeout(
        "new tasks keep appearing",
        subject=f"tree of pid {tree.options.pid}",
        remedy="give the freezer cgroup of the tree (--freeze-cgroup)",
    )


def _settle(tree: StoppedTree, options: int) -> None:
    late = []
    for tid in sorted(tree.seized):
        try:
            native.settle(tid, timeout_s=PROMPT_S)
        except Timeout:
            late.append(tid)
        except Vanished:
            tree.seized.discard(tid)
            tree.vanished.add(tid)
    _await_late(tree, late, options)


def _await_late(tree: StoppedTree, late: Sequence[int], options: int) -> None:
    if not late:
        return
    tree.haste.ease()
    gone = vfork.bring_to_a_stop(late, options, tree.options.stop_timeout_s)
    tree.haste.press()
    tree.seized.difference_update(gone)
    tree.vanished.update(gone)


def _living(pid: int, state: str, tids: Sequence[int]) -> list[int]:
    """Its threads, the main one first; if that has ended those that live on, none of a zombie."""
    if state not in proc.ENDED:
        return sorted(tids, key=lambda tid: (tid != pid, tid))
    return [tid for tid in tids if tid != pid and not _has_ended(pid, tid)]


def _has_ended(pid: int, tid: int) -> bool:
    with suppress(Vanished):
        return proc.state_of(proc.read_bytes(pid, f"task/{tid}/stat")) in proc.ENDED
    return True


def list_tasks(root: int) -> list[StoppedTask]:
    """The tree below ``root`` (any thread of it), parents first.

    Raises:
        Vanished: the root is gone.
        Refused: the root is not a task that can be dumped.
    """
    if root == 1:
        raise Refused(
            "pid 1 of this machine is not a workload",
            subject="pid 1",
            remedy="name the root of a tree",
        )
    tasks: list[StoppedTask] = []
    first = proc.process(root)
    level = {first: 0}
    while level:
        found = []
        for (pid, parent), stat in zip(
            level.items(), proc.read_many([(pid, "stat") for pid in level]), strict=True
        ):
            try:
                found.append(_task(pid, parent, stat))
            except Vanished:
                if pid == first:
                    raise
        tasks += found
        children = proc.children_of({task.pid: task.all_tids for task in found})
        level = {child: pid for pid, mine in children.items() for child in mine}
    return tasks


def _task(pid: int, parent: int, stat: bytes | Error) -> StoppedTask:
    if isinstance(stat, Error):
        raise stat
    state, threads = proc.state_of(stat), proc.threads(pid)
    tids = _living(pid, state, threads)
    face = tids[0] if tids else pid
    if face != pid:
        state = proc.state_of(proc.read_bytes(face, "stat"))
    return StoppedTask(pid=face, process=pid, ppid=parent, tids=tids, state=state, all_tids=threads)
