# SPDX-License-Identifier: Apache-2.0
"""File locks: flock(2), fcntl(2) F_SETLK and F_OFD_SETLK.

Facts (probed on v6.18):
- fdinfo has a line for each: `lock: 1: FLOCK  ADVISORY  WRITE 27268 fe:00:10010766 0 EOF`.
  FLOCK and OFDLCK belong to the description, POSIX to the table: those are shown at every
  descriptor of the inode.
- A waiter (`->`) is a task in a system call, which starts again and waits anew.
- Leases and delegations are promises of the file server or of other opens: refused.
- Locks are taken last, by a task that has the descriptor at its final number; closing any
  descriptor of the inode would drop POSIX locks again.

Source: fs/locks.c, lock_get_status (v6.18).
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Refused
from torpor.engine.files.common import F, O, bad_image
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    FdView,
    FileId,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    refuse,
)
from torpor.engine.program.ops import Data, Op

POSIX, FLOCK, OFD = 1, 2, 1024
READ, WRITE = 0, 1
LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4
NAMES = {"POSIX": POSIX, "FLOCK": FLOCK, "OFDLCK": OFD}
STRUCT_FLOCK = struct.Struct("<hhxxxxqqixxxx")

LEASE = Limit(
    case="lease",
    what="there is a lease or delegation on it (F_SETLEASE)",
    remedy="give it back with fcntl(fd, F_SETLEASE, F_UNLCK) before the checkpoint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """``flag`` POSIX, FLOCK or OFD; ``kind`` READ or WRITE; ``length`` 0 is to the end."""

    flag: int
    kind: int
    task: int
    fd: int
    start: int = 0
    length: int = 0


def collect(
    task: int, views: Sequence[FdView], ids: Mapping[int, FileId]
) -> tuple[list[Lock], list[Refused]]:
    """Locks of a table; ``ids`` tells the description at each number."""
    locks: list[Lock] = []
    refusals: list[Refused] = []
    seen: set[object] = set()
    for view in views:
        for line in view.info:
            if not line.startswith("lock:"):
                continue
            words = line.split()[2:]
            if words[0] == "->":
                continue
            if words[0] not in NAMES:
                refusals.append(refuse(LEASE, view.subject, words[0]))
                continue
            lock = _parse(words, task, view.fd)
            is_table = lock.flag == POSIX
            where = (view.st_dev, view.st_ino) if is_table else ids[view.fd]
            key = (lock.flag, where, lock.start, lock.length, lock.kind)
            if key in seen or (is_table and not _may(view, lock.kind)):
                continue
            seen.add(key)
            locks.append(lock)
    return locks, refusals


def encode(locks: Iterable[Lock], images: ImageSink) -> None:
    """filelocks.img."""
    for lock in locks:
        images.add(
            "filelocks",
            pb.file_lock_entry(flag=lock.flag, type=lock.kind, pid=lock.task, fd=lock.fd,
                               start=lock.start, len=lock.length),
        )  # fmt: skip


def decode(images: ImageSource) -> list[Lock]:
    """Read filelocks.img. Raises BadImage."""
    locks = []
    for entry, _ in images.entries("filelocks"):
        if entry.flag not in (POSIX, FLOCK, OFD) or entry.type not in (READ, WRITE):
            bad_image(f"no lock that torpor knows: flag {entry.flag}, type {entry.type}",
                      "filelocks.img")  # fmt: skip
        locks.append(Lock(flag=entry.flag, kind=entry.type, task=entry.pid, fd=entry.fd,
                          start=entry.start, length=entry.len))  # fmt: skip
    return locks


def late(locks: Iterable[Lock]) -> list[LateOp]:
    """Take them, each from its task. A description's lock taken twice is taken once."""
    return [LateOp(task=lock.task, op=_operation(lock)) for lock in locks]


def _operation(lock: Lock) -> Op:
    remedy = "another task holds the lock; end it before the restore"
    what = f"fd {lock.fd}"
    if lock.flag == FLOCK:
        how = (LOCK_EX if lock.kind == WRITE else LOCK_SH) | LOCK_NB
        return Op(call="flock", args=(lock.fd, how), subject=what, remedy=remedy)
    command = F.SETLK if lock.flag == POSIX else F.OFD_SETLK
    end = lock.start + lock.length - 1 if lock.length else "end"
    asked = Data(
        STRUCT_FLOCK.pack(lock.kind, 0, lock.start, lock.length, 0),
        text=f"{'write' if lock.kind else 'read'} {lock.start}..{end}",
    )
    return Op(call="fcntl", args=(lock.fd, command, asked), subject=what, remedy=remedy)


def _parse(words: Sequence[str], task: int, fd: int) -> Lock:
    """`FLOCK ADVISORY WRITE 27268 fe:00:10010766 0 EOF`."""
    start, end = int(words[5]), words[6]
    return Lock(
        flag=NAMES[words[0]], kind=WRITE if words[2] == "WRITE" else READ, task=task, fd=fd,
        start=start, length=0 if end == "EOF" else int(end) - start + 1,
    )  # fmt: skip


def _may(view: FdView, kind: int) -> bool:
    """Whether a lock of the kind can be taken through this descriptor."""
    access = view.flags & O.ACCMODE
    return access in ((O.WRONLY, O.RDWR) if kind == WRITE else (0, O.RDWR))
