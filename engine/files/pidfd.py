# SPDX-License-Identifier: Apache-2.0
"""pidfd_open(2): a descriptor of a task.

Facts (probed on v6.18):
- The link is `anon_inode:[pidfd]`; fdinfo has `Pid` (in the namespace of the /proc that is read;
  -1 when the task was reaped, 0 when it is not in that namespace) and `NSpid`.
- PIDFD_NONBLOCK is O_NONBLOCK, PIDFD_THREAD is O_EXCL; both are kept in the flags.
- A pidfd can only be opened when its task exists: every holder does so late (`later.py`); that of
  a thread when all threads are there.
- PIDFD_GET_INFO tells the wait status of a task that was reaped. Its pidfd comes back as that of
  a short-lived child of the root which ends alike; pidfds of one task have one inode number.
- What cannot be set back: the pid of a task that was reaped, which no pidfd tells either.

Source: kernel/pid.c, pidfd_create; fs/pidfs.c (v6.18).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torpor.engine.errors import KernelError
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

PIDFD_GET_INFO, INFO_BYTES, EXIT_CODE_AT, INFO_EXIT = 0xC040FF0B, 64, 60, 8
REAPED = -1
"""CRIU's pid of a task that was reaped."""
LINK = "anon_inode:[pidfd]"
FLAGS = int(O.NONBLOCK | O.EXCL)
"""What pidfd_open(2) takes; CRIU's images have these only."""

OUTSIDE = Limit(
    case="pidfd-outside",
    what="a pidfd of a task outside of the tree",
    remedy="checkpoint that task as well, or close the pidfd",
)
LIMITS = (OUTSIDE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pidfd:
    """``task`` is the pid inside; ``flags`` are those of pidfd_open(2).

    ``status`` is the wait status of a task that was reaped.
    """

    task: int
    flags: int
    ino: int = 0
    status: int = 0
    is_thread: bool = False
    """Of a thread that is not the main one."""
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
        task = REAPED if pid == -1 else context.tasks.get(pid, context.threads.get(pid))
        if task is None:
            raise refuse(OUTSIDE, view.subject, f"task {pid}")
        return Pidfd(
            task=task, flags=view.flags & FLAGS, ino=view.st_ino & 0xFFFFFFFF,
            status=_status(view) if task == REAPED else 0,
            is_thread=task != REAPED and pid not in context.tasks,
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Pidfd], images: ImageSink) -> None:
        """pidfd_entry."""
        for file_id, state in states.items():
            entry = pb.pidfd_entry(
                id=file_id, ino=state.ino, flags=state.flags, nspid=state.task,
                fown=encode_owner(state.owner),
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.PIDFD, id=file_id, pidfd=entry))
            if state.status or state.is_thread:
                facts = {"status": state.status, "thread": state.is_thread}
                images.extra("pidfd", str(file_id), facts)

    def decode(self, images: ImageSource) -> Mapping[FileId, Pidfd]:
        """Read them back. Raises BadImage."""
        states = {}
        for file_id, entry in images.files("PIDFD"):
            where = f"files.img, file {file_id}"
            facts = images.extra("pidfd", str(file_id)) or {}
            if entry.nspid < 1 and entry.nspid != REAPED:
                bad_image(f"a pidfd of task {entry.nspid}", where)
            states[file_id] = Pidfd(
                task=entry.nspid, flags=entry.flags & FLAGS, ino=entry.ino,
                status=int(facts.get("status", 0)) & 0xFFFF,
                is_thread=bool(facts.get("thread", False)), owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Pidfd], context: PlanContext) -> Sequence[Op]:
        """Hold the place; `restore/pidfds.py` makes those of ended tasks."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            if state.task == REAPED:
                continue
            ops += later.placeholder(context.fd(file_id), subject(context, file_id, LINK))
        return ops

    def late(self, states: Mapping[FileId, Pidfd], context: PlanContext) -> Sequence[LateOp]:
        """Open, once the task is there; signal owners."""
        held = created(states, context)
        owners = late_owners({i: s.owner for i, s in held.items()}, context)
        return _opened({i: s for i, s in held.items() if s.task != REAPED}, context) + owners


def reaped(states: Mapping[FileId, Pidfd]) -> dict[int, dict[FileId, Pidfd]]:
    """Pidfds of tasks that have ended: all of one task under its inode number."""
    found: dict[int, dict[FileId, Pidfd]] = {}
    for file_id, state in states.items():
        if state.task == REAPED:
            found.setdefault(state.ino, {})[file_id] = state
    return found


def _opened(states: Mapping[FileId, Pidfd], context: PlanContext) -> list[LateOp]:
    late: list[LateOp] = []
    for file_id, state in states.items():
        create = Op(
            call="pidfd_open", args=(state.task, state.flags),
            subject=subject(context, file_id, f"pidfd of task {state.task}"),
        )  # fmt: skip
        opened = later.reopen(file_id, create, context)
        late += [replace(one, last=state.is_thread) for one in opened]
    return late


def _status(view: FdView) -> int:
    """Wait status of a task that was reaped; 0 where the kernel does not tell (before v6.15)."""
    asked = struct.pack("<Q", INFO_EXIT).ljust(INFO_BYTES, b"\0")
    try:
        told = view.ioctl(PIDFD_GET_INFO, asked)
    except KernelError:
        return 0
    (mask,) = struct.unpack_from("<Q", told)
    (status,) = struct.unpack_from("<i", told, EXIT_CODE_AT)
    return status & 0xFFFF if mask & INFO_EXIT else 0


KIND: FileKind[Pidfd] = PidfdKind()
