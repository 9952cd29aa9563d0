# SPDX-License-Identifier: Apache-2.0
"""The tasks of an image as plain data: what a dump makes and a restore starts from.

Pids are those that the tasks themselves see. A zombie has no threads, no memory, no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.memory import marks, policies
from torpor.engine.memory.areas import Area
from torpor.engine.memory.marks import Marks
from torpor.engine.memory.policies import Policies
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.creds import Creds
from torpor.engine.tasks.registers import Registers
from torpor.engine.tasks.seccomp import Filter
from torpor.engine.tasks.signals import Action, AltStack
from torpor.engine.tasks.timers import Itimer, PosixTimer

ALIVE, DEAD, STOPPED = 1, 2, 3
MAIN_ENDED = 7
"""In images only, of a task whose main thread has ended before others.

CRIU 4.2 gives a task that it knows no state for back to nobody ("Unknown task state 7", seen): it
could only make a main thread that runs on from nowhere.
"""
SIGCHLD = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """A table that tasks may have in common: what it is, the flag of clone(2) that shares it."""

    what: str
    clone_flag: int


SHARED: Mapping[str, Sharing] = {
    "files_of": Sharing(what="descriptor table", clone_flag=0x400),
    "fs_of": Sharing(what="directories and umask", clone_flag=0x200),
}
"""By the field of `TaskImage` that tells with whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadImage:
    """One thread; the first of a task is its main one, if that lives."""

    tid: int
    comm: bytes
    registers: Registers
    sigmask: int
    pending: Sequence[bytes]
    altstack: AltStack
    rseq: tuple[int, int, int, int]
    robust: tuple[int, int]
    tid_address: int
    pdeathsig: int
    scheduling: Scheduling
    creds: Creds
    seccomp: Sequence[Filter] = ()
    seccomp_strict: bool = False
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of `settings.THREAD`, those which are not as usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedThread:
    """What is seen of a main thread that has ended before others.

    Signals for the process are dropped, and callers judged, by its mask and its credentials
    (kernel/signal.c, sig_ignored, check_kill_permission; v6.18).
    """

    sigmask: int
    nice: int
    policy: int
    priority: int
    creds: Creds


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """An address space. ``markers`` are in the order of struct prctl_mm_map."""

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: bytes
    areas: Sequence[Area]
    exe: str
    dumpable: int
    thp_disabled: bool
    thp_flags: int = 0
    """PR_THP_DISABLE_*."""
    exe_file: int = 0
    """Number of the description of a program whose file has no name any more."""
    marks: Marks = marks.NONE
    policies: Policies = policies.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImage:
    """A task (thread group)."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    state: int
    exit_code: int
    """Of a zombie, and of a main thread that has ended before others; wait status."""
    comm: bytes
    threads: Sequence[ThreadImage] = ()
    memory: Memory | None = None
    cwd: str = "/"
    root: str = "/"
    cwd_file: int | None = None
    """The file that stands for the working directory when that was removed; so with the root."""
    root_file: int | None = None
    umask: int = 0o22
    personality: int = 0
    subreaper: bool = False
    oom_score_adj: int = 0
    loginuid: int | None = None
    rlimits: Sequence[tuple[int, int]] = ()
    actions: Mapping[int, Action] = field(default_factory=dict)
    shared_pending: Sequence[bytes] = ()
    itimers: Sequence[Itimer] = ()
    posix_timers: Sequence[PosixTimer] = ()
    files_of: int | None = None
    """Pid of the first task with the same descriptor table (CLONE_FILES), None if it is that."""
    fs_of: int | None = None
    """As `files_of`: root and working directory, umask (CLONE_FS)."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of `settings.PROCESS`, those which are not as usual."""
    membarrier: int = 0
    """Registrations, as bits of the commands that make them."""
    coredump_filter: int | None = None
    session_nice: int = 0
    """Niceness of the session that it leads beside others (autogroup, sched(7))."""
    cgroup_set: int = 1
    """Number of the set of control groups it is in; 1 is that of the dumping program."""
    stop_signal: int = 0
    """Of a stopped task: the signal that its parent has not waited for yet; 0 if it has."""
    exit_signal: int = SIGCHLD
    """Sent to its parent at its end; 0 for none."""
    ended: EndedThread | None = None
    """Its main thread, where that has ended: ``threads`` are those which live on."""

    @property
    def subject(self) -> str:
        """`task 41 (redis-server)`."""
        return f"task {self.pid} ({self.comm.decode('utf-8', 'replace')})"

    @property
    def zombie(self) -> bool:
        """Exited and not yet waited for."""
        return self.state == DEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """All tasks; parents come before their children."""

    tasks: Sequence[TaskImage]

    @property
    def root(self) -> TaskImage:
        """The task that everything descends from."""
        return self.tasks[0]

    def children(self, pid: int) -> list[TaskImage]:
        """Children in the order of their pids."""
        found = [t for t in self.tasks[1:] if t.ppid == pid]
        return sorted(found, key=lambda t: t.pid)
