# SPDX-License-Identifier: Apache-2.0
"""fanotify(7): groups, and their marks of inodes, mounts and file systems.

Facts (probed on v6.18):
- fdinfo has `fanotify flags:3 event-flags:8002`, the arguments of fanotify_init(2), and a line for
  each mark: `ino:... sdev:...` with a file handle of an inode, `mnt_id:...` of a mount, `sdev:...`
  alone of a file system; then mflags, mask, ignored_mask; all hexadecimal.
- mflags: FAN_MARK_IGNORED_SURV_MODIFY 0x40, FAN_MARK_EVICTABLE 0x200, FAN_MARK_IGNORE 0x400. Mask
  and ignored mask are set by two calls. FAN_MARK_ONLYDIR acts on the call only.
- CRIU has no marks of file systems; they are in torpor.json.
- FAN_CLOEXEC stays in the flags of the group, whatever becomes of its descriptor.
- What cannot be set back: queued events (a warning tells), answers that a task waits for.

Source: fs/notify/fdinfo.c, fanotify_fdinfo; fs/notify/fanotify/fanotify_user.c (v6.18).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.errors import Bug
from torpor.engine.files import watched
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    O,
    Owner,
    created,
    decode_owner,
    encode_owner,
    late_owners,
    mapped,
    path_bytes,
    path_from,
    read_owner,
    status_flags,
    subject,
)
from torpor.engine.files.watched import Target
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
from torpor.engine.program.ops import Data, Op, Slot, place

LINK = "anon_inode:[fanotify]"
FIONREAD = 0x541B
FAN_NONBLOCK = 2
ADD, DONT_FOLLOW, IGNORED_MASK = 0x1, 0x4, 0x20
SURVIVES, EVICTABLE, IGNORE = 0x40, 0x200, 0x400
INODE, MOUNT, FILESYSTEM = 0, 0x10, 0x100
EVENT_ONLY_FLAGS = 0x08000000 | 0x40000000
"""FAN_EVENT_ON_CHILD and FAN_ONDIR, which are no events themselves."""
MARK = re.compile(
    r"fanotify (?:ino:(?P<ino>[0-9a-f]+) )?(?:mnt_id:(?P<mount>[0-9a-f]+) )?"
    r"(?:sdev:(?P<device>[0-9a-f]+) )?mflags:(?P<flags>[0-9a-f]+) mask:(?P<mask>[0-9a-f]+) "
    r"ignored_mask:(?P<ignored>[0-9a-f]+)" + watched.FILE_HANDLE
)
GROUP = re.compile(r"fanotify flags:([0-9a-f]+) event-flags:([0-9a-f]+)")

NO_MOUNT = Limit(
    case="fanotify-mount",
    what="the mount that a fanotify group watches is not below the root of the task",
    remedy="remove the mark before the checkpoint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """``kind`` INODE, MOUNT or FILESYSTEM; the target of a mount is its mount point."""

    kind: int
    target: Target
    flags: int
    mask: int
    ignored: int
    mount_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fanotify:
    """A group: arguments of fanotify_init(2), and marks in the kernel's order."""

    flags: int
    init_flags: int
    event_flags: int
    marks: tuple[Mark, ...]
    owner: Owner = NOBODY


class FanotifyKind(Base[Fanotify]):
    """Descriptors of fanotify_init(2)."""

    name = "fanotify"
    types: Sequence[str] = ("FANOTIFY",)
    limits: Sequence[Limit] = (watched.NO_PATH, NO_MOUNT, OWNER_OUTSIDE)

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def collect(self, view: FdView, context: DumpContext) -> Fanotify:
        """Read the marks and find their paths."""
        group = next((found for line in view.info if (found := GROUP.match(line))), None)
        if group is None:
            raise Bug("fdinfo of a fanotify group is not understood", subject=view.subject)
        queued = int.from_bytes(view.ioctl(FIONREAD, bytes(4)), "little")
        if queued:
            context.warn(f"{view.subject}: {queued} bytes of queued events are lost")
        marks = (_mark(view, line, context) for line in view.info if MARK.match(line))
        return Fanotify(
            flags=view.flags & ~int(O.CLOEXEC), init_flags=int(group[1], 16),
            event_flags=int(group[2], 16), marks=tuple(marks)[::-1],
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Fanotify], images: ImageSink) -> None:
        """fanotify_file_entry; marks of file systems go to torpor.json."""
        for file_id, state in states.items():
            entry = pb.fanotify_file_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner),
                faflags=state.init_flags, evflags=state.event_flags,
            )  # fmt: skip
            whole = [m for m in state.marks if m.kind == FILESYSTEM]
            for mark in state.marks:
                if mark not in whole:
                    _encode(mark, entry.mark.add(id=file_id))
                if mark.target.file is not None:
                    images.extra("fanotify", f"{file_id} {mark.target.inode}", mark.target.file)
            images.add("files", pb.file_entry(type=pb.FANOTIFY, id=file_id, ffy=entry))
            if whole:
                images.extra("fanotify", f"{file_id} file systems", [_plain(m) for m in whole])

    def decode(self, images: ImageSource) -> Mapping[FileId, Fanotify]:
        """Read them back. Raises BadImage; Refused when CRIU has kept no path."""
        states = {}
        for file_id, entry in images.files("FANOTIFY"):
            where = f"files.img, file {file_id}"
            marks = [_decode(m, where, file_id, images) for m in entry.mark]
            whole = images.extra("fanotify", f"{file_id} file systems") or []
            marks += [_from_plain(one, where) for one in whole]
            states[file_id] = Fanotify(
                flags=entry.flags & ~int(O.CLOEXEC), init_flags=entry.faflags,
                event_flags=entry.evflags, marks=tuple(marks), owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Fanotify], context: PlanContext) -> Sequence[Op]:
        """Make the groups and their marks."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            flags = state.init_flags
            made = Op(call="fanotify_init", args=(flags, state.event_flags), subject=what,
                      remedy="fanotify needs CAP_SYS_ADMIN, and free groups "
                      "(fs.fanotify.max_user_groups)", yields=Slot(f"fanotify{fd}"))  # fmt: skip
            ops += place(made, fd)
            for mark in state.marks:
                ops += _add(mark, fd, what, context)
            ops += status_flags(
                fd, state.flags, int(O.NONBLOCK) if flags & FAN_NONBLOCK else 0, what
            )
        return ops

    def late(self, states: Mapping[FileId, Fanotify], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _mark(view: FdView, line: str, context: DumpContext) -> Mark:
    found = MARK.match(line)
    assert found is not None
    flags, mask, ignored = (int(found[name], 16) for name in ("flags", "mask", "ignored"))
    device = int(found["device"] or "0", 16)
    if found["ino"] is not None:
        target = watched.find(view, context, inode=int(found["ino"], 16), device=device,
                              kind=found[8], handle=found[9])  # fmt: skip
        return Mark(kind=INODE, target=target, flags=flags, mask=mask, ignored=ignored)
    mount_id = int(found["mount"], 16) if found["mount"] else 0
    path = view.mount_point(mount_id or None, device)
    if path is None:
        raise refuse(NO_MOUNT, view.subject, line)
    return Mark(
        kind=MOUNT if mount_id else FILESYSTEM, target=Target(path=path, device=device),
        flags=flags, mask=mask, ignored=ignored, mount_id=mount_id,
    )  # fmt: skip


def _encode(mark: Mark, entry: Any) -> None:  # noqa: ANN401
    entry.mflags, entry.mask, entry.ignored_mask = mark.flags, mark.mask, mark.ignored
    entry.s_dev = mark.target.device
    if mark.kind == INODE:
        entry.type = pb.INODE
        entry.ie.i_ino = mark.target.inode
        watched.encode(mark.target, entry.ie.f_handle)
        return
    entry.type = pb.MOUNT
    entry.me.mnt_id, entry.me.path = mark.mount_id, path_bytes(mark.target.path)


def _decode(entry: Any, where: str, file_id: FileId, images: ImageSource) -> Mark:  # noqa: ANN401
    if entry.type == pb.INODE:
        file = images.extra("fanotify", f"{file_id} {entry.ie.i_ino}")
        target = watched.decode(entry.ie.f_handle, entry.ie.i_ino, entry.s_dev, where, file)
        kind, mount_id = INODE, 0
    else:
        target = Target(path=path_from(entry.me.path, where), device=entry.s_dev)
        kind, mount_id = MOUNT, entry.me.mnt_id
    return Mark(kind=kind, target=target, flags=entry.mflags, mask=entry.mask,
                ignored=entry.ignored_mask, mount_id=mount_id)  # fmt: skip


def _plain(mark: Mark) -> dict[str, Any]:
    return {"path": mark.target.path, "device": mark.target.device, "flags": mark.flags,
            "mask": mark.mask, "ignored": mark.ignored}  # fmt: skip


def _from_plain(one: Mapping[str, Any], where: str) -> Mark:
    path = path_from(path_bytes(one["path"]), where)
    return Mark(
        kind=FILESYSTEM, target=Target(path=path, device=int(one["device"])),
        flags=int(one["flags"]), mask=int(one["mask"]), ignored=int(one["ignored"]),
    )  # fmt: skip


def _add(mark: Mark, fd: int, what: str, context: PlanContext) -> list[Op]:
    """One call for the mask, one for the mask of what is ignored."""
    path, follows = watched.reached(mark.target, context)
    if mark.kind != INODE:
        path, follows = mapped(mark.target.path, context), True
    how = ADD | mark.kind | (0 if follows else DONT_FOLLOW) | mark.flags & EVICTABLE
    calls = [(how, mark.mask)] if mark.mask & ~EVENT_ONLY_FLAGS else []
    if mark.ignored:
        ignoring = IGNORE if mark.flags & IGNORE else IGNORED_MASK
        calls.append((how | ignoring | mark.flags & SURVIVES, mark.ignored))
    return [
        Op(call="fanotify_mark", args=(fd, flags, mask, AT_FDCWD, Data.path(path)), subject=what,
           note=f"watches {mark.target.path}", remedy=f"{mark.target.path} must be there")
        for flags, mask in calls
    ]  # fmt: skip


KIND: FileKind[Fanotify] = FanotifyKind()
