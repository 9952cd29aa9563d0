# SPDX-License-Identifier: Apache-2.0
"""POSIX message queues (mq_overview(7)): opened again by name.

Facts (probed on v6.18):
- The link is the name (`/jobs`), or the path below /dev/mqueue; ` (deleted)` behind it when it is
  gone.
- A queue with a name lives in its ipc namespace as long as that: what is queued stays there while
  the tree is away. So only the name is needed; an empty one is made again where it is missing.
- Nothing can be looked at without taking it out: content of a deleted queue is refused.
- read(2) gives `QSIZE:.. NOTIFY:.. SIGNO:.. NOTIFY_PID:..`; NOTIFY 0 is SIGEV_SIGNAL, 1 SIGEV_NONE,
  2 SIGEV_THREAD. The value that the signal has (sigev_value) cannot be read. Only the task that
  waits for it can ask for it again, and each close of the queue by it takes that back.
- mq_open(2) leaves no O_LARGEFILE in the flags, open(2) below /dev/mqueue does.
- CRIU has no message for it: an EXT entry, and the state in torpor.json.

Source: ipc/mqueue.c, mqueue_read_file (v6.18).
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torpor.engine.errors import Bug
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    Base,
    FileType,
    O,
    bad_image,
    created,
    encode_owner,
    file_type,
    status_flags,
    subject,
)
from torpor.engine.files.magics import MQUEUE_MAGIC
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

DELETED = " (deleted)"
ATTRIBUTES = struct.Struct("<8q")
SIGEVENT = struct.Struct("<qii48x")
NOTICE = re.compile(rb"QSIZE:(\d+)\s+NOTIFY:(\d+)\s+SIGNO:(\d+)\s+NOTIFY_PID:(\d+)")
NOTICE_BYTES = 200
BY_SIGNAL, BY_NOTHING, BY_THREAD = 0, 1, 2

CONTENT = Limit(
    case="message-queue-content",
    what="a deleted message queue holds messages, which cannot be looked at",
    remedy="have the program receive them, or unlink the queue (mq_unlink) when it ends",
)
THREAD = Limit(
    case="message-queue-thread",
    what="a message queue that starts a thread for a message (SIGEV_THREAD)",
    remedy="use SIGEV_SIGNAL, or wait in mq_receive",
)
OUTSIDE = Limit(
    case="message-queue-outside",
    what="a message queue that tells a task outside of the tree of messages (mq_notify)",
    remedy="checkpoint that task as well",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Who is told of the next message, and how."""

    task: int
    how: int
    signal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """``inode`` tells queues apart; ``maximum`` messages of ``size`` bytes."""

    name: str
    inode: int
    flags: int
    mode: int
    maximum: int
    size: int
    is_empty: bool
    is_deleted: bool = False
    notice: Notice | None = None


class QueueKind(Base[Queue]):
    """Descriptors of mq_open(3)."""

    name = "message queue"
    types: Sequence[str] = ("EXT",)
    limits: Sequence[Limit] = (CONTENT, THREAD, OUTSIDE)

    def matches(self, view: FdView) -> bool:
        """A file of mqueuefs; its directory is not one."""
        is_file = file_type(view.st_mode) == FileType.REGULAR
        return view.fs_magic == MQUEUE_MAGIC and is_file and not view.flags & O.PATH

    def collect(self, view: FdView, context: DumpContext) -> Queue:
        """Name, attributes, who is told."""
        found = NOTICE.match(view.read_range(0, NOTICE_BYTES))
        if found is None:
            raise Bug("a message queue says nothing of itself", subject=view.subject)
        queued, how, signal, task = (int(number) for number in found.groups())
        maximum, size, current = view.queue_attributes()
        is_deleted = not view.st_nlink
        if is_deleted and (queued or current):
            raise refuse(CONTENT, view.subject, f"{current} messages, {queued} bytes")
        return Queue(
            name=PurePosixPath(view.link.removesuffix(DELETED)).name, inode=view.st_ino,
            flags=view.flags & ~int(O.CLOEXEC), mode=view.st_mode & 0o7777, maximum=maximum,
            size=size, is_empty=not current, is_deleted=is_deleted,
            notice=_notice(view, context, how, signal, task) if task else None,
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Queue], images: ImageSink) -> None:
        """ext_file_entry; all else in torpor.json."""
        for file_id, state in states.items():
            entry = pb.ext_file_entry(id=file_id, fown=encode_owner(NOBODY))
            images.add("files", pb.file_entry(type=pb.EXT, id=file_id, ext=entry))
            notice = state.notice
            images.extra("mqueue", str(file_id), {
                "name": state.name, "inode": state.inode, "flags": state.flags,
                "mode": state.mode, "maximum": state.maximum, "size": state.size,
                "is_empty": state.is_empty, "is_deleted": state.is_deleted,
                "notice": [notice.task, notice.how, notice.signal] if notice else None,
            })  # fmt: skip

    def decode(self, images: ImageSource) -> Mapping[FileId, Queue]:
        """EXT entries of which torpor.json has a queue. Raises BadImage."""
        states = {}
        for file_id, _ in images.files("EXT"):
            kept = images.extra("mqueue", str(file_id))
            if kept is not None:
                states[file_id] = _decode(kept, f"torpor.json, mqueue {file_id}")
        return states

    def plan(self, states: Mapping[FileId, Queue], context: PlanContext) -> Sequence[Op]:
        """Open by name; a deleted one is made, opened as often as asked, and deleted."""
        ops: list[Op] = []
        queues: dict[int, dict[FileId, Queue]] = {}
        for file_id, state in created(states, context).items():
            queues.setdefault(state.inode, {})[file_id] = state
        for openings in queues.values():
            ops += _plan_queue(openings, context)
        return ops

    def late(self, states: Mapping[FileId, Queue], context: PlanContext) -> Sequence[LateOp]:
        """mq_notify by the task that waits, once for each queue."""
        late: list[LateOp] = []
        done: set[int] = set()
        for file_id, state in created(states, context).items():
            holders = context.holders.get(file_id, ())
            for holder in holders:
                if state.notice and holder.task == state.notice.task and state.inode not in done:
                    done.add(state.inode)
                    op = _notify(state.notice, holder.fd)
                    late.append(LateOp(task=holder.task, op=op, last=True))
        return late


def _notice(view: FdView, context: DumpContext, how: int, signal: int, task: int) -> Notice:
    if how == BY_THREAD:
        raise refuse(THREAD, view.subject)
    if task not in context.tasks:
        raise refuse(OUTSIDE, view.subject, f"task {task}")
    if how == BY_SIGNAL:
        context.warn(f"{view.subject}: the value of its signal comes back as 0")
    return Notice(task=context.tasks[task], how=how, signal=signal)


def _decode(kept: Mapping[str, Any], where: str) -> Queue:
    try:
        notice = kept["notice"]
        state = Queue(
            name=str(kept["name"]), inode=int(kept["inode"]), flags=int(kept["flags"]),
            mode=int(kept["mode"]), maximum=int(kept["maximum"]), size=int(kept["size"]),
            is_empty=bool(kept["is_empty"]), is_deleted=bool(kept["is_deleted"]),
            notice=Notice(task=int(notice[0]), how=int(notice[1]), signal=int(notice[2]))
            if notice else None,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        bad_image("is no message queue", where, str(error))
    if not state.name or "/" in state.name or "\0" in state.name:
        bad_image(f"{state.name!r} is no name of a message queue", where)
    return state


def _plan_queue(openings: Mapping[FileId, Queue], context: PlanContext) -> list[Op]:
    state, spare = next(iter(openings.values())), context.spare_fd
    what = subject(context, next(iter(openings)), f"/{state.name}")
    name, made = Data.path(state.name), Slot(f"queue{state.inode}")
    flags = int(O.RDWR)
    if state.is_empty:
        flags |= int(O.CREAT | O.EXCL if state.is_deleted else O.CREAT)
    asked = ATTRIBUTES.pack(0, state.maximum, state.size, 0, 0, 0, 0, 0)
    attributes = Data(asked, text=f"{state.maximum} messages of {state.size} bytes")
    opened = Op(call="mq_open", args=(name, flags, state.mode, attributes), subject=what,
                yields=made, remedy=f"the message queue /{state.name} must be there as at the "
                "checkpoint" if not state.is_deleted else
                f"no other message queue may have the name /{state.name}")  # fmt: skip
    ops = place(opened, spare)
    for file_id, opening in openings.items():
        ops += _open(opening, context.fd(file_id), spare, what)
    if state.is_deleted:
        ops.append(Op(call="mq_unlink", args=(name,), subject=what))
    ops.append(Op(call="close", args=(spare,), subject=what))
    return ops


def _open(state: Queue, fd: int, spare: int, what: str) -> list[Op]:
    """As it was opened: mq_open(2) sets no O_LARGEFILE, open(2) does."""
    kept = state.flags & ~int(O.ASYNC)
    by_path = (AT_FDCWD, Data.path(f"/proc/self/fd/{spare}"), kept, 0)
    by_name = (Data.path(state.name), kept, 0, 0)
    is_by_path = bool(state.flags & O.LARGEFILE)
    again = Op(call="openat" if is_by_path else "mq_open", args=by_path if is_by_path else by_name,
               subject=what, yields=Slot(f"open{fd}"),
               remedy="let the user that restores open the queue")  # fmt: skip
    return [*place(again, fd), *status_flags(fd, state.flags, kept, what)]


def _notify(notice: Notice, fd: int) -> Op:
    event = Data(SIGEVENT.pack(0, notice.signal, notice.how), text=f"signal {notice.signal}")
    return Op(call="mq_notify", args=(fd, event), subject=f"fd {fd}", expect=Expect.OK,
              note="is told of the next message")  # fmt: skip


KIND: FileKind[Queue] = QueueKind()
