# SPDX-License-Identifier: Apache-2.0
"""eventfd(2): a counter.

Facts (probed on v6.18):
- fdinfo has `eventfd-count` (hexadecimal), `eventfd-id`, `eventfd-semaphore` (since v6.5).
- An anonymous inode cannot be opened again: one description is one counter.
- eventfd2 takes 32 bits as first value; more is written. A write never blocks on a new one
  unless the counter would exceed 2^64 - 2.
- EFD_SEMAPHORE is not among the status flags, and CRIU 4.2 loses it: it is kept in torpor.json.
- What cannot be set back: the id, which only fdinfo shows.

Source: fs/eventfd.c, eventfd_show_fdinfo (v6.18).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.asking import Questions
from torpor.engine.files.common import (
    NOBODY,
    OWNED,
    OWNER_OUTSIDE,
    Base,
    O,
    Owner,
    created,
    decode_owner,
    encode_owner,
    info_number,
    info_value,
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
)
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

LINK = "anon_inode:[eventfd]"
SEMAPHORE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Eventfd:
    """``flags`` are status flags; SEMAPHORE is not among them."""

    count: int
    flags: int
    is_semaphore: bool = False
    owner: Owner = NOBODY


class EventfdKind(Base[Eventfd]):
    """Counters of eventfd(2)."""

    name = "eventfd"
    types: Sequence[str] = ("EVENTFD",)
    limits: Sequence[Limit] = (OWNER_OUTSIDE,)

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def questions(self, view: FdView) -> Questions:
        """Its owner; all else is in fdinfo."""
        del view
        return OWNED

    def collect(self, view: FdView, context: DumpContext) -> Eventfd:
        """Read fdinfo."""
        return Eventfd(
            count=info_number(view, "eventfd-count", 16),
            flags=view.flags & ~int(O.CLOEXEC),
            is_semaphore=info_value(view, "eventfd-semaphore") == "1",
            owner=read_owner(view, context),
        )

    def encode(self, states: Mapping[FileId, Eventfd], images: ImageSink) -> None:
        """eventfd_file_entry."""
        for file_id, state in states.items():
            entry = pb.eventfd_file_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner),
                counter=state.count,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.EVENTFD, id=file_id, efd=entry))
            if state.is_semaphore:
                images.extra("eventfd", str(file_id), {"semaphore": True})

    def decode(self, images: ImageSource) -> Mapping[FileId, Eventfd]:
        """Read them back."""
        return {
            file_id: Eventfd(
                count=entry.counter, flags=entry.flags & ~int(O.CLOEXEC),
                is_semaphore=bool(images.extra("eventfd", str(file_id))),
                owner=decode_owner(entry.fown),
            )
            for file_id, entry in images.files("EVENTFD")
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Eventfd], context: PlanContext) -> Sequence[Op]:
        """Create with the count, or write it when it is too large."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            is_small = state.count < 1 << 32
            flags = (state.flags & O.NONBLOCK) | (SEMAPHORE if state.is_semaphore else 0)
            made = Op(call="eventfd2", args=(state.count if is_small else 0, flags), subject=what,
                      yields=Slot(f"eventfd{fd}"))  # fmt: skip
            ops += place(made, fd)
            if not is_small:
                raw = Data(struct.pack("<Q", state.count), text=f"count {state.count}")
                ops.append(Op(call="write", args=(fd, raw, 8), subject=what, expect=Expect.EQUAL,
                              want=8))  # fmt: skip
            ops += status_flags(fd, state.flags, flags & O.NONBLOCK, what)
        return ops

    def late(self, states: Mapping[FileId, Eventfd], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


KIND: FileKind[Eventfd] = EventfdKind()
