# SPDX-License-Identifier: Apache-2.0
"""Which tasks have tables in common: descriptors, directories, memory.

Facts: kcmp(2) says whether two tasks have the same object, and orders them otherwise, so a few
comparisons a task suffice. Semaphore undo lists (CLONE_SYSVSEM) are not looked at: tasks that
have none compare equal as well, and nobody can read what is in one.

Two processes with one memory are not taken. Calls are injected below the stack pointers of one
process, and those of another may be there; and images have a memory for each task. A child of
vfork has one of its own soon, so who is seen is looked at again.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cmp_to_key
from itertools import pairwise

from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Error, Findings, Refused
from torpor.engine.kernel import vfork
from torpor.engine.kind import Limit, refuse
from torpor.engine.native import KCMP_FILES, KCMP_FS, KCMP_VM, kcmp

GLANCE_S = 0.02
KINDS = {"files_of": KCMP_FILES, "fs_of": KCMP_FS}
LIMITS = (
    Limit(
        case="shared-memory-space",
        what="shares its whole memory with another process (vfork, or clone with CLONE_VM)",
        remedy="dump when the child has executed its program; use threads or fork instead",
        is_passing=True,
    ),
)

Shared = dict[str, dict[int, int]]
"""Field of SHARED → pid of a task → pid of the first one with the same table, if another."""


def vforks(tasks: Sequence[StoppedTask]) -> list[Refused]:
    """Threads that wait for the child of a vfork, and after a while still for that one."""
    waiting = vfork.waiting(tid for task in tasks for tid in task.tids)
    until_s = time.monotonic() + vfork.LONGEST_S
    while waiting and time.monotonic() < until_s:
        time.sleep(GLANCE_S)
        now = vfork.waiting(waiting)
        waiting = {tid: child for tid, child in now.items() if child == waiting[tid]}
    return [refuse(LIMITS[0], f"pid {tid}", "it waits for the child") for tid in waiting]


def spaces(tasks: Sequence[StoppedTask]) -> list[Refused]:
    """Tasks, running or not, that have the memory of another, and after a while still have.

    So this is known before anything is injected. What cannot be compared is left to `find`.
    """
    shared = _spaces([task.pid for task in tasks if task.tids])
    until_s = time.monotonic() + vfork.LONGEST_S
    while shared and time.monotonic() < until_s:
        time.sleep(GLANCE_S)
        now = _spaces([*dict.fromkeys([*shared.values(), *shared])])
        shared = {pid: other for pid, other in now.items() if shared.get(pid) == other}
    return _refused(shared)


def _spaces(pids: Sequence[int]) -> dict[int, int]:
    with suppress(Error):
        return _owners(pids, KCMP_VM)
    return {}


def _refused(shared: Mapping[int, int]) -> list[Refused]:
    return [
        refuse(LIMITS[0], f"pid {pid}", f"that of pid {other}") for pid, other in shared.items()
    ]


def find(pids: Sequence[int]) -> Shared:
    """What stopped tasks (pids as seen from here, parents first) share.

    Raises:
        Findings: tasks with one memory.
    """
    shared = _owners(pids, KCMP_VM)
    if shared:
        raise Findings(tuple(_refused(shared)))
    return {name: _owners(pids, kind) for name, kind in KINDS.items()}


def _owners(pids: Sequence[int], kind: int) -> dict[int, int]:
    """Every task but the first of those that have the same object → that first one."""
    if len(pids) < 2:
        return {}

    def compare(one: int, other: int) -> int:
        return (0, -1, 1)[kcmp(one, other, kind, 0, 0)]

    ordered = sorted(pids, key=cmp_to_key(compare))  # stable: equal ones keep their order
    owners, first = {}, ordered[0]
    for before, pid in pairwise(ordered):
        if compare(before, pid):
            first = pid
        else:
            owners[pid] = first
    return owners
