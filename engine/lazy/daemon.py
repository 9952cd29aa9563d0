# SPDX-License-Identifier: Apache-2.0
"""The processes that go on filling when the restore has returned: one fills, one guards it.

When a userfaultfd's last copy is closed, pages that are still missing are zero pages: a program
would go on with wrong memory. So the guard has a copy of each; when the one that fills fails or is
killed, the guard ends the workload, as if it had been killed itself. When the guard is killed the
other one fills to the end. What ends both at once ends the protection, too.

The tasks wait for their first pages meanwhile, so the one that fills is born first, and the child
that both are born from is not waited for: to end takes it longer than all else.
"""

import os
import signal
import syslog
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Error
from torpor.engine.lazy import handing, order
from torpor.engine.lazy.serve import Space, serve

FAILED = 1
GUARD = "torpor-guard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be filled.

    Address spaces by the pids that images have; the image directory; the pages files.
    """

    spaces: Mapping[int, Space]
    directory: int
    files: Sequence[int]


_ending: list[int] = []
"""Children that end at once."""


def start(job: Job, pids: Sequence[int]) -> None:
    """Fill address spaces in the background; ``pids`` are the tasks that have them.

    The descriptors of the address spaces are closed here.
    """
    _reap()
    pidfds = [os.pidfd_open(pid) for pid in pids]
    spaces = [space.fd for space in job.spaces.values()]
    child = os.fork()
    if not child:
        try:
            _bear_both(job, spaces, pids, pidfds)
        except OSError:
            end(pids, pidfds)
        finally:
            os._exit(FAILED)
    _ending.append(child)
    for fd in {*pidfds, *spaces}:
        os.close(fd)


def _reap() -> None:
    for child in [*_ending]:
        with suppress(ChildProcessError):  # somebody has waited for all there are
            if not os.waitpid(child, os.WNOHANG)[0]:
                continue
        _ending.remove(child)


def _bear_both(job: Job, spaces: Sequence[int], pids: Sequence[int], pidfds: Sequence[int]) -> None:
    """As children of init."""
    ending, told = os.pipe()
    if not os.fork():
        try:  # nothing of it may come to where the tasks are ended
            _detach([job.directory, *job.files, *spaces, told], handing.NAME)
            if not (failed := _fill(job)):
                with suppress(BrokenPipeError):  # the guard is gone
                    os.write(told, b"\0")
            os._exit(failed)
        finally:
            os._exit(FAILED)
    os.close(told)
    if not os.fork():
        try:
            _detach([*pidfds, *spaces, ending], GUARD)
            _guard(ending, pids, pidfds)
        finally:
            os._exit(FAILED)
    os._exit(0)


def _detach(kept: Sequence[int], name: str) -> None:
    """In a session of its own, with nothing open that others wait for."""
    os.setsid()
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    _close_all_but(kept)
    handing.announce(name)


def _close_all_but(kept: Sequence[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        if number not in kept:
            os.dup2(nothing, number)
    low = 3
    for fd in sorted({*kept}):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _guard(ending: int, pids: Sequence[int], pidfds: Sequence[int]) -> None:
    """Until the other one has said that all is filled, or has ended."""
    if os.read(ending, 1):
        os._exit(0)
    syslog.syslog(syslog.LOG_ERR, f"the memory of task {pids[0]} could not be filled: "
                  "its tasks are ended")  # fmt: skip
    end(pids, pidfds)
    os._exit(FAILED)


def _fill(job: Job) -> int:
    known = {pid: order.recorded(job.directory, pid) for pid in job.spaces}
    for pid, space in job.spaces.items():
        space.order = known[pid][::-1]
    try:
        serve(list(job.spaces.values()))
    except (Error, OSError) as error:
        syslog.syslog(syslog.LOG_ERR, f"lazy restore: {error}")
        return FAILED
    for pid, space in job.spaces.items():
        if space.faults:
            order.record(job.directory, pid, known[pid] + space.faults)
    return 0


def end(pids: Sequence[int], pidfds: Sequence[int]) -> None:
    """End every task, and what they have forked since."""
    forked = set[int]()
    for pid in pids:
        forked |= below(pid)
    for pidfd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pid in forked:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def below(pid: int) -> set[int]:
    """Pids of all descendants."""
    found = set[int]()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, path.read_text(encoding="ascii").split()):
                found |= {child} | below(child)
    return found
