# SPDX-License-Identifier: Apache-2.0
"""Which tasks have tables in common: descriptors, directories, memory.

Facts: kcmp(2) says whether two tasks have the same object, and orders them otherwise, so a few
comparisons a task suffice. Semaphore undo lists (CLONE_SYSVSEM) are not looked at: tasks that
have none compare equal as well, and nobody can read what is in one. A parent of vfork waits in
the kernel until its child has executed a program or ended, and no tracer can stop it meanwhile
(kernel/fork.c, wait_for_vfork_done; v6.18).
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cmp_to_key
from itertools import pairwise

from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Findings, Refused, Vanished
from torpor.engine.kernel import proc
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kind import Limit, refuse
from torpor.engine.native import KCMP_FILES, KCMP_FS, KCMP_VM, kcmp

LONGEST_VFORK_S, GLANCE_S = 1.0, 0.02
CLONES = frozenset(str(syscall_number(name)) for name in ("vfork", "clone", "clone3"))
KINDS = {"files_of": KCMP_FILES, "fs_of": KCMP_FS}
LIMITS = (
    Limit(
        case="shared-memory-space",
        what="shares its whole memory with another process (vfork, or clone with CLONE_VM)",
        remedy="dump when the child has executed its program; use threads or fork instead",
    ),
)

Shared = dict[str, dict[int, int]]
"""Field of SHARED → pid of a task → pid of the first one with the same table, if another."""


def vforks(tasks: Sequence[StoppedTask]) -> list[Refused]:
    """Threads that wait for the child of a vfork, and still do after a while."""
    waiting = _vforks(tid for task in tasks for tid in task.tids)
    until_s = time.monotonic() + LONGEST_VFORK_S
    while waiting and time.monotonic() < until_s:
        time.sleep(GLANCE_S)
        waiting = _vforks(waiting)
    return [refuse(LIMITS[0], f"pid {tid}", "it waits for the child") for tid in waiting]


def _vforks(tids: Iterable[int]) -> list[int]:
    found = []
    for tid in tids:
        with suppress(Vanished):
            state = proc.parse_stat(proc.read_text(tid, "stat")).state
            if state == "D" and proc.read_text(tid, "syscall").split()[0] in CLONES:
                found.append(tid)
    return found


def find(pids: Sequence[int]) -> Shared:
    """What stopped tasks (pids as seen from here, parents first) share.

    Raises:
        Findings: tasks with one memory.
    """
    spaces = _owners(pids, KCMP_VM)
    if spaces:
        raise Findings(
            tuple(
                refuse(LIMITS[0], f"pid {pid}", f"that of pid {other}")
                for pid, other in spaces.items()
            )
        )
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
