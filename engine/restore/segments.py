# SPDX-License-Identifier: Apache-2.0
"""System V shared memory segments, made by the root before anything attaches them.

Facts:
- Ids grow with each segment that is made, also when older ones were removed meanwhile
  (ipc/util.c, ipc_idr_alloc: the index goes round, and counts in the id's upper half). So a
  higher id is reached by making and removing segments, which takes no right; a lower one only
  by asking for it in /proc/sys/kernel/shm_next_id, which takes CAP_CHECKPOINT_RESTORE (Linux
  5.9) and is about the ipc namespace of whoever opens the file: ours.
- A segment marked for destruction (SHM_DEST) lives until its last detach.
"""

import os
import struct
from contextlib import suppress

from torpor.engine import native
from torpor.engine.errors import KernelError, Refused
from torpor.engine.kernel import sysvipc
from torpor.engine.memory import semaphores
from torpor.engine.memory.areas import MAP_HUGETLB, SYSV_PAGES, Backing, huge_flags
from torpor.engine.memory.mapping import HUGE_REMEDY
from torpor.engine.memory.sysv import (
    IPC_CREAT,
    IPC_EXCL,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    SHM_DEST,
    STAT_BYTES,
    Segment,
    parse,
)
from torpor.engine.program.ops import Expect, Op, Program
from torpor.engine.restore.arena import RESULT
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import Work

REMEDY = "restore in a fresh pod or ipc namespace"
MOST_TRIES = 50_000
SHM_HUGETLB = 0o4000
REMOVE = Op(call="shmctl", args=(RESULT, IPC_RMID, 0), expect=Expect.ANY)
NEXT_ID = "/proc/sys/kernel/shm_next_id"


def create(work: Work, root: Living) -> None:
    """Make every segment with its old id, in the order of the ids, and fill it."""
    of_huge_pages = {
        area.shared_id: area.huge_shift
        for task in work.tree.tasks
        for area in (task.memory.areas if task.memory else ())
        if area.backing is Backing.SYSV
    }
    for segment in sorted(work.snapshot.segments, key=lambda s: s.shm_id):
        _create_one(root, segment, huge_flags(of_huge_pages.get(segment.shm_id, 0)))
        _fill(work, root, segment)


def doom(work: Work, root: Living) -> None:
    """Mark those for destruction that were, once everybody has them attached."""
    for segment in work.snapshot.segments:
        if segment.mode & SHM_DEST:
            _remove(root, segment.shm_id)


def _fill(work: Work, root: Living, segment: Segment) -> None:
    at = root.arena.call(root.pid, "shmat", segment.shm_id, 0, 0)
    if at < 0:
        raise KernelError(
            "shmat failed", errno=-at, subject=f"System V segment {segment.shm_id}", remedy=REMEDY
        )
    work.contents.fill_attached(root.pid, segment.shm_id | SYSV_PAGES, at)
    root.arena.call(root.pid, "shmdt", at)


def _create_one(root: Living, segment: Segment, pages: int) -> None:
    arena, room = root.arena, root.arena.scratch
    subject = f"System V segment {segment.shm_id}, key {segment.key:#x}"
    if arena.call(root.pid, "shmctl", segment.shm_id, IPC_STAT, room) >= 0:
        there = parse(segment.shm_id, native.read_memory(root.pid, room, STAT_BYTES))
        if not segment.is_same(there):
            raise Refused("another segment has its id", subject=subject, remedy=REMEDY)
        return
    flags = segment.mode & 0o777 | IPC_CREAT | IPC_EXCL
    remedy = REMEDY
    if pages:
        flags |= SHM_HUGETLB | pages & ~MAP_HUGETLB
        remedy = HUGE_REMEDY
    got = -1
    _ask_for(root, segment.shm_id)
    for _ in range(MOST_TRIES):
        got = arena.call(root.pid, "shmget", segment.key, segment.size_bytes, flags, undo=(REMOVE,))
        if got < 0:
            raise KernelError("shmget failed", errno=-got, subject=subject, remedy=remedy)
        if got == segment.shm_id:
            _set_owner(root, segment, room)
            return
        _remove(root, got)
        if got > segment.shm_id:
            break
    raise Refused(f"the segment got id {got}", subject=subject, remedy=REMEDY)


def _remove(root: Living, shm_id: int) -> None:
    """Raises KernelError: one that stays would be nobody's."""
    result = root.arena.call(root.pid, "shmctl", shm_id, IPC_RMID, 0)
    if result < 0:
        raise KernelError(
            "shmctl(IPC_RMID) failed", errno=-result, subject=f"System V segment {shm_id}",
            remedy=REMEDY,
        )  # fmt: skip


def _ask_for(root: Living, shm_id: int) -> None:
    """Have the next segment made with this id, where we may."""
    with suppress(OSError):
        if os.readlink("/proc/self/ns/ipc") == os.readlink(f"/proc/{root.pid}/ns/ipc"):
            with open(NEXT_ID, "w", encoding="ascii") as file:
                file.write(str(shm_id))


def _set_owner(root: Living, segment: Segment, room: int) -> None:
    arena = root.arena
    if arena.call(root.pid, "shmctl", segment.shm_id, IPC_STAT, room) < 0:
        return
    raw = bytearray(native.read_memory(root.pid, room, 112))
    if struct.unpack_from("<II", raw, 4) == (segment.uid, segment.gid):
        return
    struct.pack_into("<II", raw, 4, segment.uid, segment.gid)
    native.write_memory(root.pid, room, bytes(raw))
    arena.call(root.pid, "shmctl", segment.shm_id, IPC_SET, room)


def take_semaphores(work: Work, root: Living) -> None:
    """Have the tasks hold the semaphores again that the kernel gave back when they ended."""
    if not work.snapshot.semaphores:
        return
    if not sysvipc.same_namespace(root.pid):
        work.warnings.append("semaphores of the old ipc namespace are not there")
        return
    tree = {task.pid: number for number, task in work.living.items()}
    ops, told = semaphores.plan(work.snapshot.semaphores, sysvipc.semaphore_sets(), tree)
    work.warnings += told
    for number, wanted in ops.items():
        task = work.living[number]
        task.arena.run(task.pid, Program("semaphores", wanted), task.image.subject)
