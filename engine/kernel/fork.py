# SPDX-License-Identifier: Apache-2.0
"""A copy of a stopped task that never runs: made by a fork in it, ended without a trace.

Facts (Linux 6.18):
- CLONE_PTRACE has the child traced from its first moment by who traces the task, and stopped
  before its first instruction; it inherits the options of the trace (include/linux/ptrace.h,
  ptrace_init_task). PTRACE_O_EXITKILL is set on the child alone: the task must outlive us.
- Should we die before that, the child runs on: its stack pointer is one of its own, from where
  the gadget's `ret` leads, by rt_sigreturn, to exit_group. Nothing of the workload is executed.
- A child with exit signal 0 sends no SIGCHLD, and only wait calls with __WALL or __WCLONE see it
  (kernel/exit.c, eligible_child). It stays a zombie until the task itself waits for it, for
  which a call is injected. A parent other than the task would be told of it: CLONE_PARENT gives
  it the exit signal of the task (kernel/fork.c), an orphan gets SIGCHLD (reparent_leader).
- Who waits is charged with the time and the largest resident set of the child. So the memory is
  taken off it by process_mrelease (Linux 5.15) in a context of ours, at its exit stop, and its
  mark of the largest set is reset by clear_refs (fs/proc/task_mmu.c, CLEAR_REFS_MM_HIWATER_RSS).
- With CLONE_FILES no open file gets another reference, and what the task closes is closed; so
  that it is at the end of the task and in an execve too, the child gets an empty table as soon
  as the task runs on (close_range with CLOSE_RANGE_UNSHARE, Linux 5.9).
"""

import os
from contextlib import suppress
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import Denied, Error, KernelError, Vanished
from torpor.engine.kernel import proc, ptrace
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.chain import Call
from torpor.engine.kernel.maps import parse_maps
from torpor.engine.kernel.ptrace import Event, Option
from torpor.engine.kernel.remote import ALL_SIGNALS, BUFFER_SIZE, Remote

CLONE_FILES, CLONE_PTRACE = 0x400, 0x2000
CLOSE_RANGE_UNSHARE = 2
WALL = 0x40000000
LAST_FD = (1 << 32) - 1
RESET_HIGHEST = "5"
FIRST_TO_DIE = "1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The child; pids as seen from here, ``ns_pid`` as the task sees it."""

    parent: int
    pid: int
    ns_pid: int
    space: AddressSpace
    options: int
    """PTRACE_O_* of both."""


def can_fork(space: AddressSpace) -> bool:
    """Whether the child can be given a way out of its own: its gadget looks at the stack."""
    return space.way.gadget.base == "rsp"


def calls(at: int) -> list[Call]:
    """What a task is made to do for it, and its copy; addresses and numbers are given as ``at``.

    Both come back by rt_sigreturn if we die, and the copy ends by exit_group.
    """
    return [
        ("clone", (CLONE_FILES | CLONE_PTRACE, at, 0, 0, 0)),
        ("close_range", (0, LAST_FD, CLOSE_RANGE_UNSHARE)),
        ("open", (at, os.O_WRONLY | os.O_CLOEXEC, 0)),
        ("write", (at, at, len(FIRST_TO_DIE))),
        ("close", (at,)),
        ("wait4", (at, 0, WALL, 0)),
    ]


def copy(tid: int, space: AddressSpace, options: int = 0) -> Copy:
    """Fork a task, all of whose threads are stopped. ``options`` are those it is traced with.

    Raises KernelError when the kernel refuses the fork (EAGAIN, ENOMEM); the task stands as before.
    """
    number = 0
    try:
        with Remote.safe(tid, space, buffer_size=BUFFER_SIZE) as remote:
            stack = _way_out(remote, space)
            number = remote.try_call("clone", CLONE_FILES | CLONE_PTRACE, stack, 0, 0, 0)
            if number < 0:
                raise KernelError(
                    "clone failed inside the task", errno=-number, subject=f"task {tid}"
                )
            pid = _child(tid, number)
            native.wait_stop(pid)
            native.set_options(pid, options | Option.EXITKILL)
            region = remote.borrowed
        native.write_memory(pid, region[0], native.read_memory(tid, *region))
    except BaseException:
        if number > 0:
            _undo(tid, space, number)
        raise
    return Copy(parent=tid, pid=pid, ns_pid=number, space=space, options=options)


def leave_files(made: Copy) -> None:
    """Have the copy share no descriptors with the task. Raises Vanished when it was killed."""
    with Remote.plain(made.pid, made.space.way.syscall, 0, 0) as inside:
        inside.call("close_range", 0, LAST_FD, CLOSE_RANGE_UNSHARE)


def offer(made: Copy) -> None:
    """Have the copy killed before the workload, should memory run out.

    The file belongs to whoever owns the task: without a right to it, the copy writes itself.
    """
    with suppress(Error):
        try:
            proc.write_text(made.pid, "oom_score_adj", FIRST_TO_DIE)
        except Denied:
            _offer_itself(made)


def end(made: Copy) -> None:
    """Have the copy gone: `forget` is to come.  Never raises."""
    with suppress(Error):
        try:
            _exit_empty(made)
        except Error:
            _kill(made.pid)


def forget(parent: int, pid: int, ns_pid: int, options: int) -> None:
    """Let its parent wait for a copy that has ended: the parent is stopped for that, shortly.

    Raises: Error when the parent cannot be stopped; then a zombie stays with it.
    """
    if not is_zombie_of(pid, parent):
        return
    space = AddressSpace.find(parent, parse_maps(proc.read_text(parent, "maps")))
    stopped = ptrace.stop_process(parent, options)
    try:
        with Remote.safe(parent, space, buffer_size=0) as remote:
            remote.try_call("wait4", ns_pid, 0, WALL, 0)
    finally:
        ptrace.release_all(stopped)


def is_zombie_of(pid: int, parent: int) -> bool:
    """Whether it waits for that parent: others take what an ended task leaves."""
    with suppress(Vanished):
        stat = proc.parse_stat(proc.read_text(pid, "stat"))
        return stat.state == "Z" and stat.ppid == proc.process(parent)
    return False


def _offer_itself(made: Copy) -> None:
    path = b"/proc/self/oom_score_adj\0"
    at = native.get_regs(made.pid).rsp
    saved = native.read_memory(made.pid, at, BUFFER_SIZE // 8)
    native.write_memory(made.pid, at, path + FIRST_TO_DIE.encode())
    try:
        with Remote.plain(made.pid, made.space.way.syscall, at, BUFFER_SIZE // 8) as inside:
            fd = inside.call("open", at, os.O_WRONLY | os.O_CLOEXEC, 0)
            inside.call("write", fd, at + len(path), len(FIRST_TO_DIE))
            inside.call("close", fd)
    finally:
        native.write_memory(made.pid, at, saved)


def _way_out(remote: Remote, space: AddressSpace) -> int:
    """What the child does if nobody is there to hold it; returns its stack pointer."""
    at = remote.buffer + BUFFER_SIZE // 2
    at += -at % arch.FPSTATE_ALIGN
    regs = remote.original.copy()
    regs.rip, regs.rax, regs.rdi = space.way.syscall, arch.NR["exit_group"], 0
    regs.orig_rax, regs.rsp = ALL_SIGNALS, at
    frame = arch.sigframe(regs, ALL_SIGNALS, None, b"", at, return_address=space.way.after_ret)
    remote.write(at - len(space.way.chain), space.way.chain + frame)
    return at - len(space.way.chain) - space.way.gadget.distance


def _child(tid: int, number: int) -> int:
    """The child whose pid the task sees as ``number``; it is the youngest."""
    tids = proc.read_text(tid, f"task/{tid}/children").split()
    for word in reversed(tids):
        with suppress(Vanished):
            if proc.parse_status(proc.read_text(word, "status")).ns_pid[-1] == number:
                return int(word)
    raise Vanished("has ended at once", subject=f"copy of task {tid}")


def _exit_empty(made: Copy) -> None:
    """Let it come to its exit, free its memory there, and let it end."""
    native.set_options(made.pid, made.options | Option.EXITKILL | Option.TRACEEXIT)
    regs = native.get_regs(made.pid)
    regs.rip, regs.rax, regs.rdi = made.space.way.syscall, arch.NR["exit_group"], 0
    regs.orig_rax = ALL_SIGNALS
    native.set_regs(made.pid, regs)
    native.cont(made.pid)
    if ptrace.event_of(native.wait_stop(made.pid)) is not Event.EXIT:
        _kill(made.pid)
        return
    with suppress(Error):
        native.release_memory(made.pid)
        proc.write_text(made.pid, "clear_refs", RESET_HIGHEST)
    native.cont(made.pid)
    native.wait_end(made.pid)


def _undo(tid: int, space: AddressSpace, number: int) -> None:
    """Have a child gone that is not whole. Never raises."""
    with suppress(Error):
        _kill(_child(tid, number))
        with Remote.safe(tid, space, buffer_size=0) as remote:
            remote.try_call("wait4", number, 0, WALL, 0)


def _kill(pid: int) -> None:
    with suppress(Error, OSError):
        native.kill_traced(pid)
        while os.WIFSTOPPED(native.wait_end(pid)):
            native.cont(pid, 9)
