# SPDX-License-Identifier: Apache-2.0
"""Open files of /proc: global ones by path, those of a task once that task exists.

Facts (probed on v6.18):
- The link has the pid in the namespace of that /proc mount, never `self`. A file of a task stays
  bound to that task, not to the number: when the task is gone, reads give ESRCH.
- What a reader has not read yet is made when it reads: only the position is kept.
- CRIU keeps them as REG entries with their path.

Source: fs/proc/base.c (v6.18).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files import later
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    Base,
    O,
    created,
    encode_owner,
    path_bytes,
    path_from,
    subject,
)
from torpor.engine.files.regular import PROC_MAGIC, owner_kind
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
from torpor.engine.program.ops import Data, Op, place

OF_TASK = re.compile(r"/proc/(\d+)(?:/|$)")

DEAD = Limit(
    case="proc-of-dead-task",
    what="a file of /proc of a task that has ended",
    remedy="close it before the checkpoint",
)
OUTSIDE = Limit(
    case="proc-of-outside",
    what="a file of /proc of a task outside of the tree",
    remedy="close it before the checkpoint, or checkpoint that task as well",
)
ELSEWHERE = Limit(
    case="proc-elsewhere",
    what="a file of a procfs that is not mounted at /proc",
    remedy="open it by /proc, or close it before the checkpoint",
)
LIMITS = (DEAD, OUTSIDE, ELSEWHERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proc:
    """A file of procfs; its path says whether it is of a task."""

    path: str
    flags: int
    pos: int
    mode: int

    @property
    def task(self) -> int | None:
        """Pid inside that the path names."""
        found = OF_TASK.match(self.path)
        return int(found[1]) if found else None


class ProcKind(Base[Proc]):
    """Files and directories of procfs."""

    name = "procfs"
    types: Sequence[str] = ("REG",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the file system."""
        return view.fs_magic == PROC_MAGIC

    def collect(self, view: FdView, context: DumpContext) -> Proc:
        """Path and position."""
        if view.link.endswith(" (deleted)"):
            raise refuse(DEAD, view.subject)
        if not view.link.startswith("/proc"):
            raise refuse(ELSEWHERE, view.subject)
        state = Proc(
            path=view.link, flags=view.flags & ~int(O.CLOEXEC), pos=view.pos, mode=view.st_mode
        )
        if state.task is not None and state.task not in context.tasks.values():
            raise refuse(OUTSIDE, view.subject)
        return state

    def encode(self, states: Mapping[FileId, Proc], images: ImageSink) -> None:
        """reg_file_entry."""
        for file_id, state in states.items():
            entry = pb.reg_file_entry(
                id=file_id, flags=state.flags, pos=state.pos, fown=encode_owner(NOBODY),
                name=path_bytes(state.path), mode=state.mode,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.REG, id=file_id, reg=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Proc]:
        """REG entries below /proc."""
        return {
            file_id: Proc(
                path=path_from(entry.name, f"files.img, file {file_id}"),
                flags=entry.flags & ~int(O.CLOEXEC), pos=entry.pos, mode=entry.mode,
            )
            for file_id, entry in images.files("REG")
            if owner_kind(entry) == "procfs"
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Proc], context: PlanContext) -> Sequence[Op]:
        """Open what belongs to no task."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, state.path)
            if state.task is not None:
                ops += later.placeholder(fd, what)
                continue
            ops += place(_open(state, what), fd)
            if state.pos and not state.flags & O.PATH:
                ops.append(Op(call="lseek", args=(fd, state.pos, 0), subject=what))
        return ops

    def late(self, states: Mapping[FileId, Proc], context: PlanContext) -> Sequence[LateOp]:
        """Open files of tasks once these are there."""
        late: list[LateOp] = []
        for file_id, state in created(states, context).items():
            if state.task is not None:
                pos = 0 if state.flags & O.PATH else state.pos
                opened = _open(state, subject(context, file_id, state.path))
                late += later.reopen(file_id, opened, context, pos)
        return late


def _open(state: Proc, what: str) -> Op:
    return Op(
        call="openat", args=(AT_FDCWD, Data.path(state.path), state.flags | O.NOCTTY, 0),
        subject=what, remedy="mount /proc of the pid namespace where the tree is restored",
    )  # fmt: skip


KIND: FileKind[Proc] = ProcKind()
