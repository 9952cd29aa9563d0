# SPDX-License-Identifier: Apache-2.0
"""Which task makes which: the order of forks, sessions and process groups.

Facts:
- A session is inherited at fork and made by setsid; so a child with its parent's earlier
  session is forked before the parent calls setsid.
- Orphans go to the nearest ancestor that is a child subreaper (kernel/exit.c,
  find_new_reaper; v6.18). So a task whose session its parent never had (its own parent has
  ended) is made by a short-lived helper in that session, below its parent.
- A session outlives its leader. One whose leader has ended is made by a ghost, a short-lived
  task with the leader's pid. The number stays taken while any task has it.
- Tables that were shared by clone (descriptors, directories) are
  inherited from whoever has them; so their maker may be a sibling.
- A process group can be joined while some task of the same session has it. A group whose
  leader has ended is made by a short-lived task with the leader's pid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torpor.engine.errors import Refused
from torpor.engine.tasks.model import SHARED, TaskImage, Tree

ORPHAN_REMEDY = "end the orphan, or start it in a session of its own (setsid)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A task is made by ``maker``; by a helper of it that ends when it is not the parent."""

    task: TaskImage
    maker: int
    shares: tuple[str, ...] = ()
    """Fields of SHARED that it has in common with its maker."""

    @property
    def adopted(self) -> bool:
        """The maker is not the parent."""
        return self.maker != self.task.ppid


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A task that lives calls setsid."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """A child of ``parent`` with the pid of an ended session leader makes its session."""

    pid: int
    parent: int


Step = Fork | NewSession | Ghost


def births(tree: Tree) -> list[Step]:
    """How the root's descendants are made; ghosts end when all is done.

    Raises:
        Refused: a task's session cannot be made again, or it shares what it cannot inherit.
    """
    return _Planner(tree).run()


class _Planner:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.parent = {task.pid: task.ppid for task in tree.tasks[1:]}
        self.task = {task.pid: task for task in tree.tasks}
        self.children: dict[int, list[TaskImage]] = {}
        for task in sorted(tree.tasks[1:], key=lambda t: t.pid):
            self.children.setdefault(task.ppid, []).append(task)
        self.holders: dict[tuple[str, int], int] = {}
        """Of each table the first task made so far that has it."""
        self.steps: list[Step] = []
        self.session: dict[int, int] = {}
        """Of every task made so far, at this point."""
        self.waiting: list[TaskImage] = []
        """Tasks whose parent is there but cannot make them."""
        self.births: dict[int, int | None] = {}
        for task in reversed(tree.tasks):
            self.births[task.pid] = self._birth(task)

    def run(self) -> list[Step]:
        root = self.tree.root
        self._grow(root, root.sid)
        while self.waiting:
            if not (self._adopt() or self._raise_ghost()):
                raise self._refusal(self.waiting[0])
        return self.steps

    def _birth(self, task: TaskImage) -> int | None:
        """Session that it must be made in: an earlier one if a child still has that."""
        if task.sid != task.pid:
            return task.sid
        wanted = (self.births[child.pid] for child in self.children.get(task.pid, ()))
        return next((sid for sid in wanted if sid not in (None, task.sid)), None)

    def _grow(self, task: TaskImage, born_in: int) -> None:
        """The children that it can make itself, before and after its own setsid."""
        self.session[task.pid] = born_in
        if not task.zombie:
            for name in SHARED:
                self.holders.setdefault((name, owner(task, name)), task.pid)
        makes = task.sid == task.pid != born_in
        children = self.children.get(task.pid, ())
        early = [c for c in children if makes and self.births[c.pid] == born_in]
        for child in early:
            self._try_fork(child)
        if makes:
            self.steps.append(NewSession(pid=task.pid))
            self.session[task.pid] = task.pid
        for child in children:
            if child not in early:
                self._try_fork(child)

    def _try_fork(self, child: TaskImage) -> None:
        if self._can_make(child.ppid, child):
            self._fork(child, child.ppid)
        else:
            self.waiting.append(child)

    def _fork(self, task: TaskImage, maker: int) -> None:
        shares = tuple(name for name in SHARED if self._has(maker, name, task))
        self.steps.append(Fork(task=task, maker=maker, shares=shares))
        self._grow(task, self.session[maker])

    def _can_make(self, maker: int, task: TaskImage) -> bool:
        wanted = self.births[task.pid]
        if wanted not in (None, self.session[maker]):
            return False
        return all(self._has(maker, name, task) for name in self._inherits(task))

    def _inherits(self, task: TaskImage) -> list[str]:
        """What it shares with tasks that are there already."""
        if task.zombie:
            return []
        return [name for name in SHARED if (name, owner(task, name)) in self.holders]

    def _has(self, other: int, name: str, task: TaskImage) -> bool:
        """Whether another task, not a ghost, has the same table."""
        there = self.task.get(other)
        if there is None or there.zombie or task.zombie:
            return False
        return owner(there, name) == owner(task, name)

    def _adopt(self) -> bool:
        """One waiting task, made by a helper of a task below its parent."""
        for task in self.waiting:
            for maker in self._makers(task):
                if self._below(maker, task.ppid) and self._can_make(maker, task):
                    self.waiting.remove(task)
                    self._fork(task, maker)
                    return True
        return False

    def _makers(self, task: TaskImage) -> Iterator[int]:
        leader = self.births[task.pid]
        if leader is not None and leader in self.session:
            yield leader
        yield from (self.holders[name, owner(task, name)] for name in self._inherits(task))
        yield from tuple(self.session)

    def _raise_ghost(self) -> bool:
        """The ended leader of a session that a task waits for."""
        for task in self.waiting:
            sid = self.births[task.pid]
            if sid is None or sid in self.task or sid in self.session or sid == self.tree.root.sid:
                continue
            parent = self._lowest(sid)
            self.steps.append(Ghost(pid=sid, parent=parent))
            self.parent[sid] = parent
            self.session[sid] = sid
            return True
        return False

    def _lowest(self, sid: int) -> int:
        """The deepest of the parents whose children come from a session."""
        born_there = (t for t in self.tree.tasks[1:] if self.births[t.pid] == sid)
        parents = [t.ppid for t in born_there if self.session.get(t.ppid, sid) != sid]
        return max(parents, key=lambda pid: len(list(self._ancestors(pid))))

    def _below(self, pid: int, ancestor: int) -> bool:
        return ancestor in self._ancestors(pid)

    def _ancestors(self, pid: int) -> Iterator[int]:
        """A task and those that it descends from."""
        while pid:
            yield pid
            pid = self.parent.get(pid, 0)

    def _refusal(self, task: TaskImage) -> Refused:
        shared = self._inherits(task)
        if shared and not any(self._has(task.ppid, name, task) for name in shared):
            other = self.holders[shared[0], owner(task, shared[0])]
            return Refused(
                f"shares its {SHARED[shared[0]].what} with a task that cannot have made it",
                subject=task.subject,
                cause=f"task {other}",
                remedy="let the tasks have tables of their own (unshare)",
            )
        return session_gone(task)


def owner(task: TaskImage, name: str) -> int:
    """Pid of the first task that has the same table (a field of SHARED)."""
    found: int | None = getattr(task, name)
    return task.pid if found is None else found


def session_gone(task: TaskImage) -> Refused:
    """The refusal of a task whose session cannot be made again."""
    return Refused(
        f"session {task.sid} was made by a task that is not an ancestor",
        subject=task.subject,
        remedy=ORPHAN_REMEDY,
    )


def check(tree: Tree) -> None:
    """Raise what a restore would raise, at dump time.

    Raises:
        Refused: a task's session or process group cannot be made again.
    """
    births(tree)
    leaders = {t.pid: t for t in tree.tasks}
    for task in tree.tasks:
        leader = leaders.get(task.pgid)
        if leader is not None and leader.sid != task.sid:
            raise Refused(
                "its process group belongs to another session",
                subject=task.subject,
                remedy=ORPHAN_REMEDY,
            )


def dead_group_leaders(tree: Tree) -> dict[int, list[TaskImage]]:
    """Process groups whose leader has ended → their members; the root's outer group is not one.

    The group of a session whose leader has ended comes with the session.
    """
    pids = {t.pid for t in tree.tasks}
    groups: dict[int, list[TaskImage]] = {}
    for task in tree.tasks:
        if task.pgid not in pids and task.pgid not in (tree.root.pgid, task.sid):
            groups.setdefault(task.pgid, []).append(task)
    return groups
