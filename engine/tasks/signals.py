# SPDX-License-Identifier: Apache-2.0
"""Signals: actions, queues with their siginfo, masks, alternate stacks.

Facts:
- Actions cannot be read from outside; an injected rt_sigaction tells handler, flags,
  restorer and mask. Only signals in SigCgt or SigIgn of status differ from the default; but
  flags of the default action of SIGCHLD tell whether children leave zombies (SA_NOCLDWAIT).
- Queues are read by PTRACE_PEEKSIGINFO, private and shared, without consuming them.
- A task may queue any siginfo to itself (kernel/signal.c, do_rt_sigqueueinfo), so queues are
  put back by the task, with all signals blocked meanwhile.
- rt_sigaction of SIGKILL and SIGSTOP fails; they have no entry in our lists.
- A trap takes a SIGTRAP that is pending along. While it is pending itself, the first signal of a
  fault in the thread's own queue (si_code > 0) is delivered, blocked or not (kernel/signal.c,
  dequeue_synchronous_signal; v6.18). So these are queued when no more traps come.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.program.ops import Data, Op

ACTION = struct.Struct("<QQQQ")
SIGINFO_BYTES = 128
SIGTRAP, SIGKILL, SIGSTOP = 5, 9, 19
FAULTS = (4, 5, 7, 8, 11, 31)
"""SYNCHRONOUS_MASK: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS."""
SIG_IGN = 1
FIXED = (SIGKILL, SIGSTOP)
SIGNAL_COUNT = 64
SS_ONSTACK, SS_DISABLE = 1, 2
SIGSET_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One entry of the table of actions."""

    handler: int
    flags: int
    restorer: int
    mask: int


DEFAULT = Action(handler=0, flags=0, restorer=0, mask=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AltStack:
    """sigaltstack(2) of a thread."""

    pointer: int
    size_bytes: int
    flags: int


def parse_actions(raw: Mapping[int, bytes]) -> dict[int, Action]:
    """Kernel structures to actions."""
    found = {}
    for signal, content in raw.items():
        handler, flags, restorer, mask = ACTION.unpack(content)
        found[signal] = Action(handler=handler, flags=flags, restorer=restorer, mask=mask)
    return found


def parse_altstack(raw: bytes) -> AltStack:
    """Struct stack_t: pointer, int flags, size."""
    pointer, flags, size = struct.unpack("<QixxxxQ", raw)
    return AltStack(pointer=pointer, size_bytes=size, flags=flags)


def encode_actions(actions: Mapping[int, Action], task_core: Any) -> None:  # noqa: ANN401
    """CRIU keeps 62 entries: all signals in order but SIGKILL and SIGSTOP."""
    for signal in range(1, SIGNAL_COUNT + 1):
        if signal in FIXED:
            continue
        action = actions.get(signal, DEFAULT)
        task_core.sigactions.add(
            sigaction=action.handler,
            flags=action.flags,
            restorer=action.restorer,
            mask=action.mask,
            compat_sigaction=False,
        )


def decode_actions(task_core: Any) -> dict[int, Action]:  # noqa: ANN401
    """The table of actions, default ones left out."""
    signals = [s for s in range(1, SIGNAL_COUNT + 1) if s not in FIXED]
    found = {}
    for signal, entry in zip(signals, task_core.sigactions, strict=False):
        if entry.sigaction or entry.flags or entry.mask:
            found[signal] = Action(
                handler=entry.sigaction,
                flags=entry.flags,
                restorer=entry.restorer,
                mask=entry.mask,
            )
    return found


def last_calls(
    pending: Sequence[bytes], pid: int, tid: int | None, actions: Mapping[int, Action] | None = None
) -> list[Op]:
    """What a trap after it would take along, or reset: signals, and that SIGTRAP is ignored."""
    ops = [_plan_signal(info, pid, tid) for info in pending if _is_trapped(info, tid)]
    action = (actions or {}).get(SIGTRAP)
    if action is not None and action.handler == SIG_IGN:
        ops.append(_plan_action(SIGTRAP, action))
    return ops


def _is_trapped(info: bytes, tid: int | None) -> bool:
    number, _, code = struct.unpack_from("<iii", info)
    return number == SIGTRAP or (tid is not None and number in FAULTS and code > 0)


def plan_actions(actions: Mapping[int, Action], current: int) -> list[Op]:
    """Set every action, in a task that has the default one for all signals not in ``current``.

    ``current`` is a mask, as SigIgn and SigCgt of /proc/PID/status. Actions left out were the
    default; an exec leaves no flags there (kernel/signal.c, flush_signal_handlers; v6.18).
    """
    return [
        _plan_action(signal, actions.get(signal, DEFAULT))
        for signal in range(1, SIGNAL_COUNT + 1)
        if signal not in FIXED and (signal in actions or current >> (signal - 1) & 1)
    ]


def plan_default(signal: int) -> list[Op]:
    """The default action of a signal."""
    return [_plan_action(signal, DEFAULT)]


def _plan_action(signal: int, action: Action) -> Op:
    raw = ACTION.pack(action.handler, action.flags, action.restorer, action.mask)
    return Op(
        call="rt_sigaction",
        args=(signal, Data(raw), 0, SIGSET_BYTES),
        subject=f"signal {signal}",
        note="action",
    )


def encode_queue(pending: Sequence[bytes], queue: Any) -> None:  # noqa: ANN401
    """Fill a signal_queue_entry."""
    for info in pending:
        queue.signals.add(siginfo=info)


def decode_queue(queue: Any) -> tuple[bytes, ...]:  # noqa: ANN401
    """The siginfo structures of a signal_queue_entry."""
    return tuple(entry.siginfo for entry in queue.signals)


def without(signal: int, queue: Sequence[bytes]) -> tuple[bytes, ...]:
    """A queue without one of the signals."""
    return tuple(info for info in queue if _number(info) != signal)


def plan_queue(pending: Sequence[bytes], pid: int, tid: int | None) -> list[Op]:
    """Queue signals again: to the thread ``tid``, or to the whole task when None.

    What traps take along comes last, by `last_calls`.
    """
    return [_plan_signal(info, pid, tid) for info in pending if not _is_trapped(info, tid)]


def _plan_signal(info: bytes, pid: int, tid: int | None) -> Op:
    number, whole = _number(info), Data(info.ljust(SIGINFO_BYTES, b"\0"))
    to_task = tid is None
    return Op(
        call="rt_sigqueueinfo" if to_task else "rt_tgsigqueueinfo",
        args=(pid, number, whole) if tid is None else (pid, tid, number, whole),
        subject=f"signal {number}",
        note="pending for the task" if to_task else f"pending for thread {tid}",
    )


def _number(info: bytes) -> int:
    (number,) = struct.unpack_from("<i", info)
    return int(number)


def plan_altstack(stack: AltStack) -> list[Op]:
    """Set the alternate stack; SS_ONSTACK follows from the stack pointer."""
    flags = stack.flags & ~SS_ONSTACK
    raw = struct.pack("<QixxxxQ", stack.pointer, flags, stack.size_bytes)
    if flags & SS_DISABLE:
        return []
    return [
        Op(
            call="sigaltstack",
            args=(Data(raw), 0),
            subject="signal stack",
            note=f"at {stack.pointer:#x}",
        )
    ]
