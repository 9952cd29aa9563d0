# SPDX-License-Identifier: Apache-2.0
"""Areas in images: vma_entry, and the files that areas map without a path.

Facts (of images of CRIU 4.2): ``status`` says what an area is; a memfd's area has the id of a
memfd_file_entry as shmid, and so has memory of huge pages that is shared (a memfd called
/anon_hugepage) and shared anonymous memory (one called /dev/zero).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torpor.engine.memory.areas import (
    HUGE_SHIFT_AT,
    HUGE_SHIFT_BITS,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_SHARED,
    MEMFD_PREFIX,
    O_RDWR,
    PAGE,
    RINGS,
    SPECIAL,
    THROUGH,
    Area,
    Backing,
    huge_flags,
    sharing_flags,
)

REGULAR, STACK, VSYSCALL, VDSO, HEAP = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SYSVIPC, SOCKET, VVAR, AIORING, MEMFD = 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14
USUAL_HUGE_SHIFT = 21
BY_FILE = (Backing.FILE, Backing.FILE_SHARED, Backing.MEMFD, Backing.PACKETS)
"""Areas of a file that has a number in files.img."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemfdInode:
    """What images say of a memfd: ``shared_id`` is N of pagemap-shmem-N."""

    name: bytes
    shared_id: int

    @property
    def path(self) -> str:
        """As maps has it, but for ` (deleted)`."""
        return MEMFD_PREFIX + self.name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFiles:
    """What images say of files, by their ids: paths, memfds, and files without a name."""

    paths: Mapping[int, str] = field(default_factory=dict)
    memfds: Mapping[int, MemfdInode] = field(default_factory=dict)
    nameless: Collection[int] = ()


def data_joined(found: Sequence[Area]) -> list[Area]:
    """The data areas of the vDSO as one, which is how CRIU knows them (Linux 6.13 has two)."""
    out: list[Area] = []
    for area in found:
        last = out[-1] if out else None
        if last and last.backing is area.backing is Backing.VVAR and last.end == area.start:
            out[-1] = replace(last, end=area.end)
        else:
            out.append(area)
    return out


_STATUS = {
    Backing.ANON: REGULAR | ANON_PRIVATE,
    Backing.SHARED: REGULAR | ANON_SHARED,
    Backing.SYSV: REGULAR | SYSVIPC,
    Backing.MEMFD: REGULAR | FILE_SHARED | MEMFD,
    Backing.FILE: REGULAR | FILE_PRIVATE,
    Backing.FILE_SHARED: REGULAR | FILE_SHARED,
    Backing.AIO: AIORING,
    Backing.URING: AIORING,
    Backing.PACKETS: REGULAR | SOCKET,
    Backing.VDSO: REGULAR | VDSO | ANON_PRIVATE,
    Backing.VVAR: REGULAR | VVAR | ANON_PRIVATE,
    Backing.VSYSCALL: VSYSCALL | ANON_PRIVATE,
}


def encode(area: Area, entry: Any, *, file_id: int, heap: tuple[int, int], stack: int) -> None:  # noqa: ANN401
    """Fill a vma_entry; ``file_id`` is the id in files.img of a file with a path."""
    entry.start, entry.end, entry.pgoff = area.start, area.end, area.offset
    named = area.backing in BY_FILE
    entry.shmid = (area.file_id or file_id) if named else area.shared_id
    entry.prot = area.prot
    flags = sharing_flags(area)
    if area.backing in (Backing.ANON, Backing.SHARED) or area.backing in SPECIAL:
        flags |= MAP_ANONYMOUS
    if area.grows_down:
        flags |= MAP_GROWSDOWN
    if area.locked:
        flags |= MAP_LOCKED
    if area.noreserve:
        flags |= MAP_NORESERVE
    entry.flags = flags | huge_flags(area.huge_shift)
    status = _STATUS[area.backing]
    if area.path.startswith(MEMFD_PREFIX) and area.file_id:
        status |= MEMFD
    if area.backing is Backing.ANON:
        status |= HEAP if heap[0] <= area.start and area.end <= (heap[1] + PAGE - 1) & -PAGE else 0
        status |= STACK if area.start <= stack < area.end else 0
    entry.status = status
    entry.fd = -1
    if area.backing in RINGS:  # here it is private, with its content beside it
        entry.flags, entry.fdflags = MAP_SHARED, O_RDWR
    if area.advice:
        entry.madv = sum(1 << number for number in area.advice)
    if area.writable_file or area.backing is Backing.PACKETS:
        entry.fdflags = O_RDWR


def decode(entry: Any, files: MappedFiles) -> Area:  # noqa: ANN401
    """Read a vma_entry.

    CRIU 4 says of shared anonymous memory that it is a memfd called /dev/zero.
    """
    backing = _backing(entry.status)
    if backing is Backing.AIO and entry.shmid:  # CRIU has no io_uring
        backing = Backing.URING
    is_anonymous = backing in (Backing.ANON, Backing.AIO, *SPECIAL)
    path, shared_id, file_id = "", 0 if is_anonymous else entry.shmid, 0
    if backing is Backing.PACKETS:
        shared_id, file_id = 0, entry.shmid
    inode = files.memfds.get(entry.shmid) if entry.status & MEMFD else None
    if backing in (Backing.FILE, Backing.FILE_SHARED):
        path, shared_id = inode.path if inode else files.paths.get(entry.shmid, ""), 0
        file_id = entry.shmid if inode or entry.shmid in files.nameless else 0
    elif inode and inode.name.startswith(b"/dev/zero"):
        backing, shared_id = Backing.SHARED, inode.shared_id
    elif inode:
        shared_id, file_id = inode.shared_id, entry.shmid
    return Area(
        start=entry.start,
        end=entry.end,
        prot=entry.prot,
        backing=backing,
        offset=0 if is_anonymous else entry.pgoff,
        path=path,
        shared_id=shared_id,
        file_id=file_id,
        grows_down=bool(entry.flags & MAP_GROWSDOWN),
        locked=bool(entry.flags & MAP_LOCKED),
        noreserve=bool(entry.flags & MAP_NORESERVE),
        writable_file=backing in THROUGH and entry.fdflags & 3 == O_RDWR,
        droppable=bool(entry.flags & MAP_DROPPABLE) and backing is Backing.ANON,
        huge_shift=_huge_shift(entry.flags) if backing not in RINGS else 0,
        advice=tuple(n for n in range(64) if entry.madv >> n & 1) if entry.madv else (),
    )


@lru_cache(maxsize=64)
def _backing(status: int) -> Backing:
    for wanted, bit in (
        (Backing.VSYSCALL, VSYSCALL),
        (Backing.VDSO, VDSO),
        (Backing.VVAR, VVAR),
        (Backing.AIO, AIORING),
        (Backing.SYSV, SYSVIPC),
        (Backing.PACKETS, SOCKET),
        (Backing.FILE, FILE_PRIVATE),
        (Backing.MEMFD, MEMFD),
        (Backing.FILE_SHARED, FILE_SHARED),
        (Backing.SHARED, ANON_SHARED),
    ):
        if status & bit:
            return wanted
    return Backing.ANON


def _huge_shift(flags: int) -> int:
    if not flags & MAP_HUGETLB:
        return 0
    return flags >> HUGE_SHIFT_AT & HUGE_SHIFT_BITS or USUAL_HUGE_SHIFT
