# SPDX-License-Identifier: Apache-2.0
"""inotify(7): watches by inode, which are found by path again.

Facts (probed on v6.18):
- fdinfo has a line for each watch: wd, ino, sdev (the kernel's own dev_t), mask, ignored_mask,
  and the file handle; all hexadecimal, the handle as bytes. There is no path: `watch_path` of the
  view finds one.
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
    mapped,
    path_bytes,
    path_from,
    read_owner,
    status_flags,
    subject,
)
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
HANDLE_WORDS = 16
LINE = re.compile(
    r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) "
    r"ignored_mask:([0-9a-f]+)"
    r"(?:\s+fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+))?"
)

NO_PATH = Limit(
    case="watch-without-path",
    what="the path of an inotify watch cannot be found",
    remedy="run with CAP_DAC_READ_SEARCH, or remove the watch of the deleted file",
)
TOO_FAR = Limit(
    case="watch-number-too-high",
    what=f"more than {MAX_STEPS} watches were added and removed before those that are left",
    remedy="have the program make a new inotify descriptor",
)
LIMITS = (NO_PATH, TOO_FAR, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One watch; ``handle`` as fdinfo prints it."""

    wd: int
    path: str
    mask: int
    inode: int = 0
    device: int = 0
    ignored: int = 0
    handle_type: int = 0
    handle: bytes = b""


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
            (_watch(view, line) for line in view.info if line.startswith("inotify ")),
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
                added = entry.wd.add(
                    id=file_id, i_ino=watch.inode, mask=watch.mask, ignored_mask=watch.ignored,
                    s_dev=watch.device, wd=watch.wd,
                )  # fmt: skip
                added.f_handle.bytes = len(watch.handle)
                added.f_handle.type = watch.handle_type
                added.f_handle.path = path_bytes(watch.path)
                padded = watch.handle.ljust(HANDLE_WORDS * 8, b"\0")
                words = range(0, len(padded), 8)
                added.f_handle.handle.extend(
                    int.from_bytes(padded[i : i + 8], "little") for i in words
                )
            images.add("files", pb.file_entry(type=pb.INOTIFY, id=file_id, ify=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Inotify]:
        """Read them back. Raises BadImage; Refused when CRIU has kept no path."""
        states = {}
        for file_id, entry in images.files("INOTIFY"):
            where = f"files.img, file {file_id}"
            watches = sorted((_decode(w, where) for w in entry.wd), key=lambda w: w.wd)
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


def _watch(view: FdView, line: str) -> Watch:
    found = LINE.match(line)
    if found is None:
        raise Bug("fdinfo of an inotify is not understood", subject=view.subject, cause=line)
    wd, inode, device, mask, ignored = (int(text, 16) for text in found.groups()[:5])
    handle_type = int(found[7] or "0", 16)
    handle = bytes.fromhex(found[8] or "")
    path = view.watch_path(device, inode, handle_type, handle)
    if path is None:
        raise refuse(NO_PATH, view.subject, f"wd {wd}, inode {inode} of device {device:#x}")
    return Watch(wd=wd, path=path, mask=mask, inode=inode, device=device, ignored=ignored,
                 handle_type=handle_type, handle=handle)  # fmt: skip


def _decode(entry: pb.inotify_wd_entry, where: str) -> Watch:
    if not entry.f_handle.HasField("path"):
        raise refuse(NO_PATH, where, f"CRIU kept none for watch {entry.wd} (--force-irmap does)")
    raw = b"".join(word.to_bytes(8, "little") for word in entry.f_handle.handle)
    return Watch(
        wd=entry.wd, path=path_from(entry.f_handle.path, where), mask=entry.mask,
        inode=entry.i_ino, device=entry.s_dev, ignored=entry.ignored_mask,
        handle_type=entry.f_handle.type, handle=raw[: entry.f_handle.bytes],
    )  # fmt: skip


def _add_all(state: Inotify, fd: int, what: str, context: PlanContext) -> list[Op]:
    ops: list[Op] = []
    room = Data.room(DRAIN_BYTES)
    following = 1
    undrained = 0
    for watch in state.watches:
        path = mapped(watch.path, context)
        mask = watch.mask & TAKEN | IN_DONT_FOLLOW
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
