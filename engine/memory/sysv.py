# SPDX-License-Identifier: Apache-2.0
"""System V shared memory: what a segment is besides its pages.

Facts:
- An attached segment is an area named `/SYSVkkkkkkkk (deleted)` whose inode number is the
  segment's id (ipc/shm.c, newseg). Key, owner, mode and size are asked by an injected
  shmctl(IPC_STAT): struct shmid64_ds, 112 bytes; ipc64_perm: key, uid, gid, cuid, cgid, mode.
- A segment is attached as a whole; pieces are left by munmap, moved ones by mremap. Each area
  counts as an attachment. SHM_RDONLY shows in VmFlags, where `mw` is missing.
- A segment that is marked for destruction (SHM_DEST) goes with its last attachment; its key is
  IPC_PRIVATE from then on.
- A segment outlives its tasks, and ids begin anew with each boot: shm_ctime (its birth, or the last
  IPC_SET) tells whether one of the same id, key and size is the same.
- CRIU keeps segments only of ipc namespaces of the tree; so ours are in torpor.json, their
  pages in pagemap-shmem-ID like other shared memory.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import index

from torpor.engine.kind import ImageSink, ImageSource, Limit

IPC_STAT, IPC_SET, IPC_RMID = 2, 1, 0
IPC_CREAT, IPC_EXCL = 0o1000, 0o2000
STAT_BYTES = 112
SHM_DEST = 0o1000

LIMITS = (
    Limit(
        case="ipc-objects",
        what="System V semaphores or message queues in a container's ipc namespace",
        remedy="remove those that nobody needs (ipcrm), or use POSIX ones",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment that some task of the tree has attached."""

    shm_id: int
    key: int
    uid: int
    gid: int
    mode: int
    size_bytes: int
    changed_s: int = 0
    """Its shm_ctime; 0 when that is not known."""

    def is_same(self, other: "Segment") -> bool:
        """Whether what has its id now is itself."""
        times = {self.changed_s, other.changed_s} - {0}
        return (self.key, self.size_bytes, len(times) < 2) == (other.key, other.size_bytes, True)


def parse(shm_id: int, raw: bytes) -> Segment:
    """Struct shmid64_ds as IPC_STAT fills it in."""
    key, uid, gid, _, _, mode = struct.unpack_from("<iIIIII", raw)
    size, _, _, changed_s = struct.unpack_from("<4Q", raw, 48)
    return Segment(
        shm_id=shm_id, key=key, uid=uid, gid=gid, mode=mode, size_bytes=size, changed_s=changed_s
    )


def encode(segments: Iterable[Segment], images: ImageSink) -> None:
    """Keep the segments in our own file."""
    kept = [asdict(s) for s in sorted(segments, key=lambda s: s.shm_id)]
    if kept:
        images.extra("sysv", "segments", kept)


def decode(images: ImageSource) -> Sequence[Segment]:
    """Read them back."""
    return [
        Segment(**{k: index(v) for k, v in one.items()})
        for one in images.extra("sysv", "segments") or ()
    ]
