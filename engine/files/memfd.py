# SPDX-License-Identifier: Apache-2.0
"""memfd_create(2): memory with a descriptor.

Facts (probed on v6.18):
- The link is `/memfd:NAME (deleted)`, st_nlink 0; descriptions with the same inode are of the same
  memory. One may be opened again by /proc/PID/fd/N with other flags.
- Seals by F_GET_SEALS; without MFD_ALLOW_SEALING there is F_SEAL_SEAL from the start. All are added
  at once, after the content. F_SEAL_WRITE cannot be added while somebody could write through
  a mapping, and nobody can map for writing afterwards: so it is added before anything is mapped;
  F_SEAL_FUTURE_WRITE lets old mappings be, so it is added after all are there.
- The mode is 0777, or 0666 with MFD_NOEXEC_SEAL.
- The content is kept as memory (pagemap-shmem-INODE), whether it is mapped or not; the restore
  writes it through a descriptor of its own before anything is mapped, and adds the seals.
- One of huge pages (MFD_HUGETLB) is of hugetlbfs, whose block size is that of its pages. It can be
  read but not written, tells no holes, and a read through a mapping would take a page for a
  hole; so it is read from the file, and written through a mapping. Shared anonymous memory of
  huge pages is the same by another name.
- What cannot be set back: the inode number.

Source: mm/memfd.c, memfd_add_seals (v6.18).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    F,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    late_owners,
    read_owner,
    subject,
)
from torpor.engine.files.ghost import DELETED
from torpor.engine.files.magics import HUGETLBFS_MAGIC
from torpor.engine.files.regular import is_memfd
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
)
from torpor.engine.program.ops import Data, Expect, Op, Slot, move, place

PREFIX = "/memfd:"
MFD_ALLOW_SEALING, MFD_HUGETLB = 2, 4
HUGE_SHIFT_AT, USUAL_HUGE_SHIFT = 26, 21
KNOWN_SEALS = 0x3F
FUTURE_WRITE = 0x10
USUAL_MODE = 0o777

LIMITS = (OWNER_OUTSIDE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memfd:
    """One description. ``inode_id`` tells memfds apart, and is N of pagemap-shmem-N."""

    inode_id: int
    name: str
    flags: int
    pos: int
    size: int
    seals: int
    mode: int
    uid: int
    gid: int
    owner: Owner = NOBODY
    huge_shift: int = 0
    """Of reserved huge pages: 21 for those of 2 MiB; 0 for usual pages."""


class MemfdKind(Base[Memfd]):
    """Memory of memfd_create(2)."""

    name = "memfd"
    types: Sequence[str] = ("MEMFD",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return is_memfd(view) and not view.flags & O.PATH

    def collect(self, view: FdView, context: DumpContext) -> Memfd:
        """Read attributes, and what of the content no mapping shows, once for each memfd."""
        is_huge = view.fs_magic == HUGETLBFS_MAGIC
        if view.st_ino not in context.loose:
            context.loose[view.st_ino] = (
                huge_content(view) if is_huge
                else unmapped_content(view, context.mapped.get(view.st_ino, ()))
            )  # fmt: skip
        return Memfd(
            inode_id=view.st_ino, name=view.link.removeprefix(PREFIX).removesuffix(DELETED),
            flags=view.flags & ~int(O.CLOEXEC), pos=view.pos, size=view.st_size,
            seals=view.fcntl(F.GET_SEALS), mode=view.st_mode & 0o7777, uid=view.st_uid,
            gid=view.st_gid, owner=read_owner(view, context),
            huge_shift=view.st_blksize.bit_length() - 1 if is_huge else 0,
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Memfd], images: ImageSink) -> None:
        """memfd_file_entry for each, memfd_inode_entry for each inode."""
        written: set[int] = set()
        for file_id, state in states.items():
            entry = pb.memfd_file_entry(
                id=file_id, flags=state.flags, pos=state.pos, fown=encode_owner(state.owner),
                inode_id=state.inode_id & 0xFFFFFFFF,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.MEMFD, id=file_id, memfd=entry))
            if state.inode_id in written:
                continue
            written.add(state.inode_id)
            inode = pb.memfd_inode_entry(
                name=state.name.encode("utf-8", "surrogateescape"), uid=state.uid, gid=state.gid,
                size=state.size, shmid=state.inode_id & 0xFFFFFFFF, seals=state.seals,
                inode_id=state.inode_id, mode=state.mode,
            )  # fmt: skip
            if state.huge_shift:
                inode.hugetlb_flag = huge_flags(state.huge_shift)
            images.add("memfd", inode)

    def decode(self, images: ImageSource) -> Mapping[FileId, Memfd]:
        """Read them back."""
        inodes = {message.inode_id: message for message, _ in images.entries("memfd")}
        states = {}
        for file_id, entry in images.files("MEMFD"):
            inode = inodes.get(entry.inode_id)
            if inode is None or inode.seals & ~KNOWN_SEALS:
                bad_image("a memfd without an inode that fits", f"files.img, file {file_id}")
            states[file_id] = Memfd(
                inode_id=inode.shmid, name=inode.name.decode("utf-8", "surrogateescape"),
                flags=entry.flags & ~int(O.CLOEXEC), pos=entry.pos, size=inode.size,
                seals=inode.seals, mode=inode.mode if inode.HasField("mode") else USUAL_MODE,
                uid=inode.uid, gid=inode.gid, owner=decode_owner(entry.fown),
                huge_shift=_huge_shift(inode.hugetlb_flag),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Memfd], context: PlanContext) -> Sequence[Op]:
        """Create, open once for each description; the restore fills and seals."""
        ops: list[Op] = []
        for openings in _by_inode(created(states, context)):
            ops += _plan_inode(openings, context)
        return ops

    def late(self, states: Mapping[FileId, Memfd], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def huge_flags(huge_shift: int) -> int:
    """Of memfd_create, for pages of a size."""
    return MFD_HUGETLB | huge_shift << HUGE_SHIFT_AT if huge_shift else 0


def _huge_shift(flags: int) -> int:
    return (flags >> HUGE_SHIFT_AT or USUAL_HUGE_SHIFT) if flags & MFD_HUGETLB else 0


def huge_content(view: FdView) -> list[tuple[int, bytes]]:
    """(offset, bytes) of the pages that are not zero."""
    found = []
    for at in range(0, view.st_size, view.st_blksize):
        page = view.read_range(at, view.st_blksize)
        if page.count(0) != len(page):
            found.append((at, page))
    return found


def unmapped_content(view: FdView, mapped: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """(offset, bytes) of what is data outside of the mapped ranges."""
    pieces = []
    for start, end in gaps(mapped, view.st_size):
        for data_start, data_end in view.data_ranges():
            first, last = max(data_start, start), min(data_end, end)
            if first < last:
                pieces.append((first, view.read_range(first, last - first)))
    return pieces


def gaps(mapped: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """What of so many bytes no range covers."""
    found, at = [], 0
    for start, end in [*sorted(mapped), (size, size)]:
        if at < min(start, size):
            found.append((at, min(start, size)))
        at = max(at, end)
    return found


def _by_inode(states: Mapping[FileId, Memfd]) -> list[dict[FileId, Memfd]]:
    found: dict[int, dict[FileId, Memfd]] = {}
    for file_id, state in states.items():
        found.setdefault(state.inode_id, {})[file_id] = state
    return list(found.values())


def _plan_inode(openings: Mapping[FileId, Memfd], context: PlanContext) -> list[Op]:
    file_id, state = next(iter(openings.items()))
    spare, what = context.spare_fd, subject(context, file_id, PREFIX + state.name)
    name = Data.path(state.name)
    made = Slot(f"memfd{state.inode_id}")
    flags = MFD_ALLOW_SEALING | huge_flags(state.huge_shift)
    ops = [
        Op(call="memfd_create", args=(name, flags), subject=what, yields=made),
        *move(made, spare, subject=what),
    ]
    if state.size:
        ops.append(Op(call="ftruncate", args=(spare, state.size), subject=what))
    ops.append(Op(call="fchown", args=(spare, state.uid, state.gid), subject=what,
                  remedy="restore with CAP_CHOWN, or as the user that owned it"))  # fmt: skip
    if state.mode != USUAL_MODE:
        ops.append(Op(call="fchmod", args=(spare, state.mode), subject=what))
    usual = next((i for i, s in openings.items() if _is_usual(s)), None)
    for one, opening in openings.items():
        ops += _open(opening, context.fd(one), spare, what, is_itself=one == usual)
    ops.append(Op(call="close", args=(spare,), subject=what))
    return ops


def _is_usual(state: Memfd) -> bool:
    return state.flags & ~int(O.LARGEFILE) == O.RDWR


def _open(state: Memfd, fd: int, spare: int, what: str, *, is_itself: bool) -> list[Op]:
    if is_itself:
        ops = [Op(call="dup3", args=(spare, fd, 0), subject=what, expect=Expect.EQUAL, want=fd)]
    else:
        again = Op(
            call="openat", args=(AT_FDCWD, Data.path(f"/proc/self/fd/{spare}"), state.flags, 0),
            subject=what, note="one more description", yields=Slot(f"open{fd}"),
            remedy="mount /proc where the tree is restored",
        )  # fmt: skip
        ops = place(again, fd)
    if state.pos:
        ops.append(Op(call="lseek", args=(fd, state.pos, 0), subject=what, note="position",
                      expect=Expect.EQUAL, want=state.pos))  # fmt: skip
    return ops


KIND: FileKind[Memfd] = MemfdKind()
