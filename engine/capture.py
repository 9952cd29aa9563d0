# SPDX-License-Identifier: Apache-2.0
"""What is taken of a stopped task: raw texts and results, parsed only after the thaw.

`dump/capture.py` fills these in; the modules of `tasks/` and `memory/` read them. Recorded
captures are how those modules are tested without root.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NS_TGID = re.compile(r"^NStgid:.*?(\d+)$", re.MULTILINE)
NS_PID = re.compile(r"^NSpid:.*?(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadCapture:
    """One stopped thread. Byte strings are the kernel's own structures."""

    tid: int
    comm: bytes
    status: str
    regs: bytes
    """struct user_regs_struct; an interrupted call is set up to be issued again."""
    xstate: bytes
    sigmask: int
    pending: Sequence[bytes]
    rseq: tuple[int, int, int, int]
    """Pointer, size, signature, flags; pointer 0 when not registered."""
    robust: tuple[int, int]
    altstack: bytes
    """struct stack_t, 24 bytes."""
    tid_address: int
    pdeathsig: int
    policy: int
    priority: int
    nice: int
    affinity: bytes
    ioprio: int
    timerslack_ns: int
    sched_attr: bytes = b""
    """struct sched_attr, of SCHED_DEADLINE only."""
    seccomp: Sequence[tuple[bytes, int]] | None = ()
    """Its filters, newest first; None when they could not be read."""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of `tasks.settings.THREAD`, those which are not as usual."""

    @property
    def ns_tid(self) -> int:
        """The tid as the thread itself sees it."""
        return innermost(self.status, self.tid)


def innermost(status: str, outer: int) -> int:
    """Last number of NSpid in a status text; ``outer`` on kernels without that line."""
    found = NS_PID.search(status)
    return int(found[1]) if found else outer


def process_inside(status: str, outer: int) -> int:
    """As `innermost`, of NStgid: the pid of the process that the thread is one of."""
    found = NS_TGID.search(status)
    return int(found[1]) if found else outer


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixTimerCapture:
    """One POSIX timer; ``setting`` is struct itimerspec (interval, value)."""

    timer_id: int
    setting: bytes
    overrun: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCapture:
    """One stopped task (thread group), or a zombie (`threads` is empty then)."""

    pid: int
    ns_pid: int
    texts: Mapping[str, str]
    """Content of /proc/PID/NAME: stat, status, smaps, limits, timers, ...

    Of a thread that lives; what the main one tells when it has ended is in ``ended``.
    """
    links: Mapping[str, str]
    """Text of /proc/PID/{exe,cwd,root}."""
    ended: Mapping[str, str] = field(default_factory=dict)
    """stat, status and comm of a main thread that has ended before others."""
    threads: Sequence[ThreadCapture] = ()
    shared_pending: Sequence[bytes] = ()
    sigactions: Mapping[int, bytes] = field(default_factory=dict)
    """Signal → struct kernel_sigaction (handler, flags, restorer, mask), 32 bytes."""
    itimers: Sequence[bytes] = ()
    """Real, virtual, prof: struct itimerval (interval, value), 32 bytes."""
    posix_timers: Sequence[PosixTimerCapture] = ()
    auxv: bytes = b""
    brk: int = 0
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of `tasks.settings.PROCESS`, those which are not as usual; and whether a subreaper."""
    landlock: int = 0
    """What `tasks.landlock` has asked: an answer, or -errno."""

    @property
    def zombie(self) -> bool:
        """The task has exited and waits for its parent."""
        return not self.threads

    @property
    def subject(self) -> str:
        """`task 41`."""
        return f"task {self.ns_pid}"
