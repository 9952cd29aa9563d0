# SPDX-License-Identifier: Apache-2.0
"""Areas of an address space (VMAs): from smaps to vma_entry to mmap calls.

Facts:
- smaps has everything: range, protection, offset, device, inode, name and VmFlags
  (proc_pid_smaps(5)): `gd` grows down, `lo` locked, `dc` DONTFORK, `wf` WIPEONFORK, `dd`
  DONTDUMP, `mg` MERGEABLE, `hg`/`nh` huge page advice, `nr` NORESERVE, `ht` hugetlb, `um`/`uw`
  userfaultfd, `sl` sealed, `ss` shadow stack, `pf` raw pages of a device.
- Shared anonymous memory shows as `/dev/zero (deleted)`; its inode number is the same in
  every task that maps it. A private mapping of /dev/zero shows that path. System V segments
  show as `/SYSVxxxxxxxx (deleted)` and their inode number is the segment's id (ipc/shm.c, newseg).
- mmap writes no mark of how an area came to be: [heap] is what lies between start_brk and
  brk, [stack] what holds start_stack.
- A droppable area (`dp`, MAP_DROPPABLE, Linux 6.11: the state of getrandom in the vDSO) may
  lose its pages at any time; it comes back without any, and its flags come with its type.
- What has no path (shared anonymous memory, memfds, deleted files) can be opened by the link in
  /proc/PID/map_files, with CAP_CHECKPOINT_RESTORE; so a dump treats such a file like one that a
  descriptor leads to (``file_id``), and a restore makes it once and has every task map it.
- MAP_GROWSDOWN must be given again, or the area is not marked `gd` and does not grow.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from torpor.engine.errors import Refused
from torpor.engine.kernel.maps import DELETED, KNOWN, Vma
from torpor.engine.kind import Limit, refuse

PAGE = 4096
PENDING = -1
SYSV_PAGES = 1 << 40
MEMFD_PREFIX = "/memfd:"
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE = 0x100, 0x2000, 0x4000
MAP_DROPPABLE = 0x8
O_RDONLY, O_RDWR, O_CLOEXEC = 0, 2, 0o2000000
AT_FDCWD = (1 << 64) - 100
MADV_BY_FLAG = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
TASK_SIZE = 0x7FFFFFFFF000
# CRIU's vma_entry.status
REGULAR, STACK, VSYSCALL, VDSO, HEAP = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SYSVIPC, VVAR, AIORING, MEMFD = 1 << 10, 1 << 12, 1 << 13, 1 << 14


class Backing(Enum):
    """What an area's pages come from."""

    ANON = "anonymous"
    SHARED = "shared anonymous"
    SYSV = "System V shared memory"
    MEMFD = "memfd"
    FILE = "private file"
    FILE_SHARED = "shared file"
    AIO = "ring of events"
    URING = "io_uring"
    VDSO = "vdso"
    VVAR = "vvar"
    VSYSCALL = "vsyscall"


THROUGH = (Backing.FILE_SHARED, Backing.MEMFD, Backing.SYSV)
"""What may have been mapped so that it cannot be written through, whatever mprotect asks."""
WITH_ID = (Backing.SHARED, Backing.SYSV, Backing.MEMFD, Backing.URING)
SPECIAL = (Backing.VDSO, Backing.VVAR, Backing.VSYSCALL)
RINGS = (Backing.AIO, Backing.URING)
"""While they are restored: private memory that holds the content."""
RING_NAME = "anon_inode:[io_uring]"
SPECIAL_NAMES = ("[vdso]", "[vvar", "[vsyscall]")

LIMITS = (
    Limit(
        case="hugetlb",
        what="memory of reserved huge pages (MAP_HUGETLB)",
        remedy="use transparent huge pages instead",
    ),
    Limit(
        case="userfaultfd",
        what="memory that is registered with userfaultfd",
        remedy="close the userfaultfd before the checkpoint; a lazy restore has to be complete",
    ),
    Limit(case="shadow-stack", what="a shadow stack", remedy="run without x86 shadow stacks"),
    Limit(case="device", what="memory of a device", remedy="unmap it before the checkpoint"),
    Limit(
        case="special-file",
        what="a mapping of a kernel object (perf, socket, secret memory)",
        remedy="close it before the checkpoint",
    ),
)
_BY_CASE = {limit.case: limit for limit in LIMITS}
_FLAG_CASES = {
    "ht": "hugetlb",
    "um": "userfaultfd",
    "uw": "userfaultfd",
    "ui": "userfaultfd",
    "ss": "shadow-stack",
    "pf": "device",
    "mm": "device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """One area. ``offset`` in bytes; ``shared_id`` names shared memory without a path.

    ``file_id`` is the description that it maps when no path leads to its file: a memfd, a deleted
    file; PENDING while that is not numbered yet.
    """

    start: int
    end: int
    prot: int
    backing: Backing
    offset: int = 0
    path: str = ""
    shared_id: int = 0
    file_id: int = 0
    grows_down: bool = False
    locked: bool = False
    noreserve: bool = False
    writable_file: bool = False
    droppable: bool = False
    advice: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Length of the range."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """Writes are seen by others."""
        return self.backing in (Backing.SHARED, Backing.SYSV, Backing.MEMFD, Backing.FILE_SHARED)

    @property
    def pages_id(self) -> int:
        """N of pagemap-shmem-N; ids of System V segments are no inode numbers."""
        return self.shared_id | (SYSV_PAGES if self.backing is Backing.SYSV else 0)

    @property
    def subject(self) -> str:
        """`7f00-7fff rw-p /lib/x.so`."""
        letters = "".join(c if self.prot >> i & 1 else "-" for i, c in enumerate("rwx"))
        name = self.path or self.backing.value
        return f"{self.start:x}-{self.end:x} {letters}{'s' if self.shared else 'p'} {name}"

    def same_mapping(self, other: "Area") -> bool:
        """Whether a fork's copy of the one can stand for the other."""
        keys = (
            "start",
            "end",
            "backing",
            "offset",
            "path",
            "shared_id",
            "file_id",
            "noreserve",
            "grows_down",
            "writable_file",
            "droppable",
        )
        return all(getattr(self, key) == getattr(other, key) for key in keys)


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


def collect(vmas: Sequence[Vma], subject: str) -> tuple[list[Area], list[Refused]]:
    """Every area of smaps, and what cannot be taken."""
    areas, refused = [], []
    for vma in vmas:
        try:
            areas.append(_collect_one(*vma[:-1]))
        except Refused as error:
            where = f"{subject}, {vma.start:x}-{vma.end:x} {vma.prot} {vma.name}".rstrip()
            error.subject = where
            refused.append(error)
    return areas, refused


@lru_cache(maxsize=KNOWN)
def _collect_one(*line: Any) -> Area:  # noqa: ANN401 - all of a Vma but the details
    vma = Vma(*line)
    case = _case(vma.vm_flags)
    if case is not None and not vma.name.startswith((*SPECIAL_NAMES, RING_NAME)):
        raise refuse(case, "")
    backing = _backing(vma)
    named = backing in (Backing.FILE, Backing.FILE_SHARED)
    nameless = backing is Backing.MEMFD or (named and vma.deleted)
    droppable = "dp" in vma.vm_flags
    return Area(
        start=vma.start,
        end=vma.end,
        prot=_prot(vma.prot),
        backing=backing,
        offset=vma.offset if named or backing in WITH_ID else 0,
        path=vma.name.removesuffix(DELETED) if named else "",
        file_id=PENDING if nameless else 0,
        shared_id=vma.inode if backing in WITH_ID else 0,
        grows_down="gd" in vma.vm_flags,
        locked="lo" in vma.vm_flags,
        noreserve="nr" in vma.vm_flags and not droppable,
        writable_file=backing in THROUGH and "mw" in vma.vm_flags,
        droppable=droppable,
        advice=() if droppable else _advice(vma.vm_flags),
    )


@cache
def _case(flags: frozenset[str]) -> Limit | None:
    """What forbids to take areas with these flags; there are few different sets of them."""
    return next((_BY_CASE[case] for flag, case in _FLAG_CASES.items() if flag in flags), None)


@cache
def _advice(flags: frozenset[str]) -> tuple[int, ...]:
    return tuple(number for flag, number in MADV_BY_FLAG.items() if flag in flags)


@cache
def _prot(letters: str) -> int:
    return sum(1 << i for i, c in enumerate("rwx") if letters[i] == c)


def _backing(vma: Vma) -> Backing:
    name, shared = vma.name, vma.prot[3] == "s"
    for prefix, special in _BY_NAME.items():
        if name.startswith(prefix):
            return special
    if vma.inode == 0:
        return Backing.SHARED if shared else Backing.ANON
    if name.startswith(("/dev/zero (deleted)", "[anon_shmem:")):
        return Backing.SHARED
    if name.startswith("/SYSV") and name.endswith(" (deleted)"):
        return Backing.SYSV
    if name.startswith(MEMFD_PREFIX):
        return Backing.MEMFD if shared else Backing.FILE
    if name.startswith(("anon_inode:", "socket:", "/secretmem", "/dmabuf:", "[")):
        raise refuse(_BY_CASE["special-file"], "")
    return Backing.FILE_SHARED if shared else Backing.FILE


_BY_NAME = {
    "[vdso]": Backing.VDSO,
    "[vsyscall]": Backing.VSYSCALL,
    "[vvar": Backing.VVAR,
    "/[aio]": Backing.AIO,
    RING_NAME: Backing.URING,
}


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
    Backing.VDSO: REGULAR | VDSO | ANON_PRIVATE,
    Backing.VVAR: REGULAR | VVAR | ANON_PRIVATE,
    Backing.VSYSCALL: VSYSCALL | ANON_PRIVATE,
}


def encode(area: Area, entry: Any, *, file_id: int, heap: tuple[int, int], stack: int) -> None:  # noqa: ANN401
    """Fill a vma_entry; ``file_id`` is the id in files.img of a file with a path."""
    entry.start, entry.end, entry.pgoff = area.start, area.end, area.offset
    named = area.backing in (Backing.FILE, Backing.FILE_SHARED, Backing.MEMFD)
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
    entry.flags = flags
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
    if area.writable_file:
        entry.fdflags = O_RDWR


def decode(entry: Any, files: MappedFiles) -> Area:  # noqa: ANN401
    """Read a vma_entry.

    CRIU 4 says of shared anonymous memory that it is a memfd called /dev/zero.
    """
    backing = Backing.ANON
    for wanted, bit in (
        (Backing.VSYSCALL, VSYSCALL),
        (Backing.VDSO, VDSO),
        (Backing.VVAR, VVAR),
        (Backing.AIO, AIORING),
        (Backing.SYSV, SYSVIPC),
        (Backing.FILE, FILE_PRIVATE),
        (Backing.MEMFD, MEMFD),
        (Backing.FILE_SHARED, FILE_SHARED),
        (Backing.SHARED, ANON_SHARED),
    ):
        if entry.status & bit:
            backing = wanted
            break
    if backing is Backing.AIO and entry.shmid:  # CRIU has no io_uring
        backing = Backing.URING
    is_anonymous = backing in (Backing.ANON, Backing.AIO, *SPECIAL)
    path, shared_id, file_id = "", 0 if is_anonymous else entry.shmid, 0
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
        advice=tuple(n for n in range(64) if entry.madv >> n & 1),
    )


def sharing_flags(area: Area) -> int:
    """MAP_SHARED, MAP_PRIVATE or MAP_DROPPABLE."""
    if area.droppable:
        return MAP_DROPPABLE
    return MAP_SHARED if area.shared else MAP_PRIVATE
