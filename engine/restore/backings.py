# SPDX-License-Identifier: Apache-2.0
"""Shared memory without a path, made by the root before any task has its memory.

Every segment of shared anonymous memory and every memfd has a service descriptor, is filled
once through a descriptor of ours, and is then mapped by whoever had it, in whatever pieces.

Facts (probed on v6.18):
- What /proc/self/map_files opens of a MAP_SHARED|MAP_ANONYMOUS mapping can be mapped again, by
  any task that has the descriptor, and still shows as `/dev/zero (deleted)`. It takes
  CAP_CHECKPOINT_RESTORE. Without that a memfd of the name /dev/zero does the same but for the
  name in maps; CRIU always takes one, and a dump takes it for shared anonymous memory again.
- A memfd that a task may only read can be opened for writing by us; seals come after its
  content, F_SEAL_FUTURE_WRITE after all mappings.
"""

import errno
import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from torpor.engine import native
from torpor.engine.errors import KernelError
from torpor.engine.files.common import O
from torpor.engine.files.memfd import FUTURE_WRITE, Memfd
from torpor.engine.kernel import maps, proc
from torpor.engine.memory.areas import AT_FDCWD, PROT_READ, PROT_WRITE, TASK_SIZE
from torpor.engine.program.ops import Data, Expect, Op, Program, Slot, move
from torpor.engine.restore import build, segments
from torpor.engine.restore.arena import Arena, find_hole
from torpor.engine.restore.descriptors import Descriptors, shared_segments
from torpor.engine.restore.layout import Backings
from torpor.engine.restore.load import Snapshot
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import Work, memory_of

F_ADD_SEALS = 1033
MAP_SHARED_ANONYMOUS = 0x21 | 0x10 | 0x4000  # MAP_FIXED, MAP_NORESERVE
O_RDWR = 2
NO_WAY_BACK = (errno.EPERM, errno.EACCES, errno.ENOENT)
"""Errors of a link of map_files that may not be opened, or that the kernel does not have."""
NO_FD = (1 << 64) - 1
HUGE = 2 << 20


def create(work: Work, root: Living) -> Backings:
    """Make and fill everything; what the tasks map it by."""
    for inode, (fd, state) in memfds(work).items():
        _fill(work, root, inode, fd, state.seals if not state.seals & FUTURE_WRITE else 0)
    for number, size in shared_segments(work.tree).items():
        fd = work.plan.segments[number]
        _make_segment(root, fd, -(-size // 4096) * 4096)
        _fill(work, root, number, fd, 0)
    segments.create(work, root)
    return of_plan(work.snapshot, work.plan)


def of_plan(snapshot: Snapshot, plan: Descriptors) -> Backings:
    """By what service descriptors tasks map what has no path."""
    files = {int(number): plan.context.fd(number) for number in snapshot.mapped}
    read_only = {
        int(number)
        for kind, states in snapshot.states
        if kind.name in ("memfd", "regular")
        for number, state in states.items()
        if number in snapshot.mapped and state.flags & O.ACCMODE == 0
    }
    attached = {segment.shm_id: segment.size_bytes for segment in snapshot.segments}
    return Backings(
        files=files, read_only=read_only, segments=plan.segments, attached=attached,
        room=_room(snapshot, max(attached.values(), default=0)),
    )  # fmt: skip


def _room(snapshot: Snapshot, size: int) -> int:
    """Where no task has anything, and no arena lies."""
    used = [
        (a.start, a.end) for t in snapshot.tree.tasks for a in (t.memory.areas if t.memory else ())
    ]
    arena = Arena(base=0).size_bytes
    hole = find_hole([(a, b) for a, b in used if b <= TASK_SIZE], 2 * (arena + HUGE) + size)
    return hole + arena + 2 * HUGE


def seal(work: Work, root: Living) -> None:
    """The seals that must not be there before everything is mapped."""
    for fd, state in memfds(work).values():
        if state.seals & FUTURE_WRITE:
            own = _open(root.pid, fd)
            try:
                fcntl.fcntl(own, F_ADD_SEALS, state.seals)
            finally:
                os.close(own)


def set_program(task: Living, fd: int) -> None:
    """The exe link of a program whose file has no name, when its memory is laid out."""
    there = os.stat(f"/proc/{task.pid}/exe"), os.stat(f"/proc/{task.pid}/fd/{fd}")
    if not os.path.samestat(*there):  # a child of the same program has it already
        markers = build.memory_markers(memory_of(task), exe_fd=fd)
        note = "the exe link takes CAP_CHECKPOINT_RESTORE"
        program = Program("program", [replace(markers, note=note)])
        task.arena.run(task.pid, program, task.image.subject)


def memfds(work: Work) -> Mapping[int, tuple[int, Memfd]]:
    """Inode number of every memfd → a service descriptor of it, and what it is."""
    found: dict[int, tuple[int, Memfd]] = {}
    for kind, states in work.snapshot.states:
        if kind.name == "memfd":
            for number, state in states.items():
                found.setdefault(state.inode_id, (work.plan.context.fd(number), state))
    return found


def _make_segment(root: Living, fd: int, size: int) -> None:
    try:
        root.arena.run(root.pid, _anonymous(root, fd, size), root.image.subject)
    except KernelError as error:
        if error.errno not in NO_WAY_BACK:
            raise
        root.arena.run(root.pid, _named(fd, size), root.image.subject)


def _anonymous(root: Living, fd: int, size: int) -> Program:
    used = [(v.start, v.end) for v in maps.parse_maps(proc.read_text(root.pid, "maps"))]
    at = find_hole([*used, (root.arena.base, root.arena.end)], size)
    link = f"/proc/self/map_files/{at:x}-{at + size:x}"
    opened, subject = Slot("segment"), "shared anonymous memory"
    return Program(
        "shared memory",
        [
            Op(
                call="mmap",
                args=(at, size, PROT_READ | PROT_WRITE, MAP_SHARED_ANONYMOUS, NO_FD, 0),
                subject=subject,
                expect=Expect.EQUAL,
                want=at,
            ),
            Op(
                call="openat",
                args=(AT_FDCWD, Data.path(link), O_RDWR, 0),
                subject=subject,
                yields=opened,
            ),
            *move(opened, fd, subject=subject),
            Op(call="munmap", args=(at, size), subject=subject),
        ],
    )


def _named(fd: int, size: int) -> Program:
    made, subject = Slot("segment"), "shared anonymous memory"
    return Program(
        "shared memory",
        [
            Op(
                call="memfd_create",
                args=(Data.path("/dev/zero"), 0),
                subject=subject,
                yields=made,
                remedy="let the seccomp profile of the container permit memfd_create",
            ),
            *move(made, fd, subject=subject),
            Op(call="ftruncate", args=(fd, size), subject=subject),
        ],
    )


def _fill(work: Work, root: Living, shared_id: int, fd: int, seals: int) -> None:
    if not work.contents.of_shared(shared_id).runs and not seals:
        return
    own = _open(root.pid, fd)
    try:
        work.contents.fill_shared(shared_id, own)
        if seals:
            fcntl.fcntl(own, F_ADD_SEALS, seals)
    finally:
        os.close(own)


def _open(pid: int, fd: int) -> int:
    """A writable descriptor of ours for what a task has under a number."""
    with suppress(OSError):
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    pidfd = native.pidfd_open(pid)
    try:
        return native.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
