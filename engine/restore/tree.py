# SPDX-License-Identifier: Apache-2.0
"""Which task makes which: the order of forks, sessions and process groups.

Facts:
- A session is inherited at fork and made by setsid; so a child with its parent's earlier
  session is forked before the parent calls setsid.
- A process group can be joined while some task of the same session has it. A group whose
  leader has ended is made by a short-lived task with the leader's pid.
"""

from dataclasses import dataclass

from torpor.engine.errors import Refused
from torpor.engine.tasks.model import TaskImage, Tree

ORPHAN_REMEDY = "end the orphan, or start it in a session of its own (setsid)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPlan:
    """Children of a task in the order of their making; ``early`` ones precede its setsid."""

    early: tuple[TaskImage, ...]
    makes_session: bool
    late: tuple[TaskImage, ...]


def fork_plan(tree: Tree, task: TaskImage, inherited_sid: int) -> ForkPlan:
    """How ``task``, born in session ``inherited_sid``, makes its children."""
    makes = task.sid == task.pid and inherited_sid != task.pid
    if not makes and task.sid != inherited_sid:
        raise session_gone(task)
    early, late = [], []
    for child in tree.children(task.pid):
        if child.sid in (task.sid, child.pid):
            late.append(child)
        elif makes and child.sid == inherited_sid:
            early.append(child)
        else:
            raise session_gone(child)
    return ForkPlan(early=tuple(early), makes_session=makes, late=tuple(late))


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
    pending = [(tree.root, tree.root.sid if tree.root.sid != tree.root.pid else 0)]
    while pending:
        task, inherited = pending.pop()
        plan = fork_plan(tree, task, inherited)
        pending += [(child, inherited) for child in plan.early]
        pending += [(child, task.sid) for child in plan.late]
    for task in tree.tasks:
        leader = next((t for t in tree.tasks if t.pid == task.pgid), None)
        if leader is not None and leader.sid != task.sid:
            raise Refused(
                "its process group belongs to another session",
                subject=task.subject,
                remedy=ORPHAN_REMEDY,
            )


def dead_group_leaders(tree: Tree) -> dict[int, list[TaskImage]]:
    """Process groups whose leader has ended → their members; the root's outer group is not one."""
    pids = {t.pid for t in tree.tasks}
    groups: dict[int, list[TaskImage]] = {}
    for task in tree.tasks:
        if task.pgid not in pids and task.pgid != tree.root.pgid and not task.zombie:
            groups.setdefault(task.pgid, []).append(task)
    return groups
