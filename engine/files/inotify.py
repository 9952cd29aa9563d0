# SPDX-License-Identifier: Apache-2.0
"""inotify(7): watches by inode, which are found by path again.

Facts (probed on v6.18):
- fdinfo has a line for each watch: wd, ino, sdev, mask, ignored_mask, and the file handle; all
  hexadecimal. There is no path: `watched.py` finds one.
- It is planned after all files, so that their making is not told.
- Watch descriptors are given in ascending order and not again before 2^31: the one after is had by
  adding and removing the same watch. Each removal queues IN_IGNORED, which is read away.
- The mask of fdinfo holds what inotify_add_watch takes, but for IN_ONLYDIR, IN_DONT_FOLLOW,
  IN_MASK_CREATE, which act on the call only. IN_EXCL_UNLINK and IN_ONESHOT are in it.
- What cannot be set back: queued events (a warning tells how many bytes), pending rename cookies.

Source: fs/notify/fdinfo.c, inotify_fdinfo; fs/notify/inotify/inotify_user.c (v6.18).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Bug
from torpor.engine.files import watched
from torpor.engine.files.common import (
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    late_owners,
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
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

LINKS = ("anon_inode:inotify", "anon_inode:[inotify]")
FIONREAD = 0x541B
TAKEN = 0x84000FFF
"""IN_ALL_EVENTS, IN_EXCL_UNLINK, IN_ONESHOT."""
IN_DONT_FOLLOW = 0x02000000
MAX_STEPS = 20_000
DRAIN_EVERY = 1000
DRAIN_BYTES = 65536
LINE = re.compile(
    r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) "
    r"ignored_mask:([0-9a-f]+)" + watched.FILE_HANDLE
)

TOO_FAR = Limit(
    case="watch-number-too-high",
    what=f"more than {MAX_STEPS} watches were added and removed before those that are left",
    remedy="have the program make a new inotify descriptor",
)
LIMITS = (watched.NO_PATH, TOO_FAR, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One watch."""

    wd: int
    target: Target
    mask: int
    ignored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inotify:
    """Watches in ascending order of wd."""

    flags: int
    watches: tuple[Watch, ...]
    owner: Owner = NOBODY


class InotifyKind(Base[Inotify]):
    """Descriptors of inotify_init1(2)."""

    name = "inotify"
    types: Sequence[str] = ("INOTIFY",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link in LINKS

    def collect(self, view: FdView, context: DumpContext) -> Inotify:
        """Read the watches and find their paths."""
        watches = sorted(
            (_watch(view, line, context) for line in view.info if line.startswith("inotify ")),
            key=lambda w: w.wd,
        )
        if watches and watches[-1].wd - len(watches) > MAX_STEPS:
            raise refuse(TOO_FAR, view.subject, f"the highest is {watches[-1].wd}")
        queued = int.from_bytes(view.ioctl(FIONREAD, bytes(4)), "little")
        if queued:
            context.warn(f"{view.subject}: {queued} bytes of queued events are lost")
        return Inotify(
            flags=view.flags & ~int(O.CLOEXEC), watches=tuple(watches),
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Inotify], images: ImageSink) -> None:
        """inotify_file_entry."""
        for file_id, state in states.items():
            entry = pb.inotify_file_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner)
            )
            for watch in state.watches:
                target = watch.target
                added = entry.wd.add(
                    id=file_id, i_ino=target.inode, mask=watch.mask, ignored_mask=watch.ignored,
                    s_dev=target.device, wd=watch.wd,
                )  # fmt: skip
                watched.encode(target, added.f_handle)
                if target.file is not None:
                    images.extra("inotify", f"{file_id} {watch.wd}", target.file)
            images.add("files", pb.file_entry(type=pb.INOTIFY, id=file_id, ify=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Inotify]:
        """Read them back. Raises BadImage; Refused when CRIU has kept no path."""
        states = {}
        for file_id, entry in images.files("INOTIFY"):
            where = f"files.img, file {file_id}"
            watches = sorted(
                (_decode(w, where, images.extra("inotify", f"{file_id} {w.wd}")) for w in entry.wd),
                key=lambda w: w.wd,
            )
            numbers = [w.wd for w in watches]
            if numbers and (numbers[0] < 1 or len({*numbers}) != len(numbers)):
                bad_image("watch numbers are wrong", where)
            if numbers and numbers[-1] - len(numbers) > MAX_STEPS:
                raise refuse(TOO_FAR, where)
            states[file_id] = Inotify(
                flags=entry.flags & ~int(O.CLOEXEC), watches=tuple(watches),
                owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Inotify], context: PlanContext) -> Sequence[Op]:
        """Add watches until their numbers come, read away what that queued."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINKS[0])
            made = Op(call="inotify_init1", args=(int(O.NONBLOCK),), subject=what,
                      remedy="raise /proc/sys/fs/inotify/max_user_instances",
                      yields=Slot(f"inotify{fd}"))  # fmt: skip
            ops += [*place(made, fd), *_add_all(state, fd, what, context)]
            ops += status_flags(fd, state.flags, int(O.NONBLOCK), what)
        return ops

    def late(self, states: Mapping[FileId, Inotify], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _watch(view: FdView, line: str, context: DumpContext) -> Watch:
    found = LINE.match(line)
    if found is None:
        raise Bug("fdinfo of an inotify is not understood", subject=view.subject, cause=line)
    wd, inode, device, mask, ignored = (int(text, 16) for text in found.groups()[:5])
    target = watched.find(view, context, inode=inode, device=device, kind=found[7],
                          handle=found[8])  # fmt: skip
    return Watch(wd=wd, target=target, mask=mask, ignored=ignored)


def _decode(entry: pb.inotify_wd_entry, where: str, file: int | None) -> Watch:
    target = watched.decode(entry.f_handle, entry.i_ino, entry.s_dev, where, file)
    return Watch(wd=entry.wd, target=target, mask=entry.mask, ignored=entry.ignored_mask)


def _add_all(state: Inotify, fd: int, what: str, context: PlanContext) -> list[Op]:
    ops: list[Op] = []
    room = Data.room(DRAIN_BYTES)
    following = 1
    undrained = 0
    for watch in state.watches:
        path, follows = watched.reached(watch.target, context)
        mask = watch.mask & TAKEN | (0 if follows else IN_DONT_FOLLOW)
        add = Data.path(path)
        while following <= watch.wd:
            ops.append(
                Op(call="inotify_add_watch", args=(fd, add, mask), subject=what,
                   expect=Expect.EQUAL, want=following, note=f"watch {watch.wd}",
                   remedy=f"{path} must be there; raise fs.inotify.max_user_watches")
            )  # fmt: skip
            if following < watch.wd:
                ops.append(Op(call="inotify_rm_watch", args=(fd, following), subject=what))
                undrained += 1
            following += 1
            if undrained >= DRAIN_EVERY or (undrained and following > watch.wd):
                ops.append(_drain(fd, room, what))
                undrained = 0
    return ops


def _drain(fd: int, room: Data, what: str) -> Op:
    return Op(call="read", args=(fd, room, DRAIN_BYTES), subject=what,
              note="what our removals queued")  # fmt: skip


KIND: FileKind[Inotify] = InotifyKind()
