# SPDX-License-Identifier: Apache-2.0
"""signalfd(2): a mask of signals to read.

Facts (probed on v6.18): fdinfo has `sigmask` (hexadecimal, bit N - 1 is signal N). The pending
signals are the reading task's, not the descriptor's. Nothing else is kept.

Source: fs/signalfd.c, signalfd_show_fdinfo (v6.18).
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
from torpor.engine.program.ops import Data, Op, Slot, place

LINK = "anon_inode:[signalfd]"
SIGSET_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Signalfd:
    """``mask``: bit N - 1 is signal N."""

    mask: int
    flags: int
    owner: Owner = NOBODY


class SignalfdKind(Base[Signalfd]):
    """Descriptors of signalfd(2)."""

    name = "signalfd"
    types: Sequence[str] = ("SIGNALFD",)
    limits: Sequence[Limit] = (OWNER_OUTSIDE,)

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def questions(self, view: FdView) -> Questions:
        """Its owner; all else is in fdinfo."""
        del view
        return OWNED

    def collect(self, view: FdView, context: DumpContext) -> Signalfd:
        """Read fdinfo."""
        return Signalfd(
            mask=info_number(view, "sigmask", 16), flags=view.flags & ~int(O.CLOEXEC),
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Signalfd], images: ImageSink) -> None:
        """signalfd_entry."""
        for file_id, state in states.items():
            entry = pb.signalfd_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner), sigmask=state.mask
            )
            images.add("files", pb.file_entry(type=pb.SIGNALFD, id=file_id, sgfd=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Signalfd]:
        """Read them back."""
        return {
            file_id: Signalfd(
                mask=entry.sigmask, flags=entry.flags & ~int(O.CLOEXEC),
                owner=decode_owner(entry.fown),
            )
            for file_id, entry in images.files("SIGNALFD")
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Signalfd], context: PlanContext) -> Sequence[Op]:
        """signalfd4."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            flags = state.flags & O.NONBLOCK
            mask = Data(struct.pack("<Q", state.mask), text=f"mask {state.mask:#x}")
            made = Op(call="signalfd4", args=(-1, mask, SIGSET_BYTES, flags), subject=what,
                      yields=Slot(f"signalfd{fd}"))  # fmt: skip
            ops += [*place(made, fd), *status_flags(fd, state.flags, flags, what)]
        return ops

    def late(self, states: Mapping[FileId, Signalfd], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


KIND: FileKind[Signalfd] = SignalfdKind()
