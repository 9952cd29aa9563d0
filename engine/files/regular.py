# SPDX-License-Identifier: Apache-2.0
"""Regular files and directories by their path; unlinked ones as ghosts; O_PATH of anything.

Facts (probed on v6.18):
- Path from readlink of /proc/PID/fd/N, ` (deleted)` behind it when the name is gone. The name
  alone proves nothing: it is compared by stat with the descriptor's device and inode.
- fdinfo has position and status flags. O_CREAT, O_EXCL, O_TRUNC, O_NOCTTY are not kept by the
  kernel; O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW, O_PATH and the bit of O_TMPFILE are.
- A directory's position is a cookie of its file system; lseek(2) takes it back.
- st_nlink 0: the file has no name at all, it becomes a ghost (`ghost.py`). st_nlink > 0 and
  another inode or nothing at the path: it has other names (`linked.py`).
- The size is kept; lseek(fd, size - 1, SEEK_HOLE) fails with ENXIO when the file is shorter.
  Longer is taken: others may have appended. Files of pseudo file systems are not checked.
- An external file is named `file[MNT_ID:INODE]`, in hexadecimal, and given to the restore.
- F_NOTIFY shows nowhere, but makes the caller the owner of the description, and without an owner it
  tells nobody: so a directory with an owner is refused, also where the watch has fired by now.
- What cannot be set back: atime, read-ahead state, a write lease.

Source: fs/open.c, do_dentry_open; fs/d_path.c (v6.18).
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torpor.engine.asking import PLACE, Questions
from torpor.engine.files import ghost as ghosts
from torpor.engine.files import linked, revive
from torpor.engine.files.common import (
    AT_FDCWD,
    DIRECTORY_OWNER,
    NOBODY,
    OWNER,
    OWNER_OUTSIDE,
    Base,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    file_type,
    late_owners,
    mapped,
    path_bytes,
    path_from,
    read_owner,
    subject,
)
from torpor.engine.files.ghost import DELETED, Ghost
from torpor.engine.files.linked import UNREACHABLE
from torpor.engine.files.magics import FOREIGN_MAGICS, PSEUDO_MAGICS
from torpor.engine.files.revive import Opening
from torpor.engine.files.tty import role_of
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
    refuse,
)
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

SEEK_SET, SEEK_HOLE = 0, 4
EXTERNAL = re.compile(r"file\[[0-9a-f]+:[0-9a-f]+\]")
MEMFD_LINKS = ("/memfd:", "/anon_hugepage (deleted)")
STAT_BYTES, MODE_AT, SIZE_AT = 144, 24, 48

NO_REPLACEMENT = Limit(
    case="no-file",
    what="the file was declared external and nothing is given in its place",
    remedy="name a descriptor for it with --inherit-fd fd[N]:file[MNT_ID:INODE]",
)
LIMITS = (
    NO_REPLACEMENT,
    linked.LINKED_ELSEWHERE,
    UNREACHABLE,
    ghosts.TOO_LARGE,
    ghosts.HUGE_GHOST,
    OWNER_OUTSIDE,
    DIRECTORY_OWNER,
)
QUESTIONS = Questions(*OWNER, PLACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regular:
    """``size`` None: not checked. What is external has a name of its own as path."""

    path: str
    flags: int
    pos: int = 0
    mode: int | None = None
    size: int | None = None
    owner: Owner = NOBODY
    ghost: Ghost | None = None
    tmpfile: bool = False
    external: bool = False


class RegularKind(Base[Regular]):
    """Files with a path, or that once had one."""

    name = "regular"
    types: Sequence[str] = ("REG",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """Regular files, directories and O_PATH, unless of procfs, memfd or no file system."""
        if view.fs_magic in FOREIGN_MAGICS or is_memfd(view):
            return False
        if view.flags & O.PATH:
            return True
        kinds = (FileType.REGULAR, FileType.DIRECTORY)
        is_device = file_type(view.st_mode) == FileType.CHARACTER and not role_of(view.st_rdev)
        return file_type(view.st_mode) in kinds or (is_device and not view.st_nlink)

    def questions(self, view: FdView) -> Questions | None:
        """Its owner, and what is at its path now."""
        return None if view.flags & O.PATH else QUESTIONS

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Where its path leads to it."""
        is_there = view.path_stat(view.link) == (view.st_dev, view.st_ino)
        return is_there and super().suffice(view, context)

    def collect(self, view: FdView, context: DumpContext) -> Regular:
        """Read the state; the content only of what has no name."""
        is_path = bool(view.flags & O.PATH)
        state = Regular(
            path=view.link,
            flags=view.flags & ~int(O.CLOEXEC | O.TMPFILE),
            pos=0 if is_path else view.pos,
            mode=view.st_mode,
            size=_size(view),
            owner=NOBODY if is_path else read_owner(view, context),
            tmpfile=bool(view.flags & O.TMPFILE),
        )
        key = f"file[{view.mnt_id:x}:{view.st_ino:x}]"
        if key in context.external:
            return replace(state, path=key, external=True, tmpfile=False)
        path, is_named = locate(view)
        state = replace(state, path=path)
        if is_named:
            return replace(state, tmpfile=False, flags=_without_tmpfile_directory(state))
        other = linked.take(view, context, path) if view.st_nlink else None
        return replace(
            state, ghost=other or ghosts.take(view, context, path), size=None,
            flags=_without_tmpfile_directory(state),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Regular], images: ImageSink) -> None:
        """reg_file_entry, remap-fpath and ghost-file-N."""
        written: set[int] = set()
        for file_id, state in states.items():
            images.add("files", pb.file_entry(type=pb.REG, id=file_id, reg=entry(file_id, state)))
            if state.tmpfile:
                images.extra("regular", str(file_id), {"tmpfile": True})
            if state.ghost is None:
                continue
            linked.encode_remap(file_id, state.ghost, images)
            if state.ghost.number not in written:
                written.add(state.ghost.number)
                _encode_ghost(state.ghost, images)

    def decode(self, images: ImageSource) -> Mapping[FileId, Regular]:
        """All REG entries but those of procfs and devices; also of mapped files, exe, cwd."""
        gone = ghosted(images)
        states = {
            file_id: parse(file_id, message, images)
            for file_id, message in images.files("REG")
            if owner_kind(message) == "regular" or file_id in gone or is_linked(file_id, images)
        }
        return with_remaps(states, images)

    def plan(self, states: Mapping[FileId, Regular], context: PlanContext) -> Sequence[Op]:
        """Open by path, create and unlink ghosts, then set positions."""
        ops: list[Op] = []
        held = created(states, context)
        by_ghost: dict[tuple[int, str | None], list[FileId]] = {}
        for file_id, state in held.items():
            if state.ghost is not None:
                key = state.ghost.number, state.ghost.link
                by_ghost.setdefault(key, []).append(file_id)
            else:
                what = subject(context, file_id, state.path)
                given = _given(state, context)
                if given is not None:
                    ops.append(Op(call="dup3", args=(given, context.fd(file_id), 0), subject=what,
                                  note="given in its place", expect=Expect.EQUAL,
                                  want=context.fd(file_id)))  # fmt: skip
                    continue
                if state.external:
                    raise refuse(NO_REPLACEMENT, what)
                ops += open_ops(state, context.fd(file_id), mapped(state.path, context), what)
                if context.check_files:
                    ops += _same(state, context.fd(file_id), what)
        for ids in by_ghost.values():
            ops += _ghost_ops(ids, held, context)
        for file_id, state in held.items():
            if _given(state, context) is not None:
                continue
            ops += _position(state, context.fd(file_id), subject(context, file_id, state.path))
        return ops

    def late(self, states: Mapping[FileId, Regular], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _given(state: Regular, context: PlanContext) -> int | None:
    """What the caller gives in place of a file: named by its path without the first `/`."""
    return context.inherit.get(state.path.lstrip("/")) if state.ghost is None else None


def is_memfd(view: FdView) -> bool:
    """Whether a descriptor was made by memfd_create(2), or leads to shared huge pages."""
    return view.link.startswith(MEMFD_LINKS) and view.link.endswith(DELETED) and not view.st_nlink


def _encode_ghost(ghost: Ghost, images: ImageSink) -> None:
    if ghost.link is None:
        ghosts.encode(ghost, images)
    elif revive.is_remap(ghost.link):
        name = Regular(path=ghost.link, flags=0, mode=ghost.mode)
        number = FileId(linked.NAME_ID + ghost.number)
        images.add("files", pb.file_entry(type=pb.REG, id=number, reg=entry(number, name)))


def locate(view: FdView) -> tuple[str, bool]:
    """(path, whether it leads to the file now)."""
    inode = (view.st_dev, view.st_ino)
    if view.path_stat(view.link) == inode:
        return view.link, True
    bare = view.link.removesuffix(DELETED)
    if not bare.startswith("/"):
        raise refuse(UNREACHABLE, view.subject)
    return bare, view.st_nlink > 0 and view.path_stat(bare) == inode


def entry(file_id: FileId, state: Regular) -> Any:  # noqa: ANN401
    """CRIU's reg_file_entry."""
    message = pb.reg_file_entry(
        id=file_id, flags=state.flags, pos=state.pos, fown=encode_owner(state.owner),
        name=path_bytes(state.path),
    )  # fmt: skip
    if state.size is not None:
        message.size = state.size
    if state.mode is not None:
        message.mode = state.mode
    if state.external:
        message.ext = True
    return message


def parse(file_id: FileId, message: Any, images: ImageSource) -> Regular:  # noqa: ANN401
    """State of a reg_file_entry; ghosts are added by `with_remaps`."""
    extra = images.extra("regular", str(file_id)) or {}
    where = f"files.img, file {file_id}"
    path = _external_name(message.name, where) if message.ext else path_from(message.name, where)
    is_pseudo = path.startswith(("/sys/", "/proc/"))
    flags = message.flags & ~int(O.CLOEXEC | O.CREAT | O.EXCL | O.NOCTTY | O.TRUNC)
    is_tmpfile = bool(flags & O.TMPFILE)  # CRIU keeps the bit, with O_DIRECTORY
    if is_tmpfile:
        flags &= ~int(O.TMPFILE | O.DIRECTORY)
    return Regular(
        path=path,
        flags=flags,
        pos=message.pos,
        mode=message.mode if message.HasField("mode") else None,
        size=message.size if message.HasField("size") and not is_pseudo else None,
        owner=decode_owner(message.fown),
        tmpfile=is_tmpfile or bool(extra.get("tmpfile")),
        external=message.ext,
    )


def _external_name(raw: bytes, where: str) -> str:
    name = raw.decode("utf-8", "surrogateescape")
    if not EXTERNAL.fullmatch(name):
        bad_image(f"{name!r} is no name of an external file", where)
    return name


def with_remaps(states: Mapping[FileId, Regular], images: ImageSource) -> dict[FileId, Regular]:
    """The states with what remap-fpath.img says of their names."""
    result = dict(states)
    for file_id, state in states.items():
        kept = images.extra("regular", f"{file_id} link")
        if kept:
            number, link, missing = kept
            ghost = Ghost(number=number, path=state.path, mode=state.mode or 0, link=link,
                          missing=missing)  # fmt: skip
            result[file_id] = replace(state, ghost=ghost, size=None)
    for remap, _ in images.entries("remap-fpath"):
        file_id = FileId(remap.orig_id)
        named = result.get(file_id)
        if named is None or named.ghost is not None:
            continue
        if remap.remap_type == pb.GHOST:
            ghost = ghosts.decode(remap.remap_id, named.path, images)
        elif remap.remap_type == pb.LINKED:
            other = states.get(FileId(remap.remap_id))
            if other is None:
                bad_image("names a file that is not there", f"remap-fpath.img, file {file_id}")
            ghost = Ghost(number=remap.remap_id, path=named.path, mode=named.mode or 0,
                          link=other.path)  # fmt: skip
        else:
            continue
        result[file_id] = replace(named, ghost=ghost, size=None)
    return result


def ghosted(images: ImageSource) -> set[int]:
    """Files that are made anew, whatever their type is."""
    remaps = images.entries("remap-fpath")
    return {remap.orig_id for remap, _ in remaps if remap.remap_type == pb.GHOST}


def is_linked(file_id: FileId, images: ImageSource) -> bool:
    """Whether its name was gone, and it has others."""
    return bool(images.extra("regular", f"{file_id} link"))


def owner_kind(message: Any) -> str:  # noqa: ANN401
    """Which kind a reg_file_entry belongs to: regular, device, procfs or path of a socket."""
    is_path = message.flags & O.PATH
    if message.ext:
        return "regular"
    if file_type(message.mode) in (FileType.CHARACTER, FileType.BLOCK) and not is_path:
        return "device"
    if file_type(message.mode) == FileType.SOCKET and is_path:
        return "path of a socket"
    if message.name.startswith(b"/proc/") and file_type(message.mode) != FileType.LINK:
        return "procfs"
    return "regular"


def open_ops(state: Regular, fd: int, path: str, what: str) -> list[Op]:
    """Open a named file at number ``fd``; memory uses it for mapped files as well."""
    remedy = f"{path} must be there as it was at the checkpoint"
    flags = state.flags | O.NOCTTY
    ops = place(
        Op(call="openat", args=(AT_FDCWD, Data.path(path), flags, 0), subject=what, remedy=remedy,
           yields=Slot(f"open{fd}")), fd,
    )  # fmt: skip
    if _is_checked(state) and state.size:
        ops.append(
            Op(call="lseek", args=(fd, state.size - 1, SEEK_HOLE), subject=what,
               note=f"has at least {state.size} bytes",
               remedy=f"bring {path} back as it was at the checkpoint ({state.size} bytes)")
        )  # fmt: skip
    return ops


def _same(state: Regular, fd: int, what: str) -> list[Op]:
    """Compare mode and size with struct stat; appenders do not care how long the file is."""
    if state.mode is None or state.flags & O.PATH:
        return []
    status = Data.room(STAT_BYTES)
    fields = [(MODE_AT, state.mode, f"has mode {state.mode:o}")]
    if state.size is not None and _is_checked(state):
        low, high = struct.unpack("<ii", struct.pack("<Q", state.size))
        note = f"has {state.size} bytes"
        fields += [(SIZE_AT, low, note), (SIZE_AT + 4, high, note)]
    remedy = f"bring {state.path} back as it was; its mode does not matter with "
    return [
        Op(call="fstat", args=(fd, status), subject=what),
        *(
            Op(call="@load32", args=(status, at), subject=what, note=note, expect=Expect.EQUAL,
               want=want, remedy=remedy + "--skip-file-rwx-check")
            for at, want, note in fields
        ),
    ]  # fmt: skip


def _is_checked(state: Regular) -> bool:
    """Whether the size is compared; appenders do not care how long the file is."""
    is_file = state.mode is None or file_type(state.mode) == FileType.REGULAR
    return bool(state.size) and is_file and not state.flags & (O.PATH | O.APPEND)


def _without_tmpfile_directory(state: Regular) -> int:
    """Flags without the O_DIRECTORY that is a part of O_TMPFILE."""
    is_file = state.mode is not None and file_type(state.mode) != FileType.DIRECTORY
    is_path = state.flags & O.PATH
    return state.flags & ~int(O.DIRECTORY) if is_file and not is_path else state.flags


def _size(view: FdView) -> int | None:
    if file_type(view.st_mode) != FileType.REGULAR or view.flags & O.PATH:
        return None
    return None if view.fs_magic in PSEUDO_MAGICS else view.st_size


def _ghost_ops(
    ids: Sequence[FileId], states: Mapping[FileId, Regular], context: PlanContext
) -> list[Op]:
    ghost = states[ids[0]].ghost
    assert ghost is not None
    names: dict[str, list[Opening]] = {}
    for i in ids:
        names.setdefault(mapped(states[i].path, context), []).append(
            Opening(fd=context.fd(i), flags=states[i].flags, tmpfile=states[i].tmpfile,
                    subject=subject(context, i, states[i].path))
        )  # fmt: skip
    if ghost.link is not None:
        ghost = replace(ghost, link=mapped(ghost.link, context))
    return revive.plan(ghost, names, context.spare_fd)


def _position(state: Regular, fd: int, what: str) -> list[Op]:
    """The check of the size moves the position, so it is set after one even to 0."""
    if state.flags & O.PATH or not (state.pos or _is_checked(state)):
        return []
    is_directory = state.mode is not None and file_type(state.mode) == FileType.DIRECTORY
    if is_directory or state.flags & O.DIRECTORY:
        return [Op(call="lseek", args=(fd, state.pos, SEEK_SET), subject=what)]
    return [
        Op(call="lseek", args=(fd, state.pos, SEEK_SET), subject=what, note="position",
           expect=Expect.EQUAL, want=state.pos)
    ]  # fmt: skip


KIND: FileKind[Regular] = RegularKind()
