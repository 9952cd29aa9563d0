# SPDX-License-Identifier: Apache-2.0
"""Filling for a restore in another process, which hands its userfaultfds over (`handing`).

A child fills from the first one on, for the restore itself may wait for a page. We guard it as
`daemon` does: when it fails or is killed, or the restore ends before it said so, what was restored
is ended. When we are killed the child fills to the end.
"""

import errno
import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torpor.engine import logs, native
from torpor.engine.errors import Error, KernelError
from torpor.engine.kernel import maps, proc
from torpor.engine.lazy import daemon, handing
from torpor.engine.lazy.handing import Handed
from torpor.engine.lazy.serve import Space, serve

FAILED = 1

log = logs.logger(__name__)

Fill = Callable[[socket.socket], int]
"""Fills all that comes over a connection, see `Queue`, in a child; 0 when all is there."""


@dataclass(slots=True)
class Queue:
    """What a restore hands over, for `serve`. ``space_of`` makes an address space of it."""

    connection: socket.socket
    space_of: Callable[[Handed], Space]
    failure: Error | None = None
    """Why not all has come."""

    def fileno(self) -> int:
        """See `Arrivals`."""
        return self.connection.fileno()

    def next(self) -> Space | None:
        """See `Arrivals`."""
        try:
            handed = handing.receive(self.connection)
        except Error as error:
            self.failure = error
            return None
        return None if handed is None else self.space_of(handed)


def fill(queue: Queue) -> None:
    """Fill all that comes.

    Raises: Error when a page cannot be had, or, after filling, when not all has come.
    """
    serve((), queue)
    if queue.failure is not None:
        raise queue.failure


def attend(restore: socket.socket, fill: Fill) -> None:
    """Have all memory filled that a restore hands over; ``fill`` does it, in a child.

    Raises: Error when not all is there; what was restored is ended then.
    """
    ours, theirs = socket.socketpair()
    filler = os.fork()
    if not filler:
        ours.close()
        restore.close()
        os.setsid()  # what is typed at a terminal is for the one that guards
        try:
            os._exit(fill(theirs))
        finally:
            os._exit(FAILED)
    theirs.close()
    with ours, _Guard(restore, ours, filler) as guard:
        guard.pass_on()
        guard.await_end()


@dataclass(slots=True)
class _Guard:
    """Copies of the userfaultfds, and whose memory it is."""

    restore: socket.socket
    filler: socket.socket
    filler_pid: int
    fds: list[int] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    pidfds: list[int] = field(default_factory=list)
    is_over: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what has not all its memory."""
        if not self.is_over:
            with suppress(ProcessLookupError):
                os.kill(self.filler_pid, signal.SIGKILL)
            daemon.end(self.pids, self.pidfds)
            os.waitpid(self.filler_pid, 0)
        for fd in (*self.fds, *self.pidfds):
            os.close(fd)

    def pass_on(self) -> None:
        """Everything that the restore hands over, to the child."""
        with ExitStack() as stack:
            alive = native.pidfd_open(self.filler_pid)
            stack.callback(os.close, alive)
            poll = select.poll()
            for fd in (alive, self.restore.fileno()):
                poll.register(fd, select.POLLIN)
            while True:
                if alive in [fd for fd, _ in poll.poll()]:
                    raise self._failure()
                handed = handing.receive(self.restore)
                if handed is None:
                    break
                self._keep(handed)
                handing.hand(self.filler, *handed)
            handing.end(self.filler)

    def await_end(self) -> None:
        """Wait until all is filled."""
        info = os.waitid(os.P_PID, self.filler_pid, os.WEXITED | os.WNOWAIT)
        if info is None or info.si_code != os.CLD_EXITED or info.si_status:
            raise self._failure()
        os.waitpid(self.filler_pid, 0)
        self.is_over = True

    def _keep(self, handed: Handed) -> None:
        self.fds.append(handed.fd)
        pid = _found(self.restore, handed.pid)
        if pid is None:
            log.warning("task %d was not found: it cannot be ended when filling fails", handed.pid)
            return
        with suppress(Error):
            self.pidfds.append(native.pidfd_open(pid))
            self.pids.append(pid)

    def _failure(self) -> KernelError:
        return KernelError(
            "memory could not be filled: what was restored is ended",
            errno=errno.EIO,
            subject=", ".join(f"task {pid}" for pid in self.pids[:3]),
            cause="the process that fills has failed",
            remedy="see what it says above",
        )


def _found(restore: socket.socket, pid: int) -> int | None:
    """A task of the restore at the other end, by the pid that it sees itself.

    It is a descendant of the restore, or of its parent (--restore-sibling); when the restore has
    ended already, a task that has memory to wait for.
    """
    peer = handing.peer(restore)
    for root in (peer, _parent(peer)):
        for one in daemon.below(root) if root > 1 else ():
            if _own_pid(one) == pid:
                return one
    others = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return next((one for one in others if _own_pid(one) == pid and _waits(one)), None)


def _own_pid(pid: int) -> int:
    with suppress(Error):
        return proc.innermost_tgid(proc.read_bytes(pid, "status"))
    return 0


def _waits(pid: int) -> bool:
    with suppress(Error):
        return any("um" in vma.vm_flags for vma in maps.parse_smaps(proc.read_text(pid, "smaps")))
    return False


def _parent(pid: int) -> int:
    with suppress(Error):
        return proc.parse_stat(proc.read_text(pid, "stat")).ppid
    return 0
