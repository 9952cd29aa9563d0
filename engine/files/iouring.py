# SPDX-License-Identifier: Apache-2.0
"""io_uring: rings with nothing under way.

Facts (probed on v6.18):
- fdinfo tells the sizes of both rings, how many requests were taken (CachedSqHead) and how many
  completions were given (CachedCqTail), both counted from the start, and registered files and
  buffers. A request gives one completion, unless it asks for none or for many: where the two
  numbers differ, requests are taken to be under way.
- Programs keep the counts as well, so a new ring has to reach them: by requests that do nothing,
  which the engine makes (`restore/uring.py`). Then the rings get their old content.
- Rings and requests are mapped at offsets 0 (and 1 << 27, the same) and 1 << 28 of the ring; the
  area has the ring's inode number. The kernel alone chooses the address, for mremap(2) too; it
  is had by leaving no other hole.
- What cannot be read: flags of io_uring_setup(2) beyond sizes (how completions are delivered), a
  registered eventfd, restrictions, personalities. CRIU does not take rings.

Source: io_uring/fdinfo.c, io_uring/io_uring.c (v6.18).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    info_number,
    late_owners,
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
from torpor.engine.program.ops import Data, Op, Slot, place

LINK = "anon_inode:[io_uring]"
SECTION = "io_uring"
SETUP_CQSIZE = 1 << 3
PARAMS_BYTES = 120
MOST_ENTRIES = 1 << 16
MOST_REQUESTS = 1 << 24
"""More would keep a restore busy for seconds."""

UNDER_WAY = Limit(
    case="io_uring-busy",
    what="an io_uring with requests under way",
    remedy="take the checkpoint when they have ended, or switch the program to epoll",
)
REGISTERED = Limit(
    case="io_uring-registered",
    what="an io_uring with registered files or buffers",
    remedy="have the program unregister them, or switch it to epoll",
)
POLLING = Limit(
    case="io_uring-thread",
    what="an io_uring that a thread of the kernel polls (IORING_SETUP_SQPOLL)",
    remedy="switch that off in the program (Node.js: UV_USE_IO_URING=0)",
)
OLD = Limit(
    case="io_uring-old",
    what="an io_uring that has had more than 16,777,216 requests",
    remedy="restart the program, or switch it to epoll",
)
LIMITS = (UNDER_WAY, REGISTERED, POLLING, OLD, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uring:
    """``requests`` is what both rings have counted. ``ino`` is that of its areas."""

    ino: int
    submissions: int
    completions: int
    requests: int
    flags: int
    owner: Owner = NOBODY


class UringKind(Base[Uring]):
    """Rings that are idle."""

    name = "io_uring"
    types: Sequence[str] = ("EXT",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def collect(self, view: FdView, context: DumpContext) -> Uring:
        """fdinfo."""
        taken, given = info_number(view, "CachedSqHead"), info_number(view, "CachedCqTail")
        if taken != given or _listed(view, "PollList:") or _listed(view, "CqOverflowList:"):
            raise refuse(UNDER_WAY, view.subject, f"{(taken - given) % (1 << 32)} under way")
        if info_number(view, "UserFiles") or info_number(view, "UserBufs"):
            raise refuse(REGISTERED, view.subject)
        if info_number(view, "SqThread") >= 0:
            raise refuse(POLLING, view.subject)
        if taken > MOST_REQUESTS:
            raise refuse(OLD, view.subject, f"{taken:,} requests")
        context.warn(
            f"{view.subject}: comes back with the usual flags, and without a registered eventfd"
        )
        return Uring(
            ino=view.st_ino, submissions=info_number(view, "SqMask", 0) + 1,
            completions=info_number(view, "CqMask", 0) + 1, requests=taken,
            flags=view.flags & ~int(O.CLOEXEC), owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Uring], images: ImageSink) -> None:
        """An ext_file_entry, and all of it in torpor.json."""
        for file_id, state in states.items():
            entry = pb.ext_file_entry(id=file_id, fown=encode_owner(state.owner))
            images.add("files", pb.file_entry(type=pb.EXT, id=file_id, ext=entry))
            images.extra(SECTION, str(file_id), {
                "ino": state.ino, "submissions": state.submissions,
                "completions": state.completions, "requests": state.requests,
                "flags": state.flags,
            })  # fmt: skip

    def decode(self, images: ImageSource) -> Mapping[FileId, Uring]:
        """EXT entries that torpor.json calls rings. Raises BadImage."""
        states = {}
        for file_id, entry in images.files("EXT"):
            facts = images.extra(SECTION, str(file_id))
            if facts is None:
                continue
            where = f"torpor.json, io_uring {file_id}"
            numbers = [facts.get(name) for name in ("submissions", "completions", "requests")]
            if not all(isinstance(number, int) for number in numbers):
                bad_image("a ring without its sizes", where)
            submissions, completions, requests = numbers
            if not 0 < submissions <= MOST_ENTRIES or not 0 < completions <= 2 * MOST_ENTRIES:
                bad_image("rings of a wrong size", where)
            if not 0 <= requests <= MOST_REQUESTS:
                bad_image(f"{requests} requests", where)
            states[file_id] = Uring(
                ino=int(facts["ino"]), submissions=submissions, completions=completions,
                requests=requests, flags=int(facts["flags"]), owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Uring], context: PlanContext) -> Sequence[Op]:
        """Fresh rings of the same sizes."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            head = struct.pack("<3I", 0, state.completions, SETUP_CQSIZE)
            params = Data(head.ljust(PARAMS_BYTES, b"\0"), text=f"{state.completions} completions")
            made = Op(
                call="io_uring_setup", args=(state.submissions, params), subject=what,
                yields=Slot(f"ring{fd}"), remedy="permit io_uring (kernel.io_uring_disabled)",
            )  # fmt: skip
            ops += [*place(made, fd), *status_flags(fd, state.flags, 0, what)]
        return ops

    def late(self, states: Mapping[FileId, Uring], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _listed(view: FdView, title: str) -> bool:
    """Whether anything stands below a title of fdinfo."""
    lines = [*view.info]
    if title not in lines:
        return False
    following = lines[lines.index(title) + 1 : lines.index(title) + 2]
    return bool(following) and following[0].startswith(" ")


KIND: FileKind[Uring] = UringKind()
