# SPDX-License-Identifier: Apache-2.0
"""The processes that go on filling when the restore has returned: one fills, one guards it.

When a userfaultfd's last copy is closed, pages that are still missing are zero pages: a program
would go on with wrong memory. So the guard has a copy of each; when the one that fills fails or is
killed, the guard ends the workload, as if it had been killed itself. When the guard is killed the
other one fills to the end. What ends both at once ends the protection, too.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be filled.

    Address spaces by the pids that images have; the image directory; the pages files.
    """

    spaces: Mapping[int, Space]
    directory: int
    files: Sequence[int]


def start(job: Job, pids: Sequence[int]) -> int:
    """Fill address spaces in the background; ``pids`` are the tasks that have them.

    Returns a child that ends at once and is to be waited for. The descriptors of the address
    spaces are closed here.
    """
    pidfds = [os.pidfd_open(pid) for pid in pids]
    kept = [job.directory, *job.files, *pidfds, *(space.fd for space in job.spaces.values())]
    child = os.fork()
    if not child:
        _become_daemon(kept, job, pids, pidfds)
    for fd in {*pidfds, *(space.fd for space in job.spaces.values())}:
        os.close(fd)
    return child


def _become_daemon(
    kept: Sequence[int], job: Job, pids: Sequence[int], pidfds: Sequence[int]
) -> None:
    """As a child of init, in a session of its own, with nothing open that others wait for."""
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.chdir("/")
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(kept)
        handing.announce()
        _guard(job, pids, pidfds)
    finally:
        os._exit(FAILED)


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


def _guard(job: Job, pids: Sequence[int], pidfds: Sequence[int]) -> None:
    filler = os.fork()
    if not filler:
        os._exit(_fill(job))
    status = os.waitpid(filler, 0)[1]
    if status:
        syslog.syslog(syslog.LOG_ERR, f"the memory of task {pids[0]} could not be filled: "
                      "its tasks are ended")  # fmt: skip
        end(pids, pidfds)
    os._exit(0 if not status else FAILED)


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
