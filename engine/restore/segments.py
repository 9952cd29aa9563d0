# SPDX-License-Identifier: Apache-2.0
"""System V shared memory segments, made by the root before anything attaches them.

Facts:
- Ids are given in order (ipc/util.c, ipc_addid); in a fresh namespace the same requests give
  the same ids. Another id cannot be asked for without CAP_CHECKPOINT_RESTORE in the ipc
  namespace's user namespace, so a different one is an error.
- A segment marked for destruction (SHM_DEST) lives until its last detach.
"""

import struct

from torpor.engine.errors import KernelError, Refused
from torpor.engine.kind import ImageSource
from torpor.engine.memory.sysv import IPC_CREAT, IPC_RMID, IPC_SET, IPC_STAT, Segment, decode
from torpor.engine.restore.spawn import Living

REMEDY = "restore in a fresh pod or ipc namespace"


def create(root: Living, source: ImageSource) -> None:
    """Make every segment with its old id, in the order of the ids."""
    for segment in sorted(decode(source), key=lambda s: s.shm_id):
        _create_one(root, segment)


def _create_one(root: Living, segment: Segment) -> None:
    arena, room = root.arena, root.arena.scratch
    if arena.call(root.pid, "shmctl", segment.shm_id, IPC_STAT, room) >= 0:
        return
    got = arena.call(
        root.pid, "shmget", segment.key, segment.size_bytes, segment.mode & 0o777 | IPC_CREAT
    )
    subject = f"System V segment {segment.shm_id}, key {segment.key:#x}"
    if got < 0:
        raise KernelError("shmget failed", errno=-got, subject=subject, remedy=REMEDY)
    if got != segment.shm_id:
        arena.call(root.pid, "shmctl", got, IPC_RMID, 0)
        raise Refused(f"the segment got id {got}", subject=subject, remedy=REMEDY)
    _set_owner(root, segment, room)


def _set_owner(root: Living, segment: Segment, room: int) -> None:
    from torpor.engine import native

    arena = root.arena
    if arena.call(root.pid, "shmctl", segment.shm_id, IPC_STAT, room) < 0:
        return
    raw = bytearray(native.read_memory(root.pid, room, 112))
    if struct.unpack_from("<II", raw, 4) == (segment.uid, segment.gid):
        return
    struct.pack_into("<II", raw, 4, segment.uid, segment.gid)
    native.write_memory(root.pid, room, bytes(raw))
    arena.call(root.pid, "shmctl", segment.shm_id, IPC_SET, room)
