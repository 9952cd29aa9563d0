# SPDX-License-Identifier: Apache-2.0
"""The system calls that tasks are made to make in a dump, as a seccomp filter would see them.

Addresses of room are not known beforehand, and registers that a call does not use hold anything.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from torpor.engine.dump import capture, ipcns, netns, threads
from torpor.engine.dump import questions as leader
from torpor.engine.errors import Denied, Error
from torpor.engine.kernel import fdtexts, fork, proc, uffd
from torpor.engine.kernel.arch.x86_64 import WORD_MASK, syscall_number
from torpor.engine.kernel.chain import Call
from torpor.engine.kernel.verdict import ANY, UNKNOWN, AskedCall
from torpor.engine.memory.sysv import IPC_STAT

SOMEWHERE, ELSEWHERE = 1 << 40, 1 << 41
MUST_ANSWER = ("rt_sigreturn", "sigaltstack", "getitimer", "rt_sigaction")
MUST_TELL = (threads.PR_GET_TID_ADDRESS, threads.PR_GET_PDEATHSIG, leader.PR_GET_CHILD_SUBREAPER)
POLICY_AT, DEADLINE = 38, "6"
"""Word of stat behind the name: scheduling policy."""
Asked = tuple[AskedCall, ...]


def asked(calls: Callable[[int], Sequence[Call]]) -> Asked:
    """Calls that are made with room at some address: what depends on it is not known."""
    found = []
    for (name, here), (_, there) in zip(calls(SOMEWHERE), calls(ELSEWHERE), strict=True):
        pairs = zip(here, there, strict=True)
        arguments = tuple(one & WORD_MASK if one == other else ANY for one, other in pairs)
        found.append(AskedCall(syscall_number(name), arguments))
    return tuple(found)


def untold(name: str, *first: int) -> AskedCall:
    """A call whose other arguments are whatever is in the registers."""
    return AskedCall(syscall_number(name), (*first, *UNKNOWN[len(first) :]))


@cache
def home() -> Asked:
    """How a borrowed task comes back by itself when we die."""
    return (untold("rt_sigreturn"),)


@cache
def questions() -> Asked:
    """What every task is asked."""
    return (
        *home(),
        *asked(threads.CALLS),
        *asked(lambda at: leader.leader_calls(at, range(1, 65), os.getpid())),
    )


@cache
def needed() -> Asked:
    """Those of them that must be answered: of a failure nobody would know."""
    numbers = {syscall_number(name) for name in MUST_ANSWER}
    prctl = syscall_number("prctl")
    return tuple(
        one
        for one in questions()
        if one.number in numbers or (one.number == prctl and one.arguments[0] in MUST_TELL)
    )


def more_questions(pid: int) -> Iterator[AskedCall]:
    """What only tasks like this one are asked."""
    if _can_not_open(pid, "auxv"):
        yield from asked(lambda at: [("prctl", (capture.PR_GET_AUXV, at, 1024, 0, 0))])
    if proc.read_text(pid, "timers"):
        yield from (untold("timer_gettime"), untold("timer_getoverrun"))
    if "/SYSV" in proc.read_text(pid, "maps"):
        yield from asked(lambda at: [("shmctl", (at, IPC_STAT, at))])
    if proc.read_text(pid, "stat").rpartition(")")[2].split()[POLICY_AT] == DEADLINE:
        yield from (untold("sched_getattr"),)
    if not fdtexts.same_netns(pid) and _has_sockets(pid):
        yield from (untold("socket", *netns.SOCKET), untold("close"))


@cache
def of_fork() -> Asked:
    """What a task makes to be copied, and its copy."""
    return (*home(), *asked(fork.calls), untold("exit_group", 0))


@cache
def of_watching() -> Asked:
    """What a task makes to have its writes watched."""
    return (
        *home(),
        AskedCall(syscall_number("userfaultfd"), (uffd.FLAGS_INSIDE,)),
        untold("close"),
    )


@cache
def of_objects() -> Asked:
    """What a task is asked about System V objects."""
    return (*home(), *asked(ipcns.calls))


def _has_sockets(pid: int) -> bool:
    return any(
        proc.read_link(pid, f"fd/{number}").startswith("socket:")
        for number in proc.list_numbers(pid, "fd")
    )


def _can_not_open(pid: int, name: str) -> bool:
    with suppress(Error):
        try:
            proc.read_bytes(pid, name)
        except Denied:
            return True
    return False
