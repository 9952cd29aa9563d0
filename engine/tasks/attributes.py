# SPDX-License-Identifier: Apache-2.0
"""Small per-task and per-thread settings: name, prctl state, limits, scheduling.

Facts:
- prlimit on another user's task needs CAP_SYS_RESOURCE, /proc/PID/limits does not.
- Raising a hard limit and lowering oom_score_adj need CAP_SYS_RESOURCE in the initial user
  namespace; in a new container the runtime has set its own limits: they are kept where the
  old ones cannot be had, with a warning.
- comm of another task cannot be written; PR_SET_NAME acts on the calling thread.
- /proc/PID/autogroup is `/autogroup-N nice M`: the niceness of a session as a whole, which setsid
  begins with 0; the number is new each time (CONFIG_SCHED_AUTOGROUP, kernel/sched/autogroup.c).
- dumpable 2 (suidsafe) cannot be set by prctl; it follows from fs.suid_dumpable.
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torpor.engine.program.ops import Data, Expect, Op

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_TIMERSLACK = 1, 4, 15, 29
PR_SET_CHILD_SUBREAPER, PR_SET_THP_DISABLE = 36, 41
RLIM_INFINITY = (1 << 64) - 1
RLIMIT_NAMES = (
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS",
    "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip
SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE = 0, 1, 2, 3, 5, 6
SCHED_ATTR = struct.Struct("<IIQiIQQQ")
"""struct sched_attr as of Linux 3.14: size, policy, flags, nice, priority, runtime, ..."""
SCHED_FLAG_RESET_ON_FORK = 1
EVERY_PROCESSOR = b"\xff" * 128


def plan_rlimits(
    wanted: Sequence[tuple[int, int]],
    current: Sequence[tuple[int, int]],
    warn: Callable[[str], None],
    subject: str,
) -> list[Op]:
    """Set (soft, hard) limits; what cannot be raised stays and is warned about."""
    ops = []
    for number, (want, have) in enumerate(zip(wanted, current, strict=False)):
        soft, hard = want
        if want == have:
            continue
        if hard > have[1]:
            warn(
                f"{subject}: hard limit RLIMIT_{RLIMIT_NAMES[number]} stays "
                f"{_limit(have[1])} instead of {_limit(hard)}"
            )
            hard = have[1]
            soft = min(soft, hard)
        if (soft, hard) != have:
            ops.append(
                Op(
                    call="prlimit64",
                    args=(0, number, Data(struct.pack("<QQ", soft, hard)), 0),
                    subject=f"RLIMIT_{RLIMIT_NAMES[number]}",
                )
            )
    return ops


def _limit(value: int) -> str:
    return "unlimited" if value == RLIM_INFINITY else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """Policy, real-time priority, nice value; affinity only when it was narrowed."""

    policy: int
    priority: int
    nice: int
    affinity: bytes | None = None
    ioprio: int = 0
    timerslack_ns: int = 50_000
    deadline: tuple[int, int, int, int] | None = None
    """Of SCHED_DEADLINE: SCHED_FLAG_* and runtime, deadline, period in ns."""


def deadline_of(attr: bytes) -> tuple[int, int, int, int] | None:
    """What a struct sched_attr says of SCHED_DEADLINE."""
    if len(attr) < SCHED_ATTR.size:
        return None
    _, _, flags, _, _, runtime, deadline, period = SCHED_ATTR.unpack_from(attr)
    return flags, runtime, deadline, period


def plan_scheduling(wanted: Scheduling, current: Scheduling) -> list[Op]:
    """Set what differs, for the calling thread."""
    ops = []
    if wanted.affinity != current.affinity:
        mask = wanted.affinity or EVERY_PROCESSOR
        ops.append(
            Op(
                call="sched_setaffinity",
                args=(0, len(mask), Data(mask)),
                subject="affinity",
                expect=Expect.OK,
                remedy="the new machine lacks these processors",
            )
        )
    if wanted.nice != current.nice:
        ops.append(
            Op(
                call="setpriority",
                args=(0, 0, wanted.nice),
                subject="nice value",
                remedy="a lower nice value needs CAP_SYS_NICE",
            )
        )
    if wanted.timerslack_ns != current.timerslack_ns and wanted.timerslack_ns:
        ops.append(
            Op(
                call="prctl",
                args=(PR_SET_TIMERSLACK, wanted.timerslack_ns, 0, 0, 0),
                subject="timer slack",
            )
        )
    if wanted.deadline is not None:
        flags, *times = wanted.deadline
        raw = SCHED_ATTR.pack(SCHED_ATTR.size, SCHED_DEADLINE, flags, 0, 0, *times)
        ops.append(
            Op(
                call="sched_setattr",
                args=(0, Data(raw), 0),
                subject="scheduling policy",
                note="deadline",
                remedy="SCHED_DEADLINE needs CAP_SYS_NICE, and room on the processors",
            )
        )
    elif (wanted.policy, wanted.priority) != (current.policy, current.priority):
        ops.append(
            Op(
                call="sched_setscheduler",
                args=(0, wanted.policy, Data(struct.pack("<i", wanted.priority))),
                subject="scheduling policy",
                remedy="real-time policies need CAP_SYS_NICE",
            )
        )
    if wanted.ioprio != current.ioprio:
        ops.append(Op(call="ioprio_set", args=(1, 0, wanted.ioprio), subject="io priority"))
    return ops


def plan_name(comm: bytes) -> list[Op]:
    """PR_SET_NAME of the calling thread."""
    return [
        Op(
            call="prctl",
            args=(PR_SET_NAME, Data(comm + b"\0"), 0, 0, 0),
            subject="comm",
            note=comm.decode("utf-8", "replace"),
        )
    ]


def plan_prctl(
    *,
    dumpable: int,
    subreaper: bool,
    thp_disabled: bool,
    thp_flags: int = 0,
    warn: Callable[[str], None],
    subject: str,
) -> list[Op]:
    """Per-task prctl state that must be set after the credentials."""
    ops = []
    if dumpable in (0, 1):
        ops.append(Op(call="prctl", args=(PR_SET_DUMPABLE, dumpable, 0, 0, 0), subject="dumpable"))
    else:
        warn(f"{subject}: dumpable {dumpable} comes back as 0")
        ops.append(Op(call="prctl", args=(PR_SET_DUMPABLE, 0, 0, 0, 0), subject="dumpable"))
    if subreaper:
        ops.append(
            Op(call="prctl", args=(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), subject="child subreaper")
        )
    if thp_disabled:
        ops.append(
            Op(
                call="prctl",
                args=(PR_SET_THP_DISABLE, 1, thp_flags, 0, 0),
                subject="transparent huge pages off",
            )
        )
    return ops


def plan_pdeathsig(signal: int) -> list[Op]:
    """Parent-death signal of the calling thread; after the credentials."""
    if not signal:
        return []
    return [Op(call="prctl", args=(PR_SET_PDEATHSIG, signal, 0, 0, 0), subject="pdeathsig")]


def parse_autogroup(text: str) -> int:
    """The niceness in /proc/PID/autogroup; 0 when there is none."""
    found = re.search(r" nice (-?\d+)$", text.rstrip())
    return int(found[1]) if found else 0


def narrowed(mask: bytes, processors: int) -> bytes | None:
    """An affinity, None when it holds every processor of the machine."""
    every = (1 << processors) - 1
    return mask if int.from_bytes(mask, "little") & every != every else None
