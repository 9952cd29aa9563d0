# SPDX-License-Identifier: Apache-2.0
"""Pseudo terminals get their old numbers, leaders their terminals, and what was queued goes in.

Facts (probed on v6.18):
- /dev/ptmx gives the lowest free index; it is free again once both ends are closed. So masters
  are opened, and those below kept open, until the wanted one comes.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torpor.engine import native
from torpor.engine.errors import KernelError, Refused
from torpor.engine.files import terminal, ttyplan
from torpor.engine.files.common import created
from torpor.engine.files.tty import TIOCGPTN
from torpor.engine.files.ttyplan import Pair
from torpor.engine.kernel import ttyqueue
from torpor.engine.kind import NOTHING_QUEUED
from torpor.engine.program.ops import Program
from torpor.engine.restore.descriptors import Descriptors
from torpor.engine.restore.load import Snapshot
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import Work

LONGEST_WAIT_S, PAUSE_S = 5.0, 0.02
"""Somebody may have the number for a while only."""
EMFILE = 24
AT_FDCWD = -100
REMEDY = "restore when no other program has that number, or in a container of its own"


def create(work: Work, root: Living) -> None:
    """Masters at their service numbers, with their old indices."""
    wanted = ttyplan.pairs(_terminals(work), work.plan.context)
    if not wanted:
        return
    with _spares(root) as spares:
        for pair in wanted:
            _get(root, pair, spares)
            root.arena.run(root.pid, Program("terminal", list(pair.ops)), root.image.subject)


def fill(work: Work, root: Living) -> None:
    """Queue what was queued, when all settings are as before."""
    for pair in ttyplan.pairs(_terminals(work), work.plan.context):
        if pair.queue == NOTHING_QUEUED:
            continue
        pidfd = native.pidfd_open(root.pid)
        try:
            master = native.pidfd_getfd(pidfd, pair.fd)
        finally:
            os.close(pidfd)
        try:
            ttyqueue.put(master, pair.queue, pair.subject)
        finally:
            os.close(master)


def lead(work: Work, task: Living) -> None:
    """What a task does as the leader of its session, before it has children."""
    ops = ttyplan.lead(task.image.pid, _terminals(work), work.plan.context)
    if ops:
        task.arena.run(task.pid, Program("session", ops), task.image.subject)


def own_terminal() -> int | None:
    """The first of our 0, 1 and 2 that is a terminal."""
    return next((fd for fd in range(3) if os.isatty(fd)), None)


def states_of(snapshot: Snapshot, plan: Descriptors) -> ttyplan.States:
    """The terminals that become descriptors."""
    states = (found for kind, found in snapshot.states if kind is terminal.KIND)
    return created(next(states, {}), plan.context)


def _terminals(work: Work) -> ttyplan.States:
    return states_of(work.snapshot, work.plan)


@contextmanager
def _spares(root: Living) -> Iterator[list[int]]:
    """Descriptors of the root that are closed at the end."""
    spares: list[int] = []
    yield spares
    for fd in spares:
        root.arena.call(root.pid, "close", fd)


def _get(root: Living, pair: Pair, spares: list[int]) -> None:
    until_s = time.monotonic() + LONGEST_WAIT_S
    while True:
        fd, index = _open(root, pair)
        if index == pair.index:
            _move(root, fd, pair)
            return
        if index < pair.index:
            spares.append(fd)
            continue
        root.arena.call(root.pid, "close", fd)
        if time.monotonic() > until_s:
            raise Refused(
                f"pseudo terminal {pair.index} is taken", subject=pair.subject,
                cause=f"the kernel gives {index}", remedy=REMEDY,
            )  # fmt: skip
        time.sleep(PAUSE_S)


def _open(root: Living, pair: Pair) -> tuple[int, int]:
    """(descriptor, index) of a new master."""
    arena, room = root.arena, root.arena.scratch
    path = os.fsencode(pair.path) + b"\0"
    native.write_memory(root.pid, room, path)
    fd = arena.call(root.pid, "openat", AT_FDCWD, room, pair.flags, 0)
    if fd < 0:
        remedy = "raise RLIMIT_NOFILE of this shell" if fd == -EMFILE else REMEDY
        raise KernelError(f"openat({pair.path}) failed", errno=-fd, subject=pair.subject,
                          remedy=remedy)  # fmt: skip
    result = arena.call(root.pid, "ioctl", fd, TIOCGPTN, room)
    if result < 0:
        raise KernelError(f"{pair.path} gives no pseudo terminal", errno=-result,
                          subject=pair.subject, remedy="mount devpts there")  # fmt: skip
    (index,) = struct.unpack("<I", native.read_memory(root.pid, room, 4))
    return fd, index


def _move(root: Living, fd: int, pair: Pair) -> None:
    for name, args in (("dup3", (fd, pair.fd, 0)), ("close", (fd,))):
        result = root.arena.call(root.pid, name, *args)
        if result < 0:
            raise KernelError(f"{name} failed", errno=-result, subject=pair.subject)
