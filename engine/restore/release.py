# SPDX-License-Identifier: Apache-2.0
"""The end of a restore: own registers, and let go; what was stopped is stopped before.

Facts (kernel/signal.c, do_signal_stop, ptrace_stop; kernel/ptrace.c, __ptrace_unlink; v6.18):
- A job control stop that a tracer lets begin lasts when it detaches. So a task is stopped while
  it is held, and no instruction of it runs in between.
- The stop completes when all threads take part; then the parent gets SIGCHLD, and may wait for
  it once. A parent that had done so before is made to do it again, while it is held as well.
- A stop signal other than SIGSTOP is dropped in an orphaned process group.
"""

import os
import struct
from collections.abc import Callable
from signal import SIGCHLD, SIGSTOP

from torpor.engine import native
from torpor.engine.errors import Bug
from torpor.engine.kernel import ptrace
from torpor.engine.kernel.arch.x86_64 import Regs
from torpor.engine.program.ops import Op
from torpor.engine.restore import spawn
from torpor.engine.restore.spawn import HELD_SIGNALS, MASK64, Living
from torpor.engine.restore.work import Work
from torpor.engine.tasks import signals
from torpor.engine.tasks.model import STOPPED, TaskImage, ThreadImage

EVENT_STOP = 128
P_PID, WSTOPPED, WNOHANG = 1, 2, 1


def let_go(work: Work, *, leave_stopped: bool, last: Callable[[], None]) -> None:
    """Every task goes on where it was, or stands in a job control stop.

    ``last`` is called when nothing of ours will touch their memory any more.
    """
    alive = work.alive()
    to_stop = [t for t in alive if leave_stopped or t.image.state == STOPPED]
    for task in reversed(to_stop):  # while their parents can still be asked to wait
        _leave_arena(task)
        _stop(task)
        _tell_parent(work, task)
    for task in alive:
        if task not in to_stop:
            _leave_arena(task)
        for thread in task.image.threads:
            _set_registers(task.tids[thread.tid], thread)
    last()
    for task in alive:
        for thread in task.image.threads:
            tid = task.tids[thread.tid]
            native.set_sigmask(tid, thread.sigmask)
            native.detach(tid)
    for task in to_stop:
        ptrace.await_stop(task.pid)


def last_calls(image: TaskImage) -> list[tuple[int, list[Op]]]:
    """(thread, what it does when no more programs run) of a task's threads; the first is last."""
    first = image.threads[0]
    found = [
        (thread.tid, signals.last_calls(thread.pending, image.pid, thread.tid))
        for thread in image.threads[1:]
    ]
    leader = [
        *signals.last_calls(image.shared_pending, image.pid, None),
        *signals.last_calls(first.pending, image.pid, first.tid, image.actions),
    ]
    return [*((tid, ops) for tid, ops in found if ops), (first.tid, leader)]


def _leave_arena(task: Living) -> None:
    *others, (_, last) = last_calls(task.image)
    address, subject = task.syscall_address, task.image.subject
    for tid, ops in others:
        task.arena.without_traps(task.tids[tid], address, subject, ops)
    task.arena.leave(task.pid, address, subject, last)


def _stop(task: Living) -> None:
    """By its signal, which its first thread takes on the way to a harmless call."""
    wanted = task.image.stop_signal or SIGSTOP
    if not _take_stop(task, wanted):
        native.settle(task.pid, stopped=True)
        if not _take_stop(task, SIGSTOP):
            raise Bug("a task did not stop", subject=task.image.subject)
    for tid in task.tids.values():
        if tid != task.pid:
            native.cont(tid)
            native.wait_stop(tid)


def _take_stop(task: Living, signal: int) -> bool:
    regs = native.get_regs(task.pid).copy()
    spawn.aim(regs, task.syscall_address, "getpid", ())
    native.set_regs(task.pid, regs)
    os.kill(task.pid, SIGSTOP)
    native.cont_to_syscall(task.pid)
    status = native.wait_stop(task.pid)
    if status >> 8 != SIGSTOP:
        raise Bug(f"stop {status:#x} in place of SIGSTOP", subject=task.image.subject)
    native.set_sigmask(task.pid, HELD_SIGNALS & ~(1 << (signal - 1)))
    native.cont_to_syscall(task.pid, signal)
    return native.wait_stop(task.pid) >> 16 == EVENT_STOP


def _tell_parent(work: Work, task: Living) -> None:
    """It has been told of the stop before: neither a signal nor a wait may say it again."""
    parent = work.living.get(task.image.ppid)
    if parent is None or task.image.state != STOPPED:
        return
    if not any(_number(info) == SIGCHLD for info in _pending(parent)):
        spawn.drain_signal(parent, SIGCHLD)
    if not task.image.stop_signal:
        room = parent.arena.scratch
        parent.arena.call(parent.pid, "waitid", P_PID, task.image.pid, room, WSTOPPED | WNOHANG, 0)


def _pending(task: Living) -> list[bytes]:
    own = [info for thread in task.image.threads[:1] for info in thread.pending]
    return [*task.image.shared_pending, *own]


def _number(info: bytes) -> int:
    (number,) = struct.unpack_from("<i", info)
    return int(number)


def _set_registers(tid: int, thread: ThreadImage) -> None:
    regs = Regs.unpack(thread.registers.general)
    regs.orig_rax = MASK64
    native.set_xstate(tid, thread.registers.xstate)
    native.set_regs(tid, regs)
