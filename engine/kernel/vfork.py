# SPDX-License-Identifier: Apache-2.0
"""Threads that wait in vfork, and the children that they wait for.

Facts: the parent of a vfork (and of clone with CLONE_VFORK: posix_spawn) waits in the kernel until
its child has executed a program or ended, and only a deadly signal ends that; a tracer's interrupt
is heeded afterwards (kernel/fork.c, wait_for_vfork_done; v6.18). So a child that was stopped first
would keep its parent from ever standing: it goes on, alone, until it has its own memory.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress

from torpor.engine import native
from torpor.engine.errors import Error, Timeout, Vanished
from torpor.engine.kernel import proc, ptrace
from torpor.engine.kernel.arch.x86_64 import syscall_number

LONGEST_S, GLANCE_S = 1.0, 0.01
CLONES = frozenset(str(syscall_number(name)) for name in ("vfork", "clone", "clone3"))


def waiting(tids: Iterable[int]) -> dict[int, int]:
    """Those of the threads that wait in vfork, and the youngest child of each."""
    found = {}
    for tid in tids:
        with suppress(Vanished):
            state = proc.parse_stat(proc.read_text(tid, "stat")).state
            if state == "D" and proc.read_text(tid, "syscall").split()[0] in CLONES:
                found[tid] = (_children(tid) or [0])[-1]
    return found


def bring_to_a_stop(late: Iterable[int], options: int, timeout_s: float) -> list[int]:
    """Wait until seized and interrupted threads stand; those that have vanished, children too.

    A stopped child that one waits for runs until it has executed a program, and is stopped again.
    ``options`` are PTRACE_O_* that all have. Raises Timeout: some child does not.
    """
    left, gone, until_s = list(late), [], time.monotonic() + timeout_s
    while left:
        tid = left.pop(0)
        try:
            native.await_event_stop(tid, GLANCE_S)
        except Vanished:
            gone.append(tid)
        except Timeout:
            left.append(tid)
            if time.monotonic() > until_s:
                raise
            for child in _held_children(tid):
                gone += _run_to_exec(child, options)
    return gone


def _held_children(tid: int) -> list[int]:
    """Stopped ones that have its memory, if it waits for one."""
    found = []
    if waiting([tid]):
        for child in _children(tid):
            with suppress(Error):
                state = proc.parse_stat(proc.read_text(child, "stat")).state
                if state == "t" and not native.kcmp(tid, child, native.KCMP_VM, 0, 0):
                    found.append(child)
    return found


def _children(tid: int) -> list[int]:
    """Of a thread, the youngest last: pids wrap, so `proc.children_of`, sorted, cannot tell it."""
    return [int(word) for word in proc.read_text(tid, f"task/{tid}/children").split()]


def _run_to_exec(pid: int, options: int) -> list[int]:
    """The child itself if it has ended in place of that."""
    try:
        native.set_options(pid, options | ptrace.Option.TRACEEXEC)
        native.cont(pid)
        try:
            while ptrace.event_of(status := native.wait_stop(pid, LONGEST_S)) != ptrace.Event.EXEC:
                is_signal = ptrace.event_of(status) == ptrace.Event.NONE
                native.cont(pid, os.WSTOPSIG(status) if is_signal else 0)
        except Timeout:
            native.settle(pid)
            raise
        native.settle(pid, stopped=True)
        native.set_options(pid, options)
    except Vanished:
        return [pid]
    return []
