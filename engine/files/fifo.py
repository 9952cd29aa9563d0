# SPDX-License-Identifier: Apache-2.0
"""Named pipes (fifos): opened by their path, filled again.

Facts (probed on v6.18):
- A fifo is an inode; all its openings share one buffer, which lives as long as one of them. Content
  and capacity are had as with a pipe.
- open(2) with O_RDONLY or O_WRONLY waits for the other side; O_RDWR does not (fifo(7)). So a
  guard is opened O_RDWR first: then none of the others waits, and content can be written.
- When the guard is closed again, the state of a fifo whose other side nobody has open (EOF,
  EPIPE) is as it was.
- Somebody outside of the tree may have it open as well. That cannot be seen from outside when both
  sides are open inside; when one side is missing poll(2) tells, and it is refused unless
  nothing is queued, in which case the new fifo meets whoever opens it.
- An unlinked one comes back as a ghost. CRIU names the path by a REG entry (regf_id).

Source: fifo(7); fs/pipe.c, fifo_open (v6.18).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files import ghost as ghosts
from torpor.engine.files import linked, regular, revive
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    F,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    file_type,
    late_owners,
    mapped,
    read_owner,
    status_flags,
    subject,
)
from torpor.engine.files.ghost import Ghost
from torpor.engine.files.pipe import (
    DEFAULT_BYTES,
    EMPTY,
    POLLERR,
    POLLHUP,
    Queue,
    decode_queues,
    encode_queue,
    fill,
)
from torpor.engine.files.regular import Regular
from torpor.engine.files.revive import Opening
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

NAME_ID = 0x40000000
"""Added to the id of a fifo: the id of the REG entry that names it."""

SHARED = Limit(
    case="fifo-shared",
    what="a task outside of the tree has the other side of the fifo open",
    remedy="checkpoint that task as well, or have it close the fifo",
)
LIMITS = (SHARED, linked.UNREACHABLE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo:
    """One description. ``queue`` and ``capacity`` are the same in all of a fifo's."""

    fifo_id: int
    path: str
    flags: int
    mode: int
    queue: Queue = EMPTY
    capacity: int = DEFAULT_BYTES
    ghost: Ghost | None = None
    owner: Owner = NOBODY


class FifoKind(Base[Fifo]):
    """Pipes with a path."""

    name = "fifo"
    types: Sequence[str] = ("FIFO",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """A fifo of a file system, not O_PATH."""
        is_fifo = file_type(view.st_mode) == FileType.FIFO and not view.link.startswith("pipe:[")
        return is_fifo and not view.flags & O.PATH

    def collect(self, view: FdView, context: DumpContext) -> Fifo:
        """Path, flags, and once for each fifo its content."""
        queue, capacity = _shared(view, context)
        path, is_named = regular.locate(view)
        if not is_named and view.st_nlink:
            raise refuse(linked.UNREACHABLE, view.subject)
        return Fifo(
            fifo_id=_number(view, context), path=path, flags=view.flags & ~int(O.CLOEXEC),
            mode=view.st_mode, queue=queue, capacity=capacity,
            ghost=None if is_named else ghosts.take(view, context, path),
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Fifo], images: ImageSink) -> None:
        """fifo_entry and the REG entry of its name; fifo-data once for each fifo."""
        named = {}
        written: set[int] = set()
        for file_id, state in states.items():
            name = FileId(file_id | NAME_ID)
            entry = pb.fifo_entry(id=file_id, pipe_id=state.fifo_id, regf_id=name)
            images.add("files", pb.file_entry(type=pb.FIFO, id=file_id, fifo=entry))
            named[name] = Regular(path=state.path, flags=state.flags, mode=state.mode,
                                  owner=state.owner, ghost=state.ghost)  # fmt: skip
            if state.fifo_id not in written:
                written.add(state.fifo_id)
                encode_queue("fifo-data", state.fifo_id, state.queue, state.capacity, images)
        regular.KIND.encode(named, images)

    def decode(self, images: ImageSource) -> Mapping[FileId, Fifo]:
        """Read fifos, names and content back."""
        data = decode_queues("fifo-data", images)
        entries = list(images.files("FIFO"))
        if not entries:
            return {}
        wanted = {entry.regf_id for _, entry in entries}
        names = regular.with_remaps(
            {i: regular.parse(i, m, images) for i, m in images.files("REG") if i in wanted}, images
        )
        states = {}
        for file_id, entry in entries:
            named = names.get(FileId(entry.regf_id))
            if named is None:
                bad_image(f"fifo {file_id} has no name", "files.img")
            queue, capacity = data.get(entry.pipe_id, (EMPTY, DEFAULT_BYTES))
            states[file_id] = Fifo(
                fifo_id=entry.pipe_id, path=named.path, flags=named.flags,
                mode=named.mode or FileType.FIFO | 0o600, queue=queue, capacity=capacity,
                ghost=named.ghost, owner=named.owner,
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Fifo], context: PlanContext) -> Sequence[Op]:
        """Guard, openings, content, and the guard closed again."""
        fifos: dict[int, dict[FileId, Fifo]] = {}
        for file_id, state in created(states, context).items():
            fifos.setdefault(state.fifo_id, {})[file_id] = state
        ops: list[Op] = []
        for openings in fifos.values():
            ops += _plan_fifo(openings, context)
        return ops

    def late(self, states: Mapping[FileId, Fifo], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _number(view: FdView, context: DumpContext) -> int:
    """Small number of a fifo: inodes of several devices may be equal, and 64 bits wide."""
    known: dict[tuple[int, int], int] = context.cache.setdefault("fifos", {})
    return known.setdefault((view.st_dev, view.st_ino), len(known) + 1)


def _shared(view: FdView, context: DumpContext) -> tuple[Queue, int]:
    known: dict[tuple[int, int], tuple[Queue, int]]
    known = context.cache.setdefault("fifo-content", {})
    key = (view.st_dev, view.st_ino)
    if key not in known:
        views = [v for v in context.views.values() if (v.st_dev, v.st_ino) == key] or [view]
        views = [v for v in views if not v.flags & O.PATH]
        readers = [v for v in views if v.flags & O.ACCMODE != O.WRONLY]
        writers = [v for v in views if v.flags & O.ACCMODE]
        queue = Queue.of((readers or views)[0].pipe_pieces())
        is_outer = (not readers and not writers[0].poll_events() & POLLERR) or (
            not writers and not readers[0].poll_events() & POLLHUP
        )
        if is_outer and queue.content:
            raise refuse(SHARED, view.subject)
        known[key] = queue, view.fcntl(F.GETPIPE_SZ)
    return known[key]


def _plan_fifo(openings: Mapping[FileId, Fifo], context: PlanContext) -> list[Op]:
    file_id, state = next(iter(openings.items()))
    path, spare = mapped(state.path, context), context.spare_fd
    what = subject(context, file_id, state.path)
    flags = {i: s.flags & ~int(O.ASYNC) for i, s in openings.items()}
    if state.ghost is not None:
        asked = [Opening(fd=spare, flags=int(O.RDWR), subject=what)] + [
            Opening(fd=context.fd(i), flags=f, subject=what) for i, f in flags.items()
        ]
        ops = revive.plan(state.ghost, {path: asked}, spare + 1)
    else:
        ops = _open(path, int(O.RDWR), spare, what)
        for i, f in flags.items():
            one = openings[i].path
            ops += _open(mapped(one, context), f, context.fd(i), subject(context, i, one))
    ops += fill(spare, state.queue, state.capacity, what)
    ops.append(Op(call="close", args=(spare,), subject=what, note="the guard"))
    for i, s in openings.items():
        ops += status_flags(context.fd(i), s.flags, flags[i], subject(context, i, s.path))
    return ops


def _open(path: str, flags: int, fd: int, what: str) -> list[Op]:
    opened = Op(
        call="openat", args=(AT_FDCWD, Data.path(path), flags, 0), subject=what,
        remedy=f"make the fifo {path} before the restore", yields=Slot(f"open{fd}"),
    )  # fmt: skip
    return place(opened, fd)


KIND: FileKind[Fifo] = FifoKind()
