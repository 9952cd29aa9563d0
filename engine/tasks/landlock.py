# SPDX-License-Identifier: Apache-2.0
"""Landlock domains: they cannot be read, nor made again, so a task in one is refused.

Facts: nothing in /proc tells of a domain. But a task in one may not look at tasks outside of it,
whatever its capabilities (security/landlock/task.c, hook_ptrace_access_check; v6.18). So it
is made to compare us with ourselves by kcmp(2), which needs the right to look at us and
tells nothing. Of a task without CAP_SYS_PTRACE, or in another pid namespace, the answer says
nothing.
"""

from torpor.engine.errors import Refused
from torpor.engine.kernel.proc import Status
from torpor.engine.kind import Limit, refuse

KCMP_FS, CAP_SYS_PTRACE, EPERM = 3, 19, 1
LIMITS = (
    Limit(
        case="landlock",
        what="a landlock domain",
        remedy="dump the program before it restricts itself (landlock_restrict_self)",
    ),
)


def question(ours: int) -> tuple[str, tuple[int, ...]]:
    """What the task is asked; ``ours`` is the pid of the dumping program."""
    return ("kcmp", (ours, ours, KCMP_FS, 0, 0))


def refusal(result: int, status: Status, depth: int, subject: str) -> Refused | None:
    """``depth`` is how many pids the dumping program has, one in each namespace."""
    may_look = bool(status.cap_eff >> CAP_SYS_PTRACE & 1) and len(status.ns_pid) == depth
    return refuse(LIMITS[0], subject) if result == -EPERM and may_look else None
