# SPDX-License-Identifier: Apache-2.0
"""What the seccomp filters of a tree let us make its threads do, known before anything is tried.

A tracer with CAP_SYS_ADMIN suspends filters, and then everything is let through. Another one has
them read by somebody who may (`DumpOptions.read_filter`) while the tasks run, and asks the programs
themselves (`kernel.verdict`); it looks again once the tasks stand still.

Facts (kernel/seccomp.c and kernel/fork.c; v6.18):
- Filters are added to a thread and never taken away; execve keeps them. A thread that is born has
  those of the thread that made it, which is one of the same process.
- So where all threads of a process had the same filters, one that has as many has the same ones,
  however young it is; a thread with filters of its own must have been read itself. An execve gives
  the leader those of the thread which made it, and ends all others.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine import native
from torpor.engine.dump.freeze import StoppedTask, list_tasks
from torpor.engine.errors import Error, Vanished
from torpor.engine.kernel import proc, verdict
from torpor.engine.kernel.proc import parse_status
from torpor.engine.kernel.ptrace import Option
from torpor.engine.kernel.verdict import AskedCall, Verdict
from torpor.engine.options import ReadFilter
from torpor.engine.tasks.seccomp import MODE_FILTER

ROUNDS, TRIES = 5, 3
CAP_SYS_ADMIN = 21
Filters = tuple[tuple[bytes, int], ...]
"""Programs and their flags, the one that was installed first comes first."""


def may_read_filters() -> bool:
    """Whether PTRACE_SECCOMP_GET_FILTER will be permitted to us."""
    status = parse_status(proc.read_text(os.getpid(), "status"))
    return bool(status.cap_eff >> CAP_SYS_ADMIN & 1) and status.seccomp == 0


@dataclass(slots=True, kw_only=True)
class Permits:
    """For one tree. ``suspended``: its filters are not in force while we trace it."""

    suspended: bool
    read: ReadFilter | None = None
    _known: dict[int, dict[int, Filters]] = field(default_factory=dict)
    """Of each process, of its threads that were looked at."""
    _unknown: dict[int, str] = field(default_factory=dict)
    """Processes with filters that could not be read, and why."""
    _rest_is_new: bool = False
    """All threads which have not been looked at were born after that."""

    def look(self, root: int) -> None:
        """Read the filters of all threads of a tree; each stands still for it, for a moment."""
        if self.suspended:
            return
        for _ in range(ROUNDS):
            fresh = [
                (task.pid, tid)
                for task in list_tasks(root)
                for tid in task.tids
                if task.pid not in self._unknown and tid not in self._known.get(task.pid, {})
            ]
            if not fresh:
                self._rest_is_new = True
                return
            for pid, tid in fresh:
                self._look_at(pid, tid)

    def knows(self, pid: int) -> bool:
        """Whether all its filters were read."""
        return self.suspended or (pid in self._known and pid not in self._unknown)

    @property
    def trace(self) -> Option:
        """PTRACE_O_* that its threads are traced with."""
        return Option.SUSPEND_SECCOMP if self.suspended else Option(0)

    def why_unknown(self, pid: int) -> str:
        """Of a process whose filters were not read."""
        return self._unknown.get(pid, "they were not looked at")

    def worst(
        self, pid: int, calls: Iterable[AskedCall], tids: Sequence[int] = ()
    ) -> Verdict | None:
        """What threads of a process, all or some, may get for such calls; None: not known."""
        if self.suspended:
            return Verdict.ALLOWED
        if not self.knows(pid):
            return None
        of_threads = self._known[pid]
        chains = {of_threads[tid] for tid in tids or of_threads if tid in of_threads}
        if not chains:
            return None
        programs = [[program for program, _ in chain] for chain in chains]
        asked = list(calls)
        return max(
            (verdict.of_filters(chain, call) for chain in programs for call in asked),
            default=Verdict.ALLOWED,
        )

    def against(self, pid: int, calls: Iterable[AskedCall], what: str) -> str:
        """Why the leader of a process is not made to make such calls; empty when it may be."""
        found = self.worst(pid, calls, (pid,))
        if found is Verdict.ALLOWED:
            return ""
        if found is None:
            return f"a seccomp filter of task {pid} may forbid {what} ({self.why_unknown(pid)})"
        return f"a seccomp filter of task {pid} forbids {what}"

    def verify(self, tasks: Sequence[StoppedTask]) -> None:
        """Once they are stopped: what was read is what they have.

        Raises:
            Vanished: a task has set a filter since.
        """
        if self.suspended:
            return
        known = [task for task in tasks if task.tids and self.knows(task.pid)]
        statuses = proc.read_many([(tid, "status") for task in known for tid in task.tids])
        texts = iter(statuses)
        for task in known:
            counts = {tid: _count(next(texts)) for tid in task.tids}
            self._verify(task.pid, counts)

    def filters(self, tid: int) -> Filters | None:
        """Of a stopped thread, the newest comes first; None when they are not known."""
        if self.suspended:
            return tuple(reversed(native.seccomp_filters(tid)))
        for pid, of_threads in self._known.items():
            if tid in of_threads and pid not in self._unknown:
                return tuple(reversed(of_threads[tid]))
        return None

    def _look_at(self, pid: int, tid: int) -> None:
        of_threads = self._known.setdefault(pid, {})
        try:
            of_threads[tid] = self._read(tid)
        except Vanished:
            pass  # an ended thread is not listed again
        except Error as error:
            self._unknown[pid] = error.cause or error.what

    def _read(self, tid: int) -> Filters:
        for _ in range(TRIES):
            status = parse_status(proc.read_text(tid, "status"))
            if not status.seccomp:
                return ()
            if status.seccomp != MODE_FILTER or not status.seccomp_filters:
                raise Error("its filters cannot be counted")
            if self.read is None:
                raise Error("its filters can only be read with CAP_SYS_ADMIN")
            found = tuple(self.read(tid, number) for number in range(status.seccomp_filters))
            again = parse_status(proc.read_text(tid, "status"))
            if again.seccomp_filters == status.seccomp_filters:
                return found
        raise Error("it keeps setting filters")

    def _verify(self, pid: int, counts: Mapping[int, int]) -> None:
        of_threads = self._known[pid]
        chains = set(of_threads.values())
        if len(chains) == 1:
            (chain,) = chains
            if all(count == len(chain) for count in counts.values()) and (
                self._rest_is_new or counts.keys() <= of_threads.keys()
            ):
                of_threads.update(dict.fromkeys(counts, chain))
                return
        elif len(counts.keys() & of_threads.keys()) > 1 and all(
            tid in of_threads and len(of_threads[tid]) == count for tid, count in counts.items()
        ):
            return
        raise Vanished("set a seccomp filter just now", subject=f"task {pid}", remedy="try again")


def _count(status: bytes | Error) -> int:
    if isinstance(status, Error):
        raise status
    return proc.seccomp_count(status)
