# SPDX-License-Identifier: Apache-2.0
"""Open files of /proc: global ones by path, those of a task once that task exists.

Facts (probed on v6.18):
- The link has the pid in the namespace of that /proc mount, never `self`. A file of a task stays
  bound to that task, not to the number: when the task is gone, reads give ESRCH, and the link ends
  in ` (deleted)`. Such a file is opened while a helper has the number for the moment.
- /proc/PID/fd of a task that is gone has not even a stat(2): ENOENT.
- Files of the root are opened by it before it forks, so they stay shared; those of other tasks are
  opened when these exist, and those of threads last.
- What a reader has not read yet is made when it reads: only the position is kept.
- CRIU keeps them as REG entries with their path.

Source: fs/proc/base.c (v6.18).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from torpor.engine.files.magics import PROC_MAGIC
from torpor.engine.files.regular import owner_kind
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

OF_TASK = re.compile(r"/proc/(\d+)(?:/task/(\d+))?(?:/|$)")
DELETED = " (deleted)"

DEAD = Limit(
    case="proc-of-dead-thread",
    what="a file of /proc of a thread that has ended while its task lives",
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
    """A file of procfs; its path says whether it is of a task. ``dead``: one that has ended."""

    path: str
    flags: int
    pos: int
    mode: int
    dead: bool = False

    @property
    def task(self) -> int | None:
        """Pid inside that the path names."""
        found = OF_TASK.match(self.path)
        return int(found[1]) if found else None

    @property
    def of_thread(self) -> bool:
        """Whether it is of a thread that is not the first of its task."""
        found = OF_TASK.match(self.path)
        return bool(found and found[2] and found[1] != found[2])

    def waits(self, context: PlanContext) -> bool:
        """Whether it cannot be opened before the root forks."""
        is_late = self.task is not None and (self.task != context.root or self.of_thread)
        return is_late and not self.dead


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
        if not view.link.startswith("/proc"):
            raise refuse(ELSEWHERE, view.subject)
        state = Proc(
            path=view.link.removesuffix(DELETED), flags=view.flags & ~int(O.CLOEXEC),
            pos=0 if view.flags & O.PATH else view.pos, mode=view.st_mode,
            dead=view.link.endswith(DELETED),
        )  # fmt: skip
        if state.task is None:
            return state
        lives = state.task in context.owners.values()
        is_dead = state.dead or view.path_stat(state.path) is None
        if lives and is_dead:
            raise refuse(DEAD, view.subject)
        if not lives and not is_dead:
            raise refuse(OUTSIDE, view.subject)
        return replace(state, dead=is_dead)

    def encode(self, states: Mapping[FileId, Proc], images: ImageSink) -> None:
        """reg_file_entry."""
        for file_id, state in states.items():
            entry = pb.reg_file_entry(
                id=file_id, flags=state.flags, pos=state.pos, fown=encode_owner(NOBODY),
                name=path_bytes(state.path), mode=state.mode,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.REG, id=file_id, reg=entry))
            if state.dead:
                remap = pb.remap_file_path_entry(orig_id=file_id, remap_id=state.task)
                remap.remap_type = pb.PROCFS
                images.add("remap-fpath", remap)

    def decode(self, images: ImageSource) -> Mapping[FileId, Proc]:
        """REG entries below /proc."""
        dead = {
            remap.orig_id
            for remap, _ in images.entries("remap-fpath")
            if remap.remap_type == pb.PROCFS
        }
        return {
            file_id: Proc(
                path=path_from(entry.name, f"files.img, file {file_id}"), dead=file_id in dead,
                flags=entry.flags & ~int(O.CLOEXEC), pos=entry.pos, mode=entry.mode,
            )
            for file_id, entry in images.files("REG")
            if owner_kind(entry) == "procfs"
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Proc], context: PlanContext) -> Sequence[Op]:
        """Open what belongs to no task, to the root, or to one that has ended."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, state.path)
            if state.waits(context):
                ops += later.placeholder(fd, what)
                continue
            if state.dead and state.task is not None:
                context.helpers.add(state.task)
            ops += place(_open(state, what), fd)
            if state.pos and not state.flags & O.PATH:
                ops.append(Op(call="lseek", args=(fd, state.pos, 0), subject=what))
        return ops

    def late(self, states: Mapping[FileId, Proc], context: PlanContext) -> Sequence[LateOp]:
        """Open files of tasks once these are there."""
        late: list[LateOp] = []
        for file_id, state in created(states, context).items():
            if state.waits(context):
                opened = _open(state, subject(context, file_id, state.path))
                ops = later.reopen(file_id, opened, context, state.pos)
                late += [replace(op, last=state.of_thread) for op in ops]
        return late


def _open(state: Proc, what: str) -> Op:
    return Op(
        call="openat", args=(AT_FDCWD, Data.path(state.path), state.flags | O.NOCTTY, 0),
        subject=what, remedy="mount /proc of the pid namespace where the tree is restored",
    )  # fmt: skip


KIND: FileKind[Proc] = ProcKind()
