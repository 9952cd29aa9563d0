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
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from torpor.engine import native
from torpor.engine.errors import BadImage, KernelError
from torpor.engine.files.common import O
from torpor.engine.files.memfd import FUTURE_WRITE, Memfd
from torpor.engine.kernel import maps, proc
from torpor.engine.memory.areas import (
    ANON_HUGE,
    AT_FDCWD,
    HUGE_SHIFT_AT,
    MAP_NORESERVE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
    huge_flags,
)
from torpor.engine.memory.mapping import HUGE_REMEDY
from torpor.engine.program.ops import Data, Expect, Op, Program, Slot, move
from torpor.engine.restore import build, segments
from torpor.engine.restore.arena import Arena, find_hole
from torpor.engine.restore.descriptors import Descriptors, shared_segments
from torpor.engine.restore.layout import Backings
from torpor.engine.restore.load import Snapshot
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import Work, memory_of
from torpor.engine.sockets import packet

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
MAP_SHARED_ANONYMOUS = 0x21 | 0x10 | 0x4000  # MAP_FIXED, MAP_NORESERVE
O_RDWR = 2
NO_WAY_BACK = (errno.EPERM, errno.EACCES, errno.ENOENT)
"""Errors of a link of map_files that may not be opened, or that the kernel does not have."""
NO_FD = (1 << 64) - 1
HUGE = 2 << 20


def create(work: Work, root: Living) -> Backings:
    """Make and fill everything; what the tasks map it by."""
    for inode, (fd, state) in memfds(work).items():
        if state.huge_shift:
            _take_huge(work, root, inode, state)
        _fill(work, root, inode, fd, state)
    for number, size in shared_segments(work.tree).items():
        fd = work.plan.segments[number]
        _make_segment(root, fd, -(-size // 4096) * 4096)
        _fill(work, root, number, fd, None)
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
    packets = next((states for kind, states in snapshot.states if kind is packet.KIND), {})
    rings = {int(number): state.rings_bytes for number, state in packets.items()}
    return Backings(
        files=files, read_only=read_only, segments=plan.segments, attached=attached, rings=rings,
        room=_room(snapshot, max((*attached.values(), *rings.values()), default=0)),
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
    if not _took_anonymous(root, (fd,), size, 0):
        root.arena.run(root.pid, _named(fd, size), root.image.subject)


def _take_huge(work: Work, root: Living, inode: int, state: Memfd) -> None:
    """Have shared anonymous memory of huge pages by its own name, where that may be."""
    if state.name == ANON_HUGE:
        _took_anonymous(root, _numbers(work, inode), state.size, huge_flags(state.huge_shift))


def _numbers(work: Work, inode: int) -> list[int]:
    """Service descriptors of a memfd's descriptions."""
    return [
        work.plan.context.fd(number)
        for kind, states in work.snapshot.states
        if kind.name == "memfd"
        for number, state in states.items()
        if state.inode_id == inode
    ]


def _took_anonymous(root: Living, fds: Sequence[int], size: int, flags: int) -> bool:
    try:
        root.arena.run(root.pid, _anonymous(root, fds, size, flags), root.image.subject)
    except KernelError as error:
        if error.errno not in NO_WAY_BACK:
            raise
        return False
    return True


def _anonymous(root: Living, fds: Sequence[int], size: int, flags: int) -> Program:
    used = [(v.start, v.end) for v in maps.parse_maps(proc.read_text(root.pid, "maps"))]
    room = size + (HUGE if not flags else 1 << (flags >> HUGE_SHIFT_AT))
    hole = find_hole([*used, (root.arena.base, root.arena.end)], room)
    at = -(-hole // (room - size)) * (room - size)
    link = f"/proc/self/map_files/{at:x}-{at + size:x}"
    opened, subject = Slot("segment"), "shared anonymous memory"
    return Program(
        "shared memory",
        [
            Op(
                call="mmap",
                args=(at, size, PROT_READ | PROT_WRITE, MAP_SHARED_ANONYMOUS | flags, NO_FD, 0),
                subject=subject,
                expect=Expect.EQUAL,
                want=at,
                remedy=HUGE_REMEDY if flags else "",
            ),
            Op(
                call="openat",
                args=(AT_FDCWD, Data.path(link), O_RDWR, 0),
                subject=subject,
                yields=opened,
            ),
            *(
                Op(call="dup3", args=(opened, fd, 0), subject=subject, expect=Expect.EQUAL, want=fd)
                for fd in fds
            ),
            Op(call="close", args=(opened,), subject=subject),
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


def _fill(work: Work, root: Living, shared_id: int, fd: int, memfd: Memfd | None) -> None:
    seals = memfd.seals if memfd is not None and not memfd.seals & FUTURE_WRITE else 0
    if not work.contents.of_shared(shared_id).runs and not seals:
        return
    own = _open(root.pid, fd)
    try:
        if memfd is not None and memfd.huge_shift:
            _fill_huge(work, shared_id, own)
        else:
            work.contents.fill_shared(shared_id, own)
        if seals and seals != fcntl.fcntl(own, F_GET_SEALS):
            fcntl.fcntl(own, F_ADD_SEALS, seals)
    finally:
        os.close(own)


def _fill_huge(work: Work, shared_id: int, fd: int) -> None:
    """Through a mapping: such a file cannot be written."""
    pages, size = work.contents.of_shared(shared_id), os.fstat(fd).st_size
    with mmap.mmap(fd, size, flags=mmap.MAP_SHARED | MAP_NORESERVE) as room:
        for at, length, offset in pages.between(0, size):
            with memoryview(room)[at : at + length] as piece:
                filled = _read_all(pages.fd, piece, offset)
            if not filled:
                raise KernelError(
                    "huge pages cannot be had", errno=errno.ENOMEM, subject=f"memory {shared_id}",
                    remedy=HUGE_REMEDY,
                )  # fmt: skip
            work.contents.bytes_filled += length


def _read_all(fd: int, room: memoryview, offset: int) -> bool:
    """Whether the kernel found memory for what it read; a page that is not there is EFAULT."""
    done = 0
    while done < len(room):
        try:
            got = os.preadv(fd, [room[done:]], offset + done)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return False
        if not got:
            raise BadImage("a pages file is shorter than its pagemap says")
        done += got
    return True


def _open(pid: int, fd: int) -> int:
    """A writable descriptor of ours for what a task has under a number."""
    with suppress(OSError):
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    pidfd = native.pidfd_open(pid)
    try:
        return native.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
