# SPDX-License-Identifier: Apache-2.0
"""Process groups, and children that were zombies: after every task exists."""

import os

from torpor.engine import native
from torpor.engine.errors import Refused
from torpor.engine.program.ops import Data, Op, Program
from torpor.engine.restore import spawn, tree
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.work import Work
from torpor.engine.tasks.attributes import plan_name
from torpor.engine.tasks.model import TaskImage

CORE_DUMPED = 0x80
RLIMIT_CORE = 4
NO_CORE = Op(
    call="prlimit64", args=(0, RLIMIT_CORE, Data(bytes(16)), 0), subject="no core file again"
)


def groups(work: Work) -> None:
    """Process groups: leaders first, then members, then groups of ended leaders."""
    pids = {t.pid for t in work.tree.tasks}
    for task in work.tree.tasks:
        if task.pgid == task.pid != task.sid and task is not work.tree.root:
            _setpgid(work, work.living[task.pid], 0)
    for task in work.tree.tasks:
        if task.pgid != task.pid and task.pgid in pids:
            _setpgid(work, work.living[task.pid], task.pgid)
    for group, members in tree.dead_group_leaders(work.tree).items():
        _group_of_ended(work, group, members)


def _setpgid(work: Work, task: Living, group: int) -> None:
    result = task.arena.call(task.pid, "setpgid", 0, group)
    if result < 0 and task.image.zombie is False:
        raise Refused(
            f"process group {group} cannot be joined",
            subject=task.image.subject,
            cause=os.strerror(-result),
            remedy="restore the tree with the leader of that group, or in a session of its own",
        )


def _group_of_ended(work: Work, group: int, members: list[TaskImage]) -> None:
    first = work.living[members[0].pid]
    helper = spawn.fork(
        first.pid,
        first.syscall_address,
        first.arena.scratch,
        group,
        spawn.FORK_FLAGS,
        work.choose,
    )
    native.set_sigmask(helper, HELD_SIGNALS)
    with spawn.passing(first, helper):
        first.arena.call(helper, "setpgid", 0, 0)
        for member in members:
            _setpgid(work, work.living[member.pid], group)


def zombies(work: Work) -> None:
    """Let children end that had ended before, each with its old status."""
    for task in [work.living[t.pid] for t in work.tree.tasks if t.zombie]:
        parent = work.living[task.image.ppid]
        program = Program("name", [*plan_name(task.image.comm), NO_CORE])
        task.arena.run(task.pid, program, task.image.subject)
        spawn.become_zombie(task.pid, task.syscall_address, task.image.exit_code)
        del work.living[task.image.pid]
        spawn.drain_signal(parent, task.image.exit_signal)
        if task.image.exit_code & CORE_DUMPED:
            work.warnings.append(
                f"{task.image.subject}: its status says no more that it left a core"
            )
