# SPDX-License-Identifier: Apache-2.0
"""Being a tracer: seize, stop, wait, run on, let go."""

import errno
import os
import signal
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torpor.engine.errors import Error, Refused, Vanished
from torpor.engine.kernel.arch.x86_64 import WORD_MASK, RegEdit, Regs
from torpor.engine.native.seam import (
    DEFAULT_TIMEOUT_S,
    check,
    error_for,
    ffi,
    lib,
    new_uncleared,
    ns,
)

PTRACE_CONT, PTRACE_SINGLESTEP, PTRACE_DETACH, PTRACE_SYSCALL = 7, 9, 17, 24
PTRACE_LISTEN = 0x4208
LONGEST_LATE_S = 2.0
RESULT = struct.Struct("<80xQ32xQ88x")
"""rax and orig_rax of struct user_regs_struct."""
EditsFor = Callable[[int, int], Sequence[RegEdit]]


def seize(tid: int, options: int = 0) -> None:
    """PTRACE_SEIZE. PTRACE_O_TRACESYSGOOD is always added."""
    check(lib.seam_seize(tid, options), "ptrace(SEIZE)", tid)


def interrupt(tid: int) -> None:
    """PTRACE_INTERRUPT; the stop comes later, see `wait_stop` and `settle`."""
    check(lib.seam_interrupt(tid), "ptrace(INTERRUPT)", tid)


def kill_traced(tid: int) -> None:
    """End a stopped tracee; needs no right beyond tracing it. A task that is gone is fine."""
    result = lib.seam_kill(tid)
    if result != -errno.ESRCH:
        check(result, "ptrace(KILL)", tid)


def set_options(tid: int, options: int) -> None:
    """PTRACE_SETOPTIONS of a stopped task. PTRACE_O_TRACESYSGOOD is always added."""
    check(lib.seam_set_options(tid, options), "ptrace(SETOPTIONS)", tid)


def wait_stop(tid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
    """Wait for any stop; returns the wait status. Raises Vanished when the task ended."""
    status = ffi.new("int *")
    result = lib.seam_wait(tid, ns(timeout_s), status)
    if result == -errno.ECHILD:
        raise Vanished("waitpid found no such task", subject=f"task {tid}")
    check(result, "waitpid", tid)
    if not os.WIFSTOPPED(status[0]):
        raise Vanished("ended while it was waited for", subject=f"task {tid}",
                       cause=describe_end(status[0]))  # fmt: skip
    return int(status[0])


def wait_end(tid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
    """Wait until a task ends, letting no stop pass unseen; returns the wait status."""
    status = ffi.new("int *")
    check(lib.seam_wait(tid, ns(timeout_s), status), "waitpid", tid)
    return int(status[0])


def describe_end(status: int) -> str:
    """`exit code 3` or `killed by SIGSEGV`."""
    if os.WIFEXITED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"


def settle(tid: int, *, stopped: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Interrupt a seized task and wait until it stands at its event stop.

    Signals that come first are delivered, as they would have been. ``stopped``: it stands
    at another stop now (that of a system call) and runs nothing of its own on the way.
    """
    check(lib.seam_settle(tid, stopped, ns(timeout_s)), "ptrace(INTERRUPT)", tid)


def stop_all(
    tids: Sequence[int], options: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S
) -> tuple[list[int], list[int]]:
    """Seize and interrupt all, then wait for all: which vanished (or are zombies), which are late.

    Who is late is seized and does not stand yet (`await_event_stop`).
    A call that gave EINTR only because of the stop is set to be issued again.
    When one cannot be seized, those that were are let go again, if they stand.
    """
    wanted = ffi.new("int[]", list(tids))
    results = ffi.new("int[]", len(tids))
    lib.seam_stop_all(wanted, len(tids), options, ns(timeout_s), results)
    outcome = list(zip(tids, results, strict=True))
    gone = [tid for tid, result in outcome if result == -errno.ESRCH or _is_dead(tid, result)]
    late = [tid for tid, result in outcome if result == -errno.ETIMEDOUT]
    for tid, result in outcome:
        if result < 0 and tid not in gone and tid not in late:
            _let_go(outcome)
            raise _not_seized(tid, result)
    return gone, late


def _let_go(outcome: Iterable[tuple[int, int]]) -> None:
    """Of tasks that were seized: who stands first, since others may wait for these."""
    late = []
    for tid, result in outcome:
        if result == 0:
            lib.seam_resume(PTRACE_DETACH, tid, 0)
        elif result == -errno.ETIMEDOUT:
            late.append(tid)
    for tid in late:
        if lib.seam_await_event_stop(tid, ns(LONGEST_LATE_S)) == 0:
            lib.seam_resume(PTRACE_DETACH, tid, 0)


def _not_seized(tid: int, result: int) -> Error:
    tracer = _status_field(tid, "TracerPid")
    if tracer in ("", "0"):
        state = f"state {_status_field(tid, 'State')}"
        return error_for(result, "ptrace(SEIZE)", f"task {tid}", cause=state)
    error = Refused(
        "is traced", subject=f"task {tid}", cause=f"by task {tracer}", remedy="detach the debugger"
    )
    error.is_passing = True
    return error


def await_event_stop(tid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Wait until a task that was interrupted stands at its event stop, as `settle` does."""
    check(lib.seam_await_event_stop(tid, ns(timeout_s)), "ptrace(INTERRUPT)", tid)


def cont(tid: int, sig: int = 0) -> None:
    """PTRACE_CONT."""
    check(lib.seam_resume(PTRACE_CONT, tid, sig), "ptrace(CONT)", tid)


def cont_to_syscall(tid: int, sig: int = 0) -> None:
    """PTRACE_SYSCALL: run to the next entry or exit of a system call."""
    check(lib.seam_resume(PTRACE_SYSCALL, tid, sig), "ptrace(SYSCALL)", tid)


def step(tid: int) -> None:
    """PTRACE_SINGLESTEP. Only for tasks that may die with us: see native/seam/remote.c."""
    check(lib.seam_resume(PTRACE_SINGLESTEP, tid, 0), "ptrace(SINGLESTEP)", tid)


def detach(tid: int, sig: int = 0) -> None:
    """PTRACE_DETACH of a stopped task."""
    check(lib.seam_resume(PTRACE_DETACH, tid, sig), "ptrace(DETACH)", tid)


def release(tid: int, regs: Regs | None) -> None:
    """Detach a task at its event stop; with ``regs``, unless a signal is about to be handled."""
    words = ffi.NULL if regs is None else ffi.from_buffer("uint64_t[]", regs.pack())
    check(lib.seam_release(tid, words), "ptrace(DETACH)", tid)


def release_all(tids: Sequence[int], edits_for: EditsFor) -> list[int]:
    """Detach tasks at their event stops; those that were left, as they do not stand there.

    ``edits_for`` says of rax and orig_rax which registers each is to go on with, unless a signal
    is about to be handled.
    """
    wanted = ffi.new("int[]", tids)
    words = new_uncleared("uint64_t[]", max(Regs.WORDS * len(tids), 1))
    results = ffi.new("int[]", max(len(tids), 1))
    others = bytearray(len(tids))
    lib.seam_get_regs_of(wanted, len(tids), words, results)
    left = [tid for tid, result in zip(tids, results, strict=False) if result < 0]
    raw = ffi.buffer(words)[: RESULT.size * len(tids)]
    for i, (rax, orig_rax) in enumerate(RESULT.iter_unpack(raw)):
        edits = () if results[i] < 0 else edits_for(rax, orig_rax)
        others[i] = bool(edits)
        start = Regs.WORDS * i
        before = [words[start + source] if source >= 0 else 0 for _, source, _ in edits]
        for (to, _, plus), value in zip(edits, before, strict=True):
            words[start + to] = value + plus & WORD_MASK
    lib.seam_release_all(wanted, len(tids), words, ffi.from_buffer(others), results)
    return left


def event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG."""
    message = ffi.new("uint64_t *")
    check(lib.seam_event_message(tid, message), "ptrace(GETEVENTMSG)", tid)
    return int(message[0])


def _is_dead(tid: int, result: int) -> bool:
    """A zombie cannot be seized: the kernel says EPERM."""
    return result == -errno.EPERM and _status_field(tid, "State")[:1] in ("", "Z", "X")


def _status_field(tid: int, name: str) -> str:
    try:
        text = Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    values = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in values if key == name), "")
