# SPDX-License-Identifier: Apache-2.0
"""Numbers that a thread or a process has and that only it can tell: one table for both sides.

Facts:
- PR_SET_TSC, PR_MCE_KILL, PR_SET_IO_FLUSHER, securebits and CPUID faulting belong to a thread
  (kernel/sys.c, arch/x86/kernel/process.c; v6.18); MDWE, KSM, transparent huge pages, dumpable
  and the registrations of membarrier(2) to a memory, so to a process.
- What the kernel does not know or does not tell us (PR_GET_IO_FLUSHER without
  CAP_SYS_RESOURCE) is taken as the usual value: then the task could not have set it either.
- PR_GET_THP_DISABLE tells flags since 6.18: 1, and 2 for PR_THP_DISABLE_EXCEPT_ADVISED.
- MDWE can be set once; children inherit it unless it has PR_MDWE_NO_INHERIT.
- PR_SET_MEMORY_MERGE makes every area mergeable that can be, and later ones as they are made.
- Keyrings of a process or thread, and cookies of core scheduling, cannot be made again; a
  session keyring is given by whoever starts the session, here the restorer.
"""

import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Refused
from torpor.engine.kind import Limit, refuse
from torpor.engine.memory import areas
from torpor.engine.memory.areas import Area
from torpor.engine.program.ops import Expect, Op

SLOT_BYTES = 8
AT = -(1 << 62)
"""Stands for the address of a setting's place in the buffer for answers, and for its value."""
PR_MCE_KILL_SET, KEYCTL_GET_KEYRING_ID = 1, 0
MEMBARRIER_GET_REGISTRATIONS = 1 << 9
ARCH_GET_CPUID, ARCH_SET_CPUID = 0x1011, 0x1012
PR_SCHED_CORE = 62
CAP_SYS_RESOURCE = 24
MADV_MERGEABLE, MADV_UNMERGEABLE = 12, 13

LIMITS = (
    Limit(
        case="keyring",
        what="a keyring of its own",
        remedy="keep keys in the session keyring, or close the keyring before the dump",
    ),
    Limit(
        case="core-scheduling",
        what="a core scheduling cookie",
        remedy="dump without core scheduling (PR_SCHED_CORE), set it again after the restore",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """``ask`` is a call and its arguments; ``give`` what sets it, `None` if done elsewhere.

    In ``give`` the value stands where AT is.
    """

    name: str
    ask: tuple[str, tuple[int, ...]]
    usual: int = 0
    give: tuple[str, tuple[int, ...]] | None = None
    refused: Limit | None = None

    @property
    def in_buffer(self) -> bool:
        """The answer is written to memory, it is not the result."""
        return AT in self.ask[1]


def _prctl(*arguments: int) -> tuple[str, tuple[int, ...]]:
    return ("prctl", (*arguments, *(0,) * (5 - len(arguments))))


THREAD: tuple[Setting, ...] = (
    Setting(name="securebits", ask=_prctl(27)),  # part of the credentials
    Setting(name="tsc", ask=_prctl(25, AT), usual=1, give=_prctl(26, AT)),
    Setting(name="mce_kill", ask=_prctl(34), usual=2, give=_prctl(33, PR_MCE_KILL_SET, AT)),
    Setting(name="io_flusher", ask=_prctl(58), give=_prctl(57, AT)),
    Setting(
        name="cpuid",
        ask=("arch_prctl", (ARCH_GET_CPUID, 0)),
        usual=1,
        give=("arch_prctl", (ARCH_SET_CPUID, AT)),
    ),
)
PROCESS: tuple[Setting, ...] = (
    Setting(name="dumpable", ask=_prctl(3), usual=1),  # set behind the credentials
    Setting(name="thp_disable", ask=_prctl(42)),  # part of the memory
    Setting(name="mdwe", ask=_prctl(66), give=_prctl(65, AT)),
    Setting(name="memory_merge", ask=_prctl(68), give=_prctl(67, AT)),
    Setting(name="membarrier", ask=("membarrier", (MEMBARRIER_GET_REGISTRATIONS, 0, 0))),
    Setting(name="core_cookie", ask=_prctl(PR_SCHED_CORE, 0, 0, 0, AT), refused=LIMITS[1]),
    Setting(name="process_keyring", ask=("keyctl", (KEYCTL_GET_KEYRING_ID, -2, 0)),
            refused=LIMITS[0]),
    Setting(name="thread_keyring", ask=("keyctl", (KEYCTL_GET_KEYRING_ID, -1, 0)),
            refused=LIMITS[0]),
)  # fmt: skip


def thread_settings(cpu_flags: Container[str], capabilities: int) -> tuple[Setting, ...]:
    """Those that a thread of this machine can have, as far as we may ask."""
    missing = set()
    if "cpuid_fault" not in cpu_flags:
        missing.add("cpuid")
    if not capabilities >> CAP_SYS_RESOURCE & 1:
        missing.add("io_flusher")
    return tuple(one for one in THREAD if one.name not in missing)


def questions(table: Sequence[Setting], at: int) -> list[tuple[str, tuple[int, ...]]]:
    """The calls, with a slot each in the buffer at ``at``."""
    return [(one.ask[0], _filled(one.ask[1], at + SLOT_BYTES * i)) for i, one in enumerate(table)]


def answers(table: Sequence[Setting], results: Sequence[int], slots: bytes) -> dict[str, int]:
    """Name → value, of those which are not as usual."""
    found = {}
    for i, (one, result) in enumerate(zip(table, results, strict=True)):
        value = result
        if one.in_buffer and result >= 0:
            (value,) = struct.unpack_from("<q", slots, SLOT_BYTES * i)
        if result >= 0 and value != one.usual:
            found[one.name] = value
    return found


def refusals(values: Mapping[str, int], subject: str) -> list[Refused]:
    """What of the values of a process cannot be kept."""
    return [refuse(one.refused, subject) for one in PROCESS if one.refused and one.name in values]


def kept(table: Sequence[Setting], values: Mapping[str, int]) -> dict[str, int]:
    """Those that `plan` sets again."""
    return {one.name: values[one.name] for one in table if one.give and one.name in values}


def plan(table: Sequence[Setting], values: Mapping[str, int]) -> list[Op]:
    """Set what was not as usual, for the calling thread."""
    return [
        Op(call=one.give[0], args=_filled(one.give[1], values[one.name]), subject=one.name)
        for one in table
        if one.give and one.name in values
    ]


def plan_membarrier(mask: int) -> list[Op]:
    """Register again: each bit is the command that registers."""
    return [
        Op(call="membarrier", args=(1 << bit, 0, 0), subject="membarrier registration")
        for bit in range(MEMBARRIER_GET_REGISTRATIONS.bit_length())
        if mask >> bit & 1
    ]


def plan_unmerged(found: Sequence[Area]) -> list[Op]:
    """Where PR_SET_MEMORY_MERGE, set anew, would merge more than before."""
    return [
        Op(
            call="madvise",
            args=(area.start, area.size_bytes, MADV_UNMERGEABLE),
            subject=area.subject,
            expect=Expect.ANY,
        )
        for area in found
        if not area.shared
        and MADV_MERGEABLE not in area.advice
        and area.backing not in areas.SPECIAL
    ]


def _filled(arguments: Sequence[int], value: int) -> tuple[int, ...]:
    return tuple(value if word == AT else word for word in arguments)
