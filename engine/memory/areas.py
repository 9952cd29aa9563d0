# SPDX-License-Identifier: Apache-2.0
"""Areas of an address space (VMAs), as smaps tells them. Images: `areaimages.py`.

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
- Memory of reserved huge pages (`ht`) has KernelPageSize. Anonymous one shows as `/anon_hugepage
  (deleted)` and has an inode; when it is shared, it is to all but its name a memfd (MFD_HUGETLB).
  The file of one may be read, not written, and tells no holes (fs/hugetlbfs/inode.c; v6.18).
- Rings of a packet socket that are mapped (packet(7)) show as its link, `socket:[INODE]`, and have
  VmFlags `mm`. They are mapped as a whole, receiving and sending ones at once.
- MAP_GROWSDOWN must be given again, or the area is not marked `gd` and does not grow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
ANON_HUGE = "/anon_hugepage"
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE = 0x100, 0x2000, 0x4000
MAP_DROPPABLE = 0x8
MAP_HUGETLB, HUGE_SHIFT_AT, HUGE_SHIFT_BITS = 0x40000, 26, 63
O_RDONLY, O_RDWR, O_CLOEXEC = 0, 2, 0o2000000
AT_FDCWD = (1 << 64) - 100
MADV_BY_FLAG = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
TASK_SIZE = 0x7FFFFFFFF000


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
    PACKETS = "rings of a packet socket"
    VDSO = "vdso"
    VVAR = "vvar"
    VSYSCALL = "vsyscall"


THROUGH = (Backing.FILE_SHARED, Backing.MEMFD, Backing.SYSV)
"""What may have been mapped so that it cannot be written through, whatever mprotect asks."""
_LETTERS = tuple(
    "".join(c if prot >> i & 1 else "-" for i, c in enumerate("rwx")) for prot in range(8)
)
_SHARED = (
    Backing.SHARED, Backing.SYSV, Backing.MEMFD, Backing.FILE_SHARED, Backing.PACKETS,
)  # fmt: skip
WITH_ID = (Backing.SHARED, Backing.SYSV, Backing.MEMFD, Backing.URING)
SPECIAL = (Backing.VDSO, Backing.VVAR, Backing.VSYSCALL)
RINGS = (Backing.AIO, Backing.URING)
"""While they are restored: private memory that holds the content."""
RING_NAME = "anon_inode:[io_uring]"
SOCKET_NAME = "socket:["
SPECIAL_NAMES = ("[vdso]", "[vvar", "[vsyscall]")
EXCEPTED = (*SPECIAL_NAMES, RING_NAME, SOCKET_NAME)
"""Their flags do not forbid to take them."""

LIMITS = (
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
SPECIAL_FILE = LIMITS[-1]
_BY_CASE = {limit.case: limit for limit in LIMITS}
_FLAG_CASES = {
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
    huge_shift: int = 0
    """Of reserved huge pages: 21 for those of 2 MiB; 0 for usual pages."""
    advice: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Length of the range."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """Writes are seen by others."""
        return self.backing in _SHARED

    @property
    def is_plain(self) -> bool:
        """Private memory of its own, of usual pages."""
        return self.backing is Backing.ANON and not self.huge_shift

    @property
    def pages_id(self) -> int:
        """N of pagemap-shmem-N; ids of System V segments are no inode numbers."""
        return self.shared_id | (SYSV_PAGES if self.backing is Backing.SYSV else 0)

    @property
    def subject(self) -> str:
        """`7f00-7fff rw-p /lib/x.so`."""
        letters = _LETTERS[self.prot & 7] + ("s" if self.shared else "p")
        return f"{self.start:x}-{self.end:x} {letters} {self.path or self.backing.value}"

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
            "huge_shift",
        )
        return all(getattr(self, key) == getattr(other, key) for key in keys)


def collect(vmas: Sequence[Vma], subject: str) -> tuple[list[Area], list[Refused]]:
    """Every area of smaps, and what cannot be taken."""
    areas, refused = [], []
    for vma in vmas:
        try:
            area = _collect_one(*vma[:-1])
            areas.append(_of_huge_pages(area, vma) if "ht" in vma.vm_flags else area)
        except Refused as error:
            where = f"{subject}, {vma.start:x}-{vma.end:x} {vma.prot} {vma.name}".rstrip()
            error.subject = where
            refused.append(error)
    return areas, refused


@lru_cache(maxsize=KNOWN)
def _collect_one(*line: Any) -> Area:  # noqa: ANN401 - all of a Vma but the details
    vma = Vma(*line)
    case = _case(vma.vm_flags)
    if case is not None and not vma.name.startswith(EXCEPTED):
        raise refuse(case, "")
    backing = _backing(vma)
    named = backing in (Backing.FILE, Backing.FILE_SHARED)
    nameless = backing in (Backing.MEMFD, Backing.PACKETS) or (named and vma.deleted)
    droppable = "dp" in vma.vm_flags
    return Area(
        start=vma.start,
        end=vma.end,
        prot=_prot(vma.prot),
        backing=backing,
        offset=vma.offset if named or backing in (*WITH_ID, Backing.PACKETS) else 0,
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


def _of_huge_pages(area: Area, vma: Vma) -> Area:
    return replace(area, huge_shift=(vma.sizes_kb["KernelPageSize"] << 10).bit_length() - 1)


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
    if name == ANON_HUGE + DELETED:
        return Backing.MEMFD if shared else Backing.ANON
    if name.startswith("/SYSV") and name.endswith(DELETED):
        return Backing.SYSV  # the first one of a namespace has the inode 0
    if vma.inode == 0:
        return Backing.SHARED if shared else Backing.ANON
    if name.startswith(("/dev/zero (deleted)", "[anon_shmem:")):
        return Backing.SHARED
    if name.startswith(MEMFD_PREFIX):
        return Backing.MEMFD if shared else Backing.FILE
    if name.startswith(("anon_inode:", "/secretmem", "/dmabuf:", "[")):
        raise refuse(_BY_CASE["special-file"], "")
    return Backing.FILE_SHARED if shared else Backing.FILE


_BY_NAME = {
    "[vdso]": Backing.VDSO,
    "[vsyscall]": Backing.VSYSCALL,
    "[vvar": Backing.VVAR,
    "/[aio]": Backing.AIO,
    RING_NAME: Backing.URING,
    SOCKET_NAME: Backing.PACKETS,
}


def sharing_flags(area: Area) -> int:
    """MAP_SHARED, MAP_PRIVATE or MAP_DROPPABLE."""
    if area.droppable:
        return MAP_DROPPABLE
    return MAP_SHARED if area.shared else MAP_PRIVATE


def huge_flags(huge_shift: int) -> int:
    """MAP_HUGETLB (or MFD_HUGETLB, less that bit) and the size of the pages."""
    return MAP_HUGETLB | huge_shift << HUGE_SHIFT_AT if huge_shift else 0
