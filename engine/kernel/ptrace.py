# SPDX-License-Identifier: Apache-2.0
"""Stopping processes whole, and letting them go as if nothing had been."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum, IntFlag

from torpor.engine import native
from torpor.engine.errors import Error, Timeout, Vanished
from torpor.engine.kernel import proc
from torpor.engine.kernel.arch import x86_64 as arch

MOST_ROUNDS = 50
LONGEST_END_S, LONGEST_STOP_S = 10.0, 2.0
GLANCE_S = 0.0005
LOOK_S, SUDDEN_END_S = 0.001, 0.05
FLAGS_AT, PF_EXITING, PF_SIGNALED = 6, 0x4, 0x400
"""Word of stat behind the name, and bits of it (include/linux/sched.h)."""
SIGKILL, WALL = 9, 0x40000000


class Option(IntFlag):
    """PTRACE_O_*."""

    TRACESYSGOOD = 1
    TRACEFORK = 1 << 1
    TRACEVFORK = 1 << 2
    TRACECLONE = 1 << 3
    TRACEEXEC = 1 << 4
    TRACEVFORKDONE = 1 << 5
    TRACEEXIT = 1 << 6
    TRACESECCOMP = 1 << 7
    EXITKILL = 1 << 20
    SUSPEND_SECCOMP = 1 << 21


class Event(IntEnum):
    """PTRACE_EVENT_*: upper half of a wait status."""

    NONE = 0
    FORK = 1
    VFORK = 2
    CLONE = 3
    EXEC = 4
    VFORK_DONE = 5
    EXIT = 6
    SECCOMP = 7
    STOP = 128


def event_of(status: int) -> Event:
    """The event of a stop's wait status."""
    return Event(status >> 16)


def stop_process(pid: int, options: int = 0, timeout_s: float = 10.0) -> list[int]:
    """Stop all threads of a process, those too that come up meanwhile; returns their ids.

    Raises Vanished when no thread is left, Timeout when the list never comes to rest.
    """
    stopped: set[int] = set()
    gone: set[int] = set()
    try:
        for _ in range(MOST_ROUNDS):
            fresh = [tid for tid in proc.threads(pid) if tid not in stopped | gone]
            if not fresh:
                break
            vanished, late = native.stop_all(fresh, options, timeout_s)
            stopped.update(set(fresh) - set(vanished))
            if late:
                raise Timeout("a thread did not stop", subject=f"task {pid}", cause=str(late))
            gone.update(vanished)
        else:
            raise Timeout(
                "new threads kept coming", subject=f"task {pid}", remedy="freeze its cgroup first"
            )
    except BaseException:
        release_all(stopped)
        raise
    if not stopped:
        raise Vanished("has no living thread", subject=f"task {pid}")
    return sorted(stopped)


def release(tid: int) -> None:
    """Detach a task at its event stop; the call that the stop interrupted goes on."""
    regs = native.get_regs(tid)
    fresh = arch.resume_registers(regs)
    native.release(tid, None if fresh is regs else fresh)


def release_all(tids: Iterable[int]) -> None:
    """Release every task that still is there; errors of one keep none of the others."""
    take_leave(native.release_all(list(tids), arch.resume_edits))


def take_leave(tids: Iterable[int]) -> None:
    """Of tasks that were killed: a parent hears of it only when the tracer has waited for it.

    Who was killed a moment ago still has its memory to give back before there is an end to wait
    for; and the first thread of a task ends last, whatever order they were killed in. Who was
    interrupted in a call that goes on (vfork, a slow disk) can be let go when it stands, or else by
    the end of this thread.
    """
    left, begin_s = list(tids), time.monotonic()
    while left := [tid for tid in left if not _has_left(tid)]:
        passed_s = time.monotonic() - begin_s
        left = [tid for tid in left if passed_s < _patience_s(tid)]
        time.sleep(LOOK_S)


def _has_left(tid: int) -> bool:
    """Whether there is nothing to wait for any more."""
    try:
        if proc.parse_stat(proc.read_text(tid, "stat")).ppid == os.getpid():
            return _child_has_left(tid)
        waited, status = os.waitpid(tid, os.WNOHANG | WALL)
        if waited and os.WIFSTOPPED(status):
            release(tid)
    except (Error, OSError):
        return True
    return bool(waited)


def _child_has_left(tid: int) -> bool:
    """Of a child of ours: others wait for its end."""
    if _patience_s(tid) != LONGEST_STOP_S:
        return True
    stop = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WNOHANG | WALL)
    if stop:
        release(tid)
    return stop is not None


def _patience_s(tid: int) -> float:
    """Long for who is on its way out, and some for who is held by us and does not stand yet."""
    with suppress(Error):
        state, *words = proc.read_text(tid, "stat").rpartition(")")[2].split()
        if state in "ZX" or int(words[FLAGS_AT - 1]) & (PF_EXITING | PF_SIGNALED):
            return LONGEST_END_S
        if proc.parse_status(proc.read_text(tid, "status")).tracer_pid:
            return LONGEST_STOP_S
    return SUDDEN_END_S


def reap(tids: Iterable[int]) -> None:
    """Wait until traced threads that were killed are gone, in whatever order they end.

    The last thread of a pid namespace's init ends only when all others have been reaped
    (kernel/pid_namespace.c, zap_pid_ns_processes), and which one is last is chance.
    """
    left, until_s = list(tids), time.monotonic() + LONGEST_END_S
    while left and time.monotonic() < until_s:
        left = [tid for tid in left if not _has_ended(tid)]


def _has_ended(tid: int) -> bool:
    try:
        if not os.WIFSTOPPED(native.wait_end(tid, GLANCE_S)):
            return True
        native.cont(tid, SIGKILL)
    except Timeout:
        return False
    except Error:
        return True
    return False


def await_stop(pid: int) -> None:
    """Until a task that was told to stands in a job control stop: it has to be scheduled first."""
    until_s = time.monotonic() + LONGEST_STOP_S
    with suppress(Vanished):
        while proc.parse_stat(proc.read_text(pid, "stat")).state not in "TZ":
            if time.monotonic() > until_s:
                return
            time.sleep(GLANCE_S)
