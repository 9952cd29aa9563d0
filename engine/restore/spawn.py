# SPDX-License-Identifier: Apache-2.0
"""Making tasks: fork, thread and exec inside tasks that are stopped under our control.

Facts:
- A task seized with the FORK, CLONE and EXEC options stops with an event in the middle of
  those calls; its new child is traced from its first instruction on (ptrace(2)).
- execve of the old program gives the exe link and a clean address space without any
  capability; the task is taken at the event stop, before it runs one instruction.
- clone3 with set_tid needs CAP_CHECKPOINT_RESTORE in the pid namespace of the task; where
  it is missing (or seccomp answers ENOSYS) a helper outside sets ns_last_pid right before.
- A zombie that is traced is reaped by its tracer first; only then does its parent see it.
"""

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EEXIST
from signal import SIGCHLD, SIGTRAP

from torpor.engine import native
from torpor.engine.capture import innermost
from torpor.engine.errors import Bug, Error, KernelError, Timeout, Vanished
from torpor.engine.kernel import proc, ptrace
from torpor.engine.kernel.arch.x86_64 import Regs, syscall_number
from torpor.engine.memory.areas import Area
from torpor.engine.memory.vdso import Group
from torpor.engine.program.ops import Data, Expect, Op, Program
from torpor.engine.restore.arena import Arena
from torpor.engine.tasks.model import TaskImage

PTRACE_O_TRACEFORK, PTRACE_O_TRACEVFORK, PTRACE_O_TRACECLONE = 0x2, 0x4, 0x8
PTRACE_O_TRACEEXEC, PTRACE_O_EXITKILL, PTRACE_O_SUSPEND_SECCOMP = 0x10, 0x100000, 0x200000
OPTIONS = (
    PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_EXITKILL
)
PTRACE_O_TRACEEXIT = 0x40
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_STOP = 1, 2, 3, 4, 6, 128
CLONE_THREAD_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
MASK64 = (1 << 64) - 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0001, 0.05
LONGEST_EXIT_S, LONGEST_PID_WAIT_S = 10.0, 5.0
"""A probe of the runtime, say, may have a pid for a while that an old task is to get."""
HELD_SIGNALS = MASK64 & ~(1 << SIGTRAP - 1)
"""What is blocked in a task while it is restored. Not the SIGTRAP of our steps: a forced signal
that is blocked or ignored has its action reset (kernel/signal.c, force_sig_info_to_task)."""
PID_REMEDY = (
    "restore where the old pids are free (a pid namespace of its own), or run with "
    "CAP_CHECKPOINT_RESTORE or the pid helper"
)

ChoosePid = Callable[[int], None]
"""Makes the next clone in the tree's pid namespace get this pid."""


@dataclass(slots=True, kw_only=True)
class Living:
    """A task that is being restored. ``tids`` maps its own tids to ours.

    ``pid`` is that of its main thread, and of another one when that has ended.
    """

    image: TaskImage
    memory_of: TaskImage
    """Whose memory it has: another's before it got its own, and for zombies and ghosts."""
    pid: int
    arena: Arena
    syscall_address: int
    areas: tuple[Area, ...] = ()
    special: Group | None = None
    opened: set[int] = field(default_factory=set)
    lazy: set[int] = field(default_factory=set)
    """Starts of areas that are filled when it runs."""
    tids: dict[int, int] = field(default_factory=dict)


def fork(
    tid: int, syscall_address: int, scratch: int, want: int, flags: int, choose: ChoosePid | None
) -> int:
    """Fork (or make a thread of) a stopped task; the child's pid as seen from here.

    ``scratch`` is writable memory of the task for clone3's arguments. With ``want`` 0 any pid
    is good.

    Raises:
        KernelError: the pid is taken, or may not be chosen.
    """
    pause_s, until_s = FIRST_PAUSE_S, time.monotonic() + LONGEST_PID_WAIT_S
    while True:
        if choose is not None and want:
            choose(want)
        child, got = _clone(tid, syscall_address, scratch, want, flags, choose is None)
        if child and (got == want or not want):
            return child
        if child and flags & 0xFF:
            discard(child)
            _reap_inside(tid, syscall_address, got)
        elif child:
            _exit_thread(child, syscall_address)
        if time.monotonic() > until_s:
            break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    raise KernelError(
        f"pid {want} is taken", errno=EEXIST, subject=f"task {want}", remedy=PID_REMEDY
    )


def _clone(
    tid: int, syscall_address: int, scratch: int, want: int, flags: int, set_tid: bool
) -> tuple[int, int]:
    """The child as seen from here, 0 if its pid is taken, and its number inside."""
    regs = native.get_regs(tid).copy()
    if set_tid:
        wanted_at = scratch + 128
        native.write_memory(tid, wanted_at, struct.pack("<i", want))
        chosen = (wanted_at, 1) if want else (0, 0)
        args = struct.pack("<11Q", flags & ~0xFF, 0, 0, 0, flags & 0xFF, 0, 0, 0, *chosen, 0)
        native.write_memory(tid, scratch, args)
        aim(regs, syscall_address, "clone3", (scratch, len(args)))
    else:
        aim(regs, syscall_address, "clone", (flags, 0, 0, 0, 0))
    native.set_regs(tid, regs)
    native.step(tid)
    status = native.wait_stop(tid)
    if status >> 16 not in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE):
        result = _signed(native.get_regs(tid).rax)
        if result == -EEXIST:
            return 0, 0
        raise KernelError(
            "clone failed",
            errno=-result if result < 0 else 5,
            subject=f"task {want}",
            remedy=PID_REMEDY,
        )
    child = native.event_message(tid)
    native.wait_stop(child)
    native.step(tid)
    native.wait_stop(tid)
    return child, _signed(native.get_regs(tid).rax)


def discard(child: int) -> None:
    """End a child that is not wanted. Never raises."""
    with suppress(Error):
        native.kill_traced(child)
        ptrace.reap([child])


def _exit_thread(tid: int, syscall_address: int) -> None:
    """End a thread that got another tid than the wanted one; its task lives on."""
    regs = native.get_regs(tid).copy()
    aim(regs, syscall_address, "exit", (0,))
    native.set_regs(tid, regs)
    native.cont(tid)
    with suppress(Vanished):
        native.wait_stop(tid)


def end_thread(tid: int, syscall_address: int, exit_code: int, sigmask: int) -> None:
    """End the main thread of a task that lives on in others, and let go of it.

    A tracer could not let go of it later: it does not stop again, and is waited for only when all
    others have ended (kernel/ptrace.c, ptrace_check_attach; kernel/exit.c, delay_group_leader;
    v6.18). At its exit stop it runs nothing of its own any more, so it can have its old mask.
    """
    regs = native.get_regs(tid).copy()
    aim(regs, syscall_address, "exit", (exit_code >> 8 & 0xFF,))
    native.set_options(tid, PTRACE_O_TRACEEXIT)  # the others still end with us
    native.set_regs(tid, regs)
    native.cont(tid)
    status = native.wait_stop(tid)
    while status >> 16 == EVENT_STOP:  # somebody has sent SIGCONT
        native.cont(tid)
        status = native.wait_stop(tid)
    if status >> 16 != EVENT_EXIT:
        raise Bug(f"stop {status:#x} in place of an exit", subject=f"pid {tid}")
    native.set_sigmask(tid, sigmask)
    native.detach(tid)
    until_s = time.monotonic() + LONGEST_EXIT_S
    while proc.parse_stat(proc.read_text(tid, "stat")).state not in proc.ENDED:
        if time.monotonic() > until_s:
            raise Timeout("a main thread does not end", subject=f"pid {tid}")
        time.sleep(FIRST_PAUSE_S)


def _reap_inside(tid: int, syscall_address: int, ns_pid: int) -> None:
    from torpor.engine.restore.arena import step_syscall

    step_syscall(tid, syscall_address, "wait4", ns_pid, 0, WALL, 0)


def execute(tid: int, syscall_address: int, scratch: int, path: str, name: bytes) -> None:
    """Execve a program in a stopped task and stop it before its first instruction."""
    raw = path.encode("utf-8", "surrogateescape") + b"\0"
    content = raw.ljust((len(raw) + 63) & ~63, b"\0")
    at = scratch + 64
    vector = struct.pack("<QQ", at + len(content), 0)
    tail = name + b"\0"
    argv_at = (at + len(content) + len(tail) + 7) & ~7
    native.write_memory(tid, at, content + tail)
    native.write_memory(tid, argv_at, vector)
    regs = native.get_regs(tid).copy()
    aim(regs, syscall_address, "execve", (at, argv_at, argv_at + 8))
    native.set_regs(tid, regs)
    native.step(tid)
    status = native.wait_stop(tid)
    if status >> 16 != EVENT_EXEC:
        result = _signed(native.get_regs(tid).rax)
        raise KernelError(
            f"cannot execute {path}",
            errno=-result if -4096 < result < 0 else 5,
            subject=f"exe {path}",
            remedy="the program must be there, the same as before, and executable",
        )
    native.step(tid)
    status = native.wait_stop(tid)
    if status >> 8 != SIGTRAP:
        raise Bug(f"stop {status:#x} after an exec", subject=path)


def become_zombie(child: int, syscall_address: int, exit_code: int) -> None:
    """Let a forked child end with a wait status of before."""
    signal = exit_code & 0x7F
    if signal:
        native.set_sigmask(child, 0)
        native.cont(child, signal)
    else:
        regs = native.get_regs(child).copy()
        aim(regs, syscall_address, "exit_group", (exit_code >> 8 & 0xFF,))
        native.set_regs(child, regs)
        native.cont(child)
    try:
        native.wait_stop(child)
    except Vanished:
        return
    raise Bug("a task did not become a zombie", subject=f"pid {child}")


@contextmanager
def passing(maker: Living, helper: int, status: int = 0) -> Iterator[None]:
    """A short-lived child of a task ends behind the block, and is killed if that fails.

    ``status`` is its wait status.
    """
    try:
        yield
        end_helper(maker, helper, status)
    except BaseException:
        discard(helper)
        raise


def end_helper(maker: Living, helper: int, status: int = 0) -> None:
    """Let a short-lived child of a task end, and wait for it inside; its maker sees nothing."""
    number = innermost(proc.read_text(helper, "status"), helper)
    become_zombie(helper, maker.syscall_address, status)
    maker.arena.call(maker.pid, "wait4", number, 0, WALL, 0)
    drain_signal(maker, SIGCHLD)


def drain_signal(task: Living, signal: int) -> None:
    """Take the signal that an ended child has sent to a task with all signals blocked."""
    if not signal:
        return
    mask = Data(struct.pack("<Q", 1 << (signal - 1)))
    drain = Op(
        call="rt_sigtimedwait",
        args=(mask, 0, Data(bytes(16)), 8),
        expect=Expect.ANY,
        subject=f"signal {signal}",
        note="of a child that ended while restoring",
    )
    task.arena.run(task.pid, Program("signals", [drain]), task.image.subject)


def end(root: Living, others: list[Living], status: int) -> None:
    """Give up: kill every task; the root leaves with an exit status of its own."""
    threads = [tid for task in (*others, root) for tid in _threads(task.pid)]
    for task in reversed(others):
        with suppress(Error):
            native.kill_traced(task.pid)
    try:
        regs = native.get_regs(root.pid).copy()
        aim(regs, root.syscall_address, "exit_group", (status,))
        native.set_regs(root.pid, regs)
        native.cont(root.pid)
    except Error:
        with suppress(Error):
            native.kill_traced(root.pid)
    ptrace.reap(threads)


def reap_ours(pids: list[int]) -> None:
    """Wait for those that came to us as orphans (a child subreaper, or pid 1), so none stays."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _threads(pid: int) -> list[int]:
    try:
        return proc.threads(pid)
    except Vanished:
        return []


def aim(regs: Regs, address: int, name: str, args: tuple[int, ...]) -> None:
    """Registers with which a `syscall` instruction at ``address`` makes a call."""
    regs.rip, regs.rax, regs.orig_rax = address, syscall_number(name), MASK64
    padded = [a & MASK64 for a in args] + [0] * (6 - len(args))
    regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = padded


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


FORK_FLAGS = int(SIGCHLD)
HELPER_FLAGS = FORK_FLAGS | 0x400  # CLONE_FILES
WALL = 0x40000000
