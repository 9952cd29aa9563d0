# SPDX-License-Identifier: Apache-2.0
"""What stands against a snapshot of a task by fork: looked at while it runs.

Facts:
- A fork of memory that is registered with a userfaultfd may wait for its reader (fs/userfaultfd.c,
  dup_userfaultfd_complete), which stands still like all others.
- With SCHED_DEADLINE the kernel refuses it (kernel/sched/deadline.c). After unshare(CLONE_NEWPID)
  the child would be in another pid namespace.
- A filter of seccomp may kill who forks; a tracer with CAP_SYS_ADMIN suspends it, another one
  asks it before (`dump.permits`).
- With vm.overcommit_memory=2 memory that may be written counts twice.
- In the worst case every page is written while the copy is there: then memory doubles. The copy is
  killed first, unless the kernel kills all of the cgroup (memory.oom.group).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torpor.engine.dump import injected
from torpor.engine.dump.permits import Permits
from torpor.engine.errors import Error
from torpor.engine.kernel import fork, proc, room
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import Vma
from torpor.engine.text import size

USERFAULT_FLAGS = frozenset(("um", "uw", "ui"))
POLICY_AT, DEADLINE = 38, "6"
"""Word of stat behind the name: scheduling policy."""
STRICT = "2"


def of_task(pid: int, vmas: Sequence[Vma], space: AddressSpace, permits: Permits) -> Iterator[str]:
    """Why this task cannot fork itself."""
    if against := permits.against(pid, injected.of_fork(), "the fork"):
        yield against
    if not fork.can_fork(space):
        yield f"the vDSO of task {pid} has no code for it"
    if any(vma.vm_flags & USERFAULT_FLAGS for vma in vmas):
        yield f"memory of task {pid} is registered with a userfaultfd"
    if proc.read_text(pid, "stat").rpartition(")")[2].split()[POLICY_AT] == DEADLINE:
        yield f"task {pid} has a deadline (SCHED_DEADLINE)"
    if _other_namespace(pid):
        yield f"children of task {pid} come into another pid namespace"


def of_tree(
    root: int, forks: int, need_bytes: int, given: Sequence[Path], *, asked: bool
) -> Iterator[str]:
    """Why there is no room for copies of so many tasks, with so much memory.

    Who asks for a snapshot may risk that it is killed, but not that the workload is.
    """
    if room.task_room(root, given) < forks:
        yield f"the pids limit of the cgroup leaves no room for {forks} more"
    if Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == STRICT:
        yield "memory is not overcommitted here (vm.overcommit_memory=2)"
    left = room.memory_room(root, given)
    if left < need_bytes and (not asked or room.dies_together(root, given)):
        yield f"{size(need_bytes)} may be written meanwhile and there is room for {size(left)}"


def _other_namespace(pid: int) -> bool:
    try:
        return proc.read_link(pid, "ns/pid") != proc.read_link(pid, "ns/pid_for_children")
    except Error:
        return False
