# SPDX-License-Identifier: Apache-2.0
"""Seccomp filters of a thread.

Facts:
- Mode and number of filters are in status (Seccomp, Seccomp_filters; the count since Linux
  5.9). The filters themselves are read by PTRACE_SECCOMP_GET_FILTER, newest first, only with
  CAP_SYS_ADMIN in the initial user namespace and when the reader has no filter of its own.
- The filters that a runtime put on a container's init are in the new container too; only
  what a program added itself must be read and set again.
- While tasks are dumped or restored filters, and strict mode, are suspended
  (PTRACE_O_SUSPEND_SECCOMP) where we may: with CAP_SYS_ADMIN and without filters of our own.
"""

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Refused
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kind import Limit, refuse
from torpor.engine.program.ops import Data, Op

SECCOMP_SET_MODE_STRICT, SECCOMP_SET_MODE_FILTER = 0, 1
MODE_STRICT, MODE_FILTER = 1, 2
INSTRUCTION = struct.Struct("<HBBI")
INSTRUCTION_BYTES = INSTRUCTION.size
RETURN_VALUE, RET_ACTION, RET_USER_NOTIF = 0x06, 0xFFFF0000, 0x7FC00000

LIMITS = (
    Limit(
        case="strict",
        what="seccomp strict mode",
        remedy="run the engine with CAP_SYS_ADMIN, or without filters of its own",
    ),
    Limit(
        case="unreadable",
        what="seccomp filters that the program set itself",
        remedy="run the engine with CAP_SYS_ADMIN, without filters of its own; or have them read",
    ),
    Limit(
        case="user-notification",
        what="a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF)",
        remedy="dump without the supervisor's filter: its descriptor cannot be made again",
    ),
    Limit(
        case="forbids",
        what="a seccomp filter that forbids what a dump asks the task itself",
        remedy="permit these calls in its seccomp profile, or run the engine with CAP_SYS_ADMIN",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One filter: struct sock_filter array and SECCOMP_FILTER_FLAG_* bits."""

    program: bytes
    flags: int


def filter_count(status: str) -> tuple[int, int]:
    """(mode, number of filters) of a thread."""
    s = parse_status(status)
    return s.seccomp, s.seccomp_filters


def preflight(status: str, runtime_filters: int, may_read: bool, subject: str) -> Refused | None:
    """Whether a task's filters can be saved; asked before anything is injected."""
    mode, count = filter_count(status)
    if mode == MODE_STRICT and not may_read:
        return refuse(LIMITS[0], subject)
    if mode == MODE_FILTER and count > runtime_filters and not may_read:
        return refuse(
            LIMITS[1], subject, f"{count} filters, {runtime_filters} of them by the runtime"
        )
    return None


def forbidden(calls: Collection[str], subject: str) -> Refused | None:
    """Whether filters that are not suspended stand against calls which the dump depends on."""
    return refuse(LIMITS[3], subject, ", ".join(sorted(calls))) if calls else None


def refusal(filters: Sequence[Filter], subject: str) -> Refused | None:
    """Whether one of a thread's filters cannot be set again."""
    for one in filters:
        for code, _, _, value in INSTRUCTION.iter_unpack(one.program):
            if code == RETURN_VALUE and value & RET_ACTION == RET_USER_NOTIF:
                return refuse(LIMITS[2], subject)
    return None


def plan_strict() -> list[Op]:
    """After this only read, write, exit and sigreturn are left."""
    return [
        Op(
            call="seccomp",
            args=(SECCOMP_SET_MODE_STRICT, 0, 0),
            subject="seccomp strict mode",
            remedy="restore with CAP_SYS_ADMIN",
        )
    ]


def plan(filters: Sequence[Filter]) -> list[Op]:
    """Install filters, oldest first (they are kept newest first)."""
    ops = []
    for number, one in enumerate(reversed(filters)):
        code = Data(one.program)
        count = len(one.program) // INSTRUCTION_BYTES
        prog = Data(struct.pack("<HxxxxxxQ", count, 0), 8, ((8, code),))
        ops.append(
            Op(
                call="seccomp",
                args=(SECCOMP_SET_MODE_FILTER, one.flags, prog),
                subject=f"seccomp filter {number}",
                note=f"{count} instructions",
            )
        )
    return ops
