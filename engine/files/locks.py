# SPDX-License-Identifier: Apache-2.0
"""File locks: flock(2), fcntl(2) F_SETLK and F_OFD_SETLK, and leases (F_SETLEASE).

Facts (probed on v6.18):
- fdinfo has a line for each: `lock: 1: FLOCK  ADVISORY  WRITE 27268 fe:00:10010766 0 EOF`.
  FLOCK and OFDLCK belong to the description, POSIX to the table: those are shown at every
  descriptor of the inode.
- The pid in it is that of who took the lock. Of a description that others have as well it is taken
  again by the same task, unless that has let go of it or has ended.
- A waiter (`->`) is a task in a system call, which starts again and waits anew.
- A lease is of a description: `lock: 1: LEASE  ACTIVE    WRITE ...`. BREAKING in place of ACTIVE
  says that somebody waits in open(2), and the type is then what it is to become: READ or UNLCK. So
  a lease that is broken is made anew and broken again, by an open with O_NONBLOCK; with nobody as
  its owner that sends no signal, for the program has had it. F_SETLEASE makes the caller the
  owner when there is none. The time that is left for it (fs.lease-break-time) starts anew.
- Delegations are promises of a file server: refused.
- Locks are taken last, by a task that has the descriptor at its final number; closing any
  descriptor of the inode would drop POSIX locks again.
- CRIU has leases with flag 8, and 4 added to the type of one that is being broken.

Source: fs/locks.c, lock_get_status (v6.18).
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.errors import Refused
from torpor.engine.files.common import AT_FDCWD, F, O, bad_image
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
from torpor.engine.program.ops import Data, Expect, Op, Slot

POSIX, FLOCK, OFD, LEASE = 1, 2, 4, 8
READ, WRITE, NONE = 0, 1, 2
BREAKING = 4
LEASE_KINDS = (READ, WRITE, READ | BREAKING, NONE | BREAKING)
LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4
NAMES = {"POSIX": POSIX, "FLOCK": FLOCK, "OFDLCK": OFD, "LEASE": LEASE}
TYPES = {"READ": READ, "WRITE": WRITE, "UNLCK": NONE}
STRUCT_FLOCK = struct.Struct("<hhxxxxqqixxxx")

DELEGATION = Limit(
    case="delegation",
    what="there is a delegation on it, a promise of a file server",
    remedy="stop the file server before the checkpoint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """``flag`` POSIX, FLOCK, LEASE or OFD; ``kind`` READ or WRITE; ``length`` 0 is to the end.

    The kind of a lease that is being broken is what it becomes, with BREAKING added.
    """

    flag: int
    kind: int
    task: int
    fd: int
    start: int = 0
    length: int = 0
    by: int = field(default=0, compare=False)
    """Who has taken it, as seen from here; not in images."""


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
                refusals.append(refuse(DELEGATION, view.subject, words[0]))
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


def of_takers(
    locks: Sequence[Lock], ids: Callable[[Lock], FileId], owners: Mapping[int, int]
) -> list[Lock]:
    """Without those of holders of a description that somebody else of them has locked.

    ``owners``: task as seen from here → the one that stands for its table.
    """
    taken = {_shared(lock, ids): lock.task for lock in locks if owners.get(lock.by) == lock.task}
    return [one for one in locks if taken.get(_shared(one, ids), one.task) == one.task]


def _shared(lock: Lock, ids: Callable[[Lock], FileId]) -> object:
    """What is the same for all holders of a lock; one of fcntl(2) has none but its task."""
    return (lock.flag, ids(lock)) if lock.flag in (FLOCK, LEASE) else id(lock)


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
        kinds = LEASE_KINDS if entry.flag == LEASE else (READ, WRITE)
        if entry.flag not in NAMES.values() or entry.type not in kinds:
            bad_image(f"no lock that torpor knows: flag {entry.flag}, type {entry.type}",
                      "filelocks.img")  # fmt: skip
        locks.append(Lock(flag=entry.flag, kind=entry.type, task=entry.pid, fd=entry.fd,
                          start=entry.start, length=entry.len))  # fmt: skip
    return locks


def late(locks: Iterable[Lock]) -> list[LateOp]:
    """Take them, each from its task. A description's lock taken twice is taken once."""
    return [LateOp(task=lock.task, op=op) for lock in locks for op in _operations(lock)]


def _operations(lock: Lock) -> Sequence[Op]:
    return _lease(lock) if lock.flag == LEASE else [_operation(lock)]


def _lease(lock: Lock) -> list[Op]:
    what = f"fd {lock.fd}"
    remedy = "nobody else may have the file open; a lease of another's file needs CAP_LEASE"
    # What is to be shared was exclusive; what is to go was either, and one of them can be had.
    taken = {READ | BREAKING: WRITE, NONE | BREAKING: WRITE}.get(lock.kind, lock.kind)
    ops = []
    if lock.kind == NONE | BREAKING:
        ops.append(Op(call="fcntl", args=(lock.fd, F.SETLEASE, READ), subject=what, note="lease",
                      expect=Expect.ANY))  # fmt: skip
    ops.append(
        Op(call="fcntl", args=(lock.fd, F.SETLEASE, taken), subject=what, note="lease",
           remedy=remedy, expect=Expect.ANY if ops else Expect.OK)
    )  # fmt: skip
    if lock.kind & BREAKING:
        opened = Slot(f"lease{lock.fd}")
        access = 0 if lock.kind == READ | BREAKING else int(O.WRONLY)
        again = Data.path(f"/proc/self/fd/{lock.fd}")
        ops += [
            Op(call="fcntl", args=(lock.fd, F.SETOWN, 0), subject=what),
            Op(call="openat", args=(AT_FDCWD, again, access | O.NONBLOCK, 0), subject=what,
               note="breaks the lease", expect=Expect.ANY, yields=opened),
            Op(call="close", args=(opened,), subject=what, expect=Expect.ANY),
        ]  # fmt: skip
    return ops


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
    breaking = BREAKING if words[1] == "BREAKING" else 0
    return Lock(
        flag=NAMES[words[0]], kind=TYPES[words[2]] | breaking, task=task, fd=fd,
        start=start, length=0 if end == "EOF" else int(end) - start + 1, by=int(words[3]),
    )  # fmt: skip


def _may(view: FdView, kind: int) -> bool:
    """Whether a lock of the kind can be taken through this descriptor."""
    access = view.flags & O.ACCMODE
    return access in ((O.WRONLY, O.RDWR) if kind == WRITE else (0, O.RDWR))
