# SPDX-License-Identifier: Apache-2.0
"""Whether tasks read from images can be what a kernel had: numbers, ranges, links.

Images come from anywhere. What passes here can be planned, and what it asks of the kernel is no
more than a task could have asked itself; a value out of range names its file.

Facts: pids end at 4194304 (PID_MAX_LIMIT), siginfo has 128 bytes, a filter up to 4096
instructions (BPF_MAXINSNS), a set of groups 65536 (NGROUPS_MAX), comm 15 bytes.
"""

from collections.abc import Iterable, Iterator, Sequence

from torpor.engine.errors import BadImage
from torpor.engine.kernel.abi import PID_END
from torpor.engine.memory import areas
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.tasks.creds import Creds
from torpor.engine.tasks.model import (
    ALIVE,
    DEAD,
    STOPPED,
    EndedThread,
    Memory,
    TaskImage,
    ThreadImage,
)
from torpor.engine.tasks.signals import SIGINFO_BYTES, SIGNAL_COUNT

SIGNED32, SIGNED64 = 1 << 31, 1 << 63
MAX_INSTRUCTIONS, MAX_GROUPS = 4096, 65536
MAX_AUXV_BYTES = 1024
ADVICE = frozenset(areas.MADV_BY_FLAG.values())
TORPOR = "torpor.json"
REMEDY = "take the images from an intact copy, or dump again"

Finding = tuple[str, str]
"""(file, what is wrong)."""


def check_tasks(tasks: Sequence[TaskImage]) -> None:
    """Raise for the first task that cannot be.

    Raises:
        BadImage: names the file.
    """
    seen: set[int] = set()
    ended: set[int] = set()
    for task in tasks:
        for tid in [task.pid, *(t.tid for t in task.threads if t.tid != task.pid)]:
            _require(tid not in seen, "pstree.img", f"task or thread {tid} is there twice")
            seen.add(tid)
        _require(task.ppid not in ended, "pstree.img", f"the parent of task {task.pid} has ended")
        if task.zombie:
            ended.add(task.pid)
        for file, what in _findings(task):
            _require(False, file, what)
    _require(not tasks[0].zombie, f"core-{tasks[0].pid}.img", "the root of the tree has ended")


def _require(good: bool, file: str, what: str) -> None:
    if not good:
        raise BadImage(what, subject=file, remedy=REMEDY)


def _findings(task: TaskImage) -> Iterator[Finding]:
    if not 0 < task.pid < PID_END:
        yield "pstree.img", f"task {task.pid}: there is no such pid"
    if max(task.pgid, task.sid, task.ppid) >= PID_END:
        yield "pstree.img", f"task {task.pid}: its group, session or parent cannot be"
    core = f"core-{task.pid}.img"
    if task.state not in (ALIVE, DEAD, STOPPED):
        yield core, f"state {task.state} is not one that a task can be restored in"
    if not 0 <= task.stop_signal <= SIGNAL_COUNT:
        yield f"core-{task.pid}.img", f"stop signal {task.stop_signal} is none"
    if not 0 <= task.exit_signal <= SIGNAL_COUNT:
        yield TORPOR, f"task {task.pid}: exit signal {task.exit_signal} is none"
    if not 0 <= task.exit_code <= 0xFFFF:
        yield core, f"exit code {task.exit_code:#x} is none"
    if task.zombie:
        return
    if task.ended is not None:
        yield from ((core, what) for what in _ended(task, task.ended))
    yield from ((core, what) for what in _core(task))
    for thread in task.threads:
        yield from ((f"core-{thread.tid}.img", what) for what in _thread(thread))
    if task.memory is not None:
        yield from ((f"mm-{task.pid}.img", what) for what in _memory(task.memory))
    for name, path in (("working", task.cwd), ("root", task.root)):
        if not path.startswith("/"):
            yield f"fs-{task.pid}.img", f"its {name} directory {path!r} is no absolute path"


def _core(task: TaskImage) -> Iterator[str]:
    yield from _siginfos(task.shared_pending)
    for itimer in task.itimers:
        values = (itimer.interval_s, itimer.interval_us, itimer.value_s, itimer.value_us)
        yield from _in_range("interval timer", values, SIGNED64)
    for timer in task.posix_timers:
        times = (timer.interval_s, timer.interval_ns, timer.value_s, timer.value_ns)
        yield from _in_range(f"timer {timer.timer_id}", times, SIGNED64)
        words = (timer.timer_id, timer.signal, timer.notify, timer.thread or 0)
        yield from _in_range(f"timer {timer.timer_id}", words, SIGNED32)
    numbers = (*task.settings.values(), task.membarrier, task.coredump_filter or 0)
    yield from _in_range("settings", numbers, SIGNED64)
    if not -1000 <= task.oom_score_adj <= 1000:
        yield f"oom_score_adj {task.oom_score_adj} cannot be"
    if not -20 <= task.session_nice <= 19:
        yield f"niceness {task.session_nice} of its session cannot be"
    if len(task.rlimits) > 16 or task.umask > 0o777:
        yield "its limits or its umask cannot be"


def _ended(task: TaskImage, ended: EndedThread) -> Iterator[str]:
    if not task.threads:
        yield "its main thread has ended, and there is no other"
    if task.exit_code & 0xFF:
        yield f"a thread cannot end with wait status {task.exit_code:#x}"
    yield from _in_range("scheduling", (ended.policy, ended.priority), SIGNED32)
    if not -20 <= ended.nice <= 19:
        yield f"nice value {ended.nice} cannot be"
    yield from _creds(ended.creds)


def _thread(thread: ThreadImage) -> Iterator[str]:
    if not 0 < thread.tid < PID_END:
        yield f"there is no tid {thread.tid}"
    yield from _siginfos(thread.pending)
    yield from _in_range("signal stack", (thread.altstack.flags,), SIGNED32)
    plan = thread.scheduling
    yield from _in_range("scheduling", (plan.policy, plan.priority, plan.ioprio), SIGNED32)
    yield from _in_range("timer slack", (plan.timerslack_ns,), SIGNED64)
    yield from _in_range("deadline", plan.deadline or (), SIGNED64)
    yield from _in_range("settings", thread.settings.values(), SIGNED64)
    if not -20 <= plan.nice <= 19:
        yield f"nice value {plan.nice} cannot be"
    if not 0 <= thread.pdeathsig <= SIGNAL_COUNT:
        yield f"parent-death signal {thread.pdeathsig} is none"
    yield from _creds(thread.creds)
    for one in thread.seccomp:
        if not one.program or len(one.program) % 8 or len(one.program) > 8 * MAX_INSTRUCTIONS:
            yield f"a seccomp filter of {len(one.program)} bytes cannot be"


def _creds(state: Creds) -> Iterator[str]:
    sets = (state.inheritable, state.permitted, state.effective, state.bounding, state.ambient)
    yield from _in_range("capability sets", sets, 1 << 64)
    if len(state.groups) > MAX_GROUPS:
        yield f"{len(state.groups)} groups are too many"


def _siginfos(pending: Iterable[bytes]) -> Iterator[str]:
    for info in pending:
        if not 16 <= len(info) <= SIGINFO_BYTES:
            yield f"a pending signal of {len(info)} bytes cannot be"
        elif not 0 < int.from_bytes(info[:4], "little", signed=True) <= SIGNAL_COUNT:
            yield "a pending signal has no signal number"


def _in_range(name: str, values: Iterable[int], end: int) -> Iterator[str]:
    if any(not 0 <= value < end for value in values):
        yield f"a number of its {name} is out of range"


def _memory(memory: Memory) -> Iterator[str]:
    if not memory.exe.startswith("/"):
        yield f"the program {memory.exe!r} is no absolute path"
    if len(memory.auxv) > MAX_AUXV_BYTES:
        yield f"an auxiliary vector of {len(memory.auxv)} bytes cannot be"
    end = 0
    for area in memory.areas:
        if area.backing is Backing.VSYSCALL:
            continue
        what = _area(area, end)
        if what:
            yield f"{area.subject}: {what}"
        end = area.end


def _area(area: Area, free: int) -> str:
    ends = area.start | area.end | area.offset
    if area.start >= area.end or ends % areas.PAGE or area.end > areas.TASK_SIZE:
        return "is outside of what a task can have"
    if area.start < free:
        return "overlaps the area before it"
    if area.offset + area.size_bytes >= SIGNED64:
        return "is behind the end of any file"
    if area.prot & ~7:
        return f"protection {area.prot:#x} cannot be"
    if not ADVICE.issuperset(area.advice):
        return "advice that is none of those an area keeps"
    if area.backing in (Backing.FILE, Backing.FILE_SHARED) and not area.path.startswith("/"):
        return f"names a file that is not there ({area.path!r})"
    return ""
