# SPDX-License-Identifier: Apache-2.0
"""pidfd_open(2): a descriptor of a task.

Facts (probed on v6.18):
- The link is `anon_inode:[pidfd]`; fdinfo has `Pid` (in the namespace of the /proc that is read;
  -1 when the task was reaped, 0 when it is not in that namespace) and `NSpid`.
- PIDFD_NONBLOCK is O_NONBLOCK, PIDFD_THREAD is O_EXCL; both are kept in the flags.
- A pidfd can only be opened when its task exists: every holder does so late (`later.py`).
- What cannot be set back: exit information of a task that was reaped.

Source: kernel/pid.c, pidfd_create; fs/pidfs.c (v6.18).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files import later
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
from torpor.engine.program.ops import Op

LINK = "anon_inode:[pidfd]"
FLAGS = int(O.NONBLOCK | O.EXCL)
"""What pidfd_open(2) takes; CRIU's images have these only."""

REAPED = Limit(
    case="pidfd-reaped",
    what="a pidfd of a task that has ended and was reaped",
    remedy="close it before the checkpoint",
)
OUTSIDE = Limit(
    case="pidfd-outside",
    what="a pidfd of a task outside of the tree, or of a thread",
    remedy="checkpoint that task as well, or close the pidfd",
)
LIMITS = (REAPED, OUTSIDE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pidfd:
    """``task`` is the pid inside; ``flags`` are those of pidfd_open(2)."""

    task: int
    flags: int
    ino: int = 0
    owner: Owner = NOBODY


class PidfdKind(Base[Pidfd]):
    """Descriptors of tasks of the tree."""

    name = "pidfd"
    types: Sequence[str] = ("PIDFD",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK or view.link.startswith("pidfd:[")

    def collect(self, view: FdView, context: DumpContext) -> Pidfd:
        """Read fdinfo."""
        pid = info_number(view, "Pid")
        if pid == -1:
            raise refuse(REAPED, view.subject)
        if pid not in context.tasks:
            raise refuse(OUTSIDE, view.subject, f"task {pid}")
        return Pidfd(
            task=context.tasks[pid], flags=view.flags & FLAGS,
            ino=view.st_ino & 0xFFFFFFFF, owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Pidfd], images: ImageSink) -> None:
        """pidfd_entry."""
        for file_id, state in states.items():
            entry = pb.pidfd_entry(
                id=file_id, ino=state.ino, flags=state.flags, nspid=state.task,
                fown=encode_owner(state.owner),
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.PIDFD, id=file_id, pidfd=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Pidfd]:
        """Read them back. Raises BadImage; Refused for CRIU's pidfds of dead tasks."""
        states = {}
        for file_id, entry in images.files("PIDFD"):
            where = f"files.img, file {file_id}"
            if entry.nspid == -1:
                raise refuse(REAPED, where)
            if entry.nspid < 1:
                bad_image(f"a pidfd of task {entry.nspid}", where)
            states[file_id] = Pidfd(
                task=entry.nspid, flags=entry.flags & FLAGS, ino=entry.ino,
                owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Pidfd], context: PlanContext) -> Sequence[Op]:
        """Hold the place."""
        ops: list[Op] = []
        for file_id in created(states, context):
            ops += later.placeholder(context.fd(file_id), subject(context, file_id, LINK))
        return ops

    def late(self, states: Mapping[FileId, Pidfd], context: PlanContext) -> Sequence[LateOp]:
        """Open, once the task is there; signal owners."""
        late: list[LateOp] = []
        held = created(states, context)
        for file_id, state in held.items():
            create = Op(
                call="pidfd_open", args=(state.task, state.flags),
                subject=subject(context, file_id, f"pidfd of task {state.task}"),
            )  # fmt: skip
            late += later.reopen(file_id, create, context)
        return late + late_owners({i: s.owner for i, s in held.items()}, context)


KIND: FileKind[Pidfd] = PidfdKind()
