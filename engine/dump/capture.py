# SPDX-License-Identifier: Apache-2.0
"""Taking the raw state of stopped tasks: what the workload's pause is spent on.

Whatever can be read from outside is read from outside; the rest is asked by calls injected
into the task (`kernel/remote.py`), which leave no mark. Nothing is parsed here that is not
needed to go on: captures are turned into images after the thaw.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.capture import PosixTimerCapture, TaskCapture, ThreadCapture, innermost
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Denied, Error, Refused
from torpor.engine.kernel import proc, ptrace
from torpor.engine.kernel.proc import Vma, parse_smaps, parse_status, parse_timers
from torpor.engine.kernel.remote import AddressSpace, Remote
from torpor.engine.memory import areas
from torpor.engine.memory.areas import Area
from torpor.engine.memory.sysv import IPC_STAT, STAT_BYTES

TEXTS = (
    "stat",
    "status",
    "smaps",
    "limits",
    "timers",
    "oom_score_adj",
    "loginuid",
    "personality",
    "comm",
    "cgroup",
)
PR_GET_AUXV = 0x41555856
PR_GET_TID_ADDRESS, PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER = 40, 2, 37
PRCTL_VALUES = {"dumpable": 3, "keepcaps": 7, "securebits": 27, "thp_disable": 42}
PR_GET_TIMERSLACK = 30
ACTION_BYTES, ITIMER_BYTES, ALTSTACK_BYTES, SIGSET_BYTES = 32, 32, 24, 8
IOPRIO_WHO_PROCESS = 1


@dataclass(slots=True, kw_only=True)
class Captured:
    """A task as captured, with its areas parsed (they are needed to read memory)."""

    task: StoppedTask
    capture: TaskCapture
    vmas: Sequence[Vma]
    areas: Sequence[Area]
    refused: Sequence[Refused]
    segments: dict[int, bytes]
    """System V segment id → struct shmid64_ds."""


def capture_task(task: StoppedTask, may_read_filters: bool) -> Captured:
    """Capture one stopped task."""
    texts = {name: _read(task.pid, name) for name in TEXTS}
    if not task.tids:
        return _capture_zombie(task, texts)
    vmas = parse_smaps(texts["smaps"])
    found, refused = areas.collect(vmas, f"task {innermost(texts['status'], task.pid)}")
    space = AddressSpace.find(task.pid, vmas)
    threads = [_capture_thread(task.pid, tid, space) for tid in task.tids]
    status = parse_status(texts["status"])
    with Remote.safe(task.pid, space) as remote:
        auxv = _auxv(task.pid, remote)
        actions = _actions(remote, status.sig_cgt | status.sig_ign)
        itimers = _itimers(remote)
        posix = _posix_timers(remote, [t.timer_id for t in parse_timers(texts["timers"])])
        values = {
            name: remote.try_call("prctl", number, 0, 0, 0, 0)
            for name, number in PRCTL_VALUES.items()
        }
        values["subreaper"] = _word(remote, PR_GET_CHILD_SUBREAPER)
        brk = remote.call("brk", 0)
        segments = _segments(remote, vmas)
    capture = TaskCapture(
        pid=task.pid,
        ns_pid=status.ns_pid[-1],
        texts=texts,
        links=_links(task.pid),
        threads=tuple(threads),
        shared_pending=tuple(native.pending_signals(task.pid, True)),
        sigactions=actions,
        itimers=itimers,
        posix_timers=posix,
        auxv=auxv,
        brk=brk,
        prctl=values,
        seccomp=_filters(task.pid, status.seccomp, may_read_filters),
    )
    return Captured(
        task=task, capture=capture, vmas=vmas, areas=found, refused=refused, segments=segments
    )


def _capture_zombie(task: StoppedTask, texts: dict[str, str]) -> Captured:
    status = parse_status(texts["status"])
    capture = TaskCapture(pid=task.pid, ns_pid=status.ns_pid[-1], texts=texts, links={})
    return Captured(task=task, capture=capture, vmas=(), areas=(), refused=(), segments={})


def _read(pid: int, name: str) -> str:
    try:
        return proc.read_text(pid, name)
    except Denied:
        if name in ("personality",):
            return ""
        raise
    except Error:
        if name in ("timers", "loginuid", "smaps", "limits", "cgroup"):
            return ""
        raise


def _links(pid: int) -> dict[str, str]:
    return {name: proc.read_link(pid, name) for name in ("exe", "cwd", "root")}


def _capture_thread(pid: int, tid: int, space: AddressSpace) -> ThreadCapture:
    status = proc.read_text(pid, f"task/{tid}/status")
    comm = proc.read_bytes(pid, f"task/{tid}/comm").rstrip(b"\n")
    xstate = native.get_xstate(tid)
    sigmask = native.get_sigmask(tid)
    with Remote.safe(tid, space) as remote:
        at = remote.buffer
        results = remote.calls(
            [
                ("sigaltstack", (0, at)),
                ("prctl", (PR_GET_TID_ADDRESS, at + 32, 0, 0, 0)),
                ("prctl", (PR_GET_PDEATHSIG, at + 40, 0, 0, 0)),
                ("prctl", (PR_GET_TIMERSLACK, 0, 0, 0, 0)),
            ]
        )
        raw = remote.read(at, 48)
        regs = ptrace.restart_registers(tid, remote.original)
    tid_address, pdeathsig = struct.unpack_from("<Qi", raw, 32)
    return ThreadCapture(
        tid=tid,
        comm=comm,
        status=status,
        regs=regs.pack(),
        xstate=xstate,
        sigmask=sigmask,
        pending=tuple(native.pending_signals(tid, False)),
        rseq=native.rseq_config(tid),
        robust=native.robust_list(tid),
        altstack=raw[:ALTSTACK_BYTES],
        tid_address=tid_address if results[1] >= 0 else 0,
        pdeathsig=pdeathsig,
        policy=os.sched_getscheduler(tid),
        priority=os.sched_getparam(tid).sched_priority,
        nice=os.getpriority(os.PRIO_PROCESS, tid),
        affinity=_affinity(tid),
        ioprio=native.ioprio_get(tid),
        timerslack_ns=max(results[3], 0),
    )


def _affinity(tid: int) -> bytes:
    mask = sum(1 << cpu for cpu in os.sched_getaffinity(tid))
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")


def _auxv(pid: int, remote: Remote) -> bytes:
    try:
        return proc.read_bytes(pid, "auxv")
    except Denied:
        size = remote.call("prctl", PR_GET_AUXV, remote.buffer, 1024, 0, 0)
        return remote.read(remote.buffer, size)


def _actions(remote: Remote, changed: int) -> dict[int, bytes]:
    """Actions of the signals that are caught or ignored; 32 of them a batch."""
    signals = [s for s in range(1, 65) if changed >> (s - 1) & 1]
    found = {}
    for start in range(0, len(signals), 32):
        batch = signals[start : start + 32]
        at = remote.buffer
        remote.calls(
            [
                ("rt_sigaction", (s, 0, at + ACTION_BYTES * i, SIGSET_BYTES))
                for i, s in enumerate(batch)
            ]
        )
        raw = remote.read(at, ACTION_BYTES * len(batch))
        for i, s in enumerate(batch):
            found[s] = raw[ACTION_BYTES * i : ACTION_BYTES * (i + 1)]
    return found


def _itimers(remote: Remote) -> tuple[bytes, ...]:
    at = remote.buffer
    remote.calls([("getitimer", (which, at + ITIMER_BYTES * which)) for which in range(3)])
    raw = remote.read(at, ITIMER_BYTES * 3)
    return tuple(raw[ITIMER_BYTES * i : ITIMER_BYTES * (i + 1)] for i in range(3))


def _posix_timers(remote: Remote, ids: Sequence[int]) -> tuple[PosixTimerCapture, ...]:
    found = []
    for number in ids:
        results = remote.calls(
            [
                ("timer_gettime", (number, remote.buffer)),
                ("timer_getoverrun", (number,)),
            ]
        )
        found.append(
            PosixTimerCapture(
                timer_id=number,
                overrun=max(results[1], 0),
                setting=remote.read(remote.buffer, ITIMER_BYTES),
            )
        )
    return tuple(found)


def _word(remote: Remote, number: int) -> int:
    remote.call("prctl", number, remote.buffer, 0, 0, 0)
    (value,) = struct.unpack("<i", remote.read(remote.buffer, 4))
    return int(value)


def _segments(remote: Remote, vmas: Sequence[Vma]) -> dict[int, bytes]:
    found = {}
    for vma in vmas:
        if vma.name.startswith("/SYSV") and vma.inode not in found:
            remote.call("shmctl", vma.inode, IPC_STAT, remote.buffer)
            found[vma.inode] = remote.read(remote.buffer, STAT_BYTES)
    return found


def _filters(tid: int, mode: int, may_read: bool) -> tuple[tuple[bytes, int], ...] | None:
    if mode == 0:
        return ()
    if not may_read:
        return None
    return tuple(native.seccomp_filters(tid))
