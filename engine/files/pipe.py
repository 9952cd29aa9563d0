# SPDX-License-Identifier: Apache-2.0
"""Pipes: both ends, what is queued in them, and pipes that lead out of the tree.

Facts (probed on v6.18):
- The link is `pipe:[inode]`; descriptions with the same inode are of the same pipe. There may be
  more than two: opening /proc/PID/fd/N makes a new one, also O_RDWR.
- Content is had by tee(2) without consuming it; capacity by F_GETPIPE_SZ, set by F_SETPIPE_SZ
  (above /proc/sys/fs/pipe-max-size only with CAP_SYS_RESOURCE).
- poll(2) tells whether the other end is open anywhere: POLLERR on a write end without readers,
  POLLHUP on a read end without writers. So "the other end is outside of the tree" is told
  from "the other end is closed", and the latter comes back as such.
- O_DIRECT on a write end makes packets of up to a page; read(2) returns at the end of one. tee
  keeps the borders. What was written as a stream before the first packet is read together with it.
  CRIU's image has no borders: they are in torpor.json.
- The stdio of a container leads to the runtime. It is bound to the new container's stdio, with
  every other description of the same pipe (/dev/stdout opened by name).
- What cannot be set back: the inode number, how the bytes lay in the pipe's buffers.

Source: pipe(7); fs/pipe.c, pipe_poll (v6.18).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.asking import Questions, fcntl, pipe_content
from torpor.engine.errors import Refused
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER,
    OWNER_OUTSIDE,
    QUEUED,
    Base,
    F,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    file_type,
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
from torpor.engine.program.ops import Data, Expect, Op, Slot, move, place

DEFAULT_BYTES = 65536
PIECE_BYTES = 1 << 18
SMALL_BYTES = 256
"""As much is asked together with all else."""
POLLERR, POLLHUP = 8, 16

OUTSIDE = Limit(
    case="other-end-outside",
    what="the other end of the pipe is held by a task outside of the tree",
    remedy="checkpoint that task as well, or redirect the descriptor to a file",
)
NO_REPLACEMENT = Limit(
    case="no-replacement",
    what="the pipe led out of the tree and nothing is given in its place",
    remedy="name a descriptor for it with --inherit-fd fd[N]:pipe:[INODE]",
)
LIMITS = (OUTSIDE, NO_REPLACEMENT, OWNER_OUTSIDE)
QUESTIONS = Questions(*OWNER, *QUEUED, fcntl(F.GETPIPE_SZ), pipe_content(SMALL_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What is queued in a pipe or fifo; ``packets`` are sizes, empty for a stream."""

    content: bytes = b""
    packets: tuple[int, ...] = ()

    @staticmethod
    def of(pieces: Sequence[bytes]) -> "Queue":
        """From what single reads returned."""
        sizes = tuple(map(len, pieces))
        return Queue(content=b"".join(pieces), packets=sizes if len(sizes) > 1 else ())

    def writes(self) -> Iterable[bytes]:
        """What single writes make it of."""
        sizes = self.packets or (PIECE_BYTES,) * -(-len(self.content) // PIECE_BYTES)
        start = 0
        for size in sizes:
            yield self.content[start : start + size]
            start += size


EMPTY = Queue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """One description of a pipe.

    ``is_outer``: its other end is outside; ``stdio``: it is that number of the container.
    ``queue`` and ``capacity`` are the pipe's, the same in all of its descriptions.
    """

    pipe_id: int
    flags: int
    queue: Queue = EMPTY
    capacity: int = DEFAULT_BYTES
    is_outer: bool = False
    stdio: int | None = None
    owner: Owner = NOBODY

    @property
    def key(self) -> str:
        """Name under which a caller gives a replacement."""
        return f"pipe:[{self.pipe_id}]"

    @property
    def can_read(self) -> bool:
        """Not a write end."""
        return self.flags & O.ACCMODE != O.WRONLY

    @property
    def can_write(self) -> bool:
        """Not a read end."""
        return self.flags & O.ACCMODE != 0


class PipeKind(Base[Pipe]):
    """Pipes without a name."""

    name = "pipe"
    types: Sequence[str] = ("PIPE",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """A pipe of pipefs, not a fifo, not O_PATH."""
        is_pipe = file_type(view.st_mode) == FileType.FIFO and view.link.startswith("pipe:[")
        return is_pipe and not view.flags & O.PATH

    def questions(self, view: FdView) -> Questions:
        """Its size, what is queued, whether the other end is there."""
        del view
        return QUESTIONS

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """When what is queued was read, which is never asked of a write end."""
        is_known = view.flags & O.ACCMODE == O.WRONLY or view.is_queue_told
        return is_known and super().suffice(view, context)

    def collect(self, view: FdView, context: DumpContext) -> Pipe:
        """Read the state; the content and where it leads once for each pipe."""
        pipe = _shared(view, context)
        return Pipe(
            pipe_id=view.st_ino, flags=view.flags & ~int(O.CLOEXEC), queue=pipe.queue,
            capacity=pipe.capacity, is_outer=pipe.is_outer, stdio=pipe.stdio,
            owner=read_owner(view, context),
        )  # fmt: skip

    def check(self, states: Mapping[FileId, Pipe], context: DumpContext) -> Iterable[Refused]:
        """Pipes of a tree that is no container must have both ends in it."""
        for file_id, state in states.items():
            if state.is_outer and state.stdio is None:
                view = context.views[file_id]
                if context.half_pipes:
                    context.warn(
                        f"{view.subject}: its other end is outside of the tree and is lost, "
                        f"unless the restore is given --inherit-fd fd[N]:pipe[{state.pipe_id}]"
                    )
                    continue
                others = [h for i in _same(states, state) for h in context.holders.get(i, ())]
                held = ", ".join(f"task {h.task} fd {h.fd}" for h in others)
                yield refuse(OUTSIDE, view.subject, f"inside it is {held}")

    def encode(self, states: Mapping[FileId, Pipe], images: ImageSink) -> None:
        """pipe_entry for each, pipe_data_entry for each pipe."""
        written: set[int] = set()
        for file_id, state in states.items():
            entry = pb.pipe_entry(
                id=file_id, pipe_id=state.pipe_id, flags=state.flags,
                fown=encode_owner(state.owner),
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.PIPE, id=file_id, pipe=entry))
            if state.pipe_id in written:
                continue
            written.add(state.pipe_id)
            encode_queue("pipes-data", state.pipe_id, state.queue, state.capacity, images)
            if state.is_outer:
                images.extra("pipe", str(state.pipe_id), {"outer": True, "stdio": state.stdio})

    def decode(self, images: ImageSource) -> Mapping[FileId, Pipe]:
        """Read pipes and their content back."""
        data = decode_queues("pipes-data", images)
        states = {}
        for file_id, entry in images.files("PIPE"):
            extra = images.extra("pipe", str(entry.pipe_id)) or {}
            queue, capacity = data.get(entry.pipe_id, (EMPTY, DEFAULT_BYTES))
            states[file_id] = Pipe(
                pipe_id=entry.pipe_id, flags=entry.flags & ~int(O.CLOEXEC), queue=queue,
                capacity=capacity, is_outer=bool(extra.get("outer")), stdio=extra.get("stdio"),
                owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Pipe], context: PlanContext) -> Sequence[Op]:
        """One pipe2 for each pipe, or its replacement."""
        held = created(states, context)
        pipes: dict[int, dict[FileId, Pipe]] = {}
        for file_id, state in held.items():
            pipes.setdefault(state.pipe_id, {})[file_id] = state
        ops: list[Op] = []
        for ends in pipes.values():
            ops += _plan_pipe(ends, context)
        return ops

    def late(self, states: Mapping[FileId, Pipe], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def encode_queue(image: str, number: int, queue: Queue, capacity: int, images: ImageSink) -> None:
    """pipe_data_entry, of pipes-data or fifo-data."""
    data = pb.pipe_data_entry(pipe_id=number, bytes=len(queue.content), size=capacity)
    images.add(image, data, queue.content)
    if queue.packets:
        images.extra(image, str(number), list(queue.packets))


def decode_queues(image: str, images: ImageSource) -> dict[int, tuple[Queue, int]]:
    """Content and capacity by the number of the pipe. Raises BadImage."""
    found = {}
    for entry, content in images.entries(image):
        packets = tuple(map(int, images.extra(image, str(entry.pipe_id)) or ()))
        capacity = entry.size or DEFAULT_BYTES
        is_whole = not packets or (sum(packets) == len(content) and min(packets) > 0)
        if len(content) > capacity or not is_whole:
            bad_image(f"pipe {entry.pipe_id} holds more than its size", f"{image}.img")
        found[entry.pipe_id] = Queue(content=content, packets=packets), capacity
    return found


def fill(writer: int | Slot, queue: Queue, capacity: int, what: str) -> list[Op]:
    """Give a pipe its size and content; with packets its writer is left with O_DIRECT."""
    ops = []
    if capacity != DEFAULT_BYTES:
        ops.append(
            Op(call="fcntl", args=(writer, F.SETPIPE_SZ, capacity), subject=what,
               expect=Expect.EQUAL, want=capacity,
               remedy=f"raise /proc/sys/fs/pipe-max-size to {capacity} at least")
        )  # fmt: skip
    if queue.packets:
        ops.append(Op(call="fcntl", args=(writer, F.SETFL, int(O.DIRECT)), subject=what))
    return ops + [
        Op(call="write", args=(writer, Data(piece), len(piece)), subject=what,
           expect=Expect.EQUAL, want=len(piece), note="what was queued")
        for piece in queue.writes()
    ]  # fmt: skip


def _same(states: Mapping[FileId, Pipe], state: Pipe) -> list[FileId]:
    return [i for i, other in states.items() if other.pipe_id == state.pipe_id]


def _shared(view: FdView, context: DumpContext) -> Pipe:
    """What all descriptions of the pipe have in common."""
    known: dict[int, Pipe] = context.cache.setdefault("pipes", {})
    if view.st_ino not in known:
        ends = _ends(context).get(view.link, {})
        views = list(ends.values()) or [view]
        readers = [v for v in views if v.flags & O.ACCMODE != O.WRONLY]
        writers = [v for v in views if v.flags & O.ACCMODE]
        is_outer = (not readers and not writers[0].poll_events() & POLLERR) or (
            not writers and not readers[0].poll_events() & POLLHUP
        )
        known[view.st_ino] = Pipe(
            pipe_id=view.st_ino, flags=0,
            queue=Queue.of(readers[0].pipe_pieces()) if readers and not is_outer else EMPTY,
            capacity=view.fcntl(F.GETPIPE_SZ), is_outer=is_outer,
            stdio=_stdio(list(ends), context) if is_outer else None,
        )  # fmt: skip
    return known[view.st_ino]


def _ends(context: DumpContext) -> Mapping[str, Mapping[FileId, FdView]]:
    """Descriptions of pipes by their links."""
    known: dict[str, dict[FileId, FdView]] | None = context.cache.get("pipe.ends")
    if known is None:
        known = context.cache["pipe.ends"] = {}
        for file_id, view in context.views.items():
            if view.link.startswith("pipe:["):
                known.setdefault(view.link, {})[file_id] = view
    return known


def _stdio(ids: Sequence[FileId], context: DumpContext) -> int | None:
    """The lowest of 0, 1, 2 that a container's tasks have for one of the descriptions."""
    if not context.container or not any(context.is_stdio(i) for i in ids):
        return None
    numbers = [h.fd for i in ids if context.is_stdio(i) for h in context.holders[i] if h.fd <= 2]
    return min(numbers)


def _plan_pipe(ends: Mapping[FileId, Pipe], context: PlanContext) -> list[Op]:
    state = next(iter(ends.values()))
    replacement = context.inherit.get(state.key)
    if replacement is None and state.is_outer and state.stdio is not None:
        if state.stdio in context.stdio:
            return _bind_stdio(ends, context)
        raise refuse(NO_REPLACEMENT, subject(context, next(iter(ends)), state.key))
    if replacement is not None:
        return [op for i, end in ends.items() for op in _bind(i, end, replacement, context)]
    return _make(ends, context)


def _bind_stdio(ends: Mapping[FileId, Pipe], context: PlanContext) -> list[Op]:
    """What was 1 is the new 1, and so on; the other descriptions follow ``stdio``."""
    ops = []
    for file_id, end in ends.items():
        numbers = [h.fd for h in context.holders.get(file_id, ()) if h.fd in context.stdio]
        assert end.stdio is not None
        number = min(numbers, default=end.stdio)
        ops += _bind(file_id, end, context.stdio[number], context)
    return ops


def _bind(file_id: FileId, end: Pipe, source: int, context: PlanContext) -> list[Op]:
    fd = context.fd(file_id)
    return [
        Op(call="dup3", args=(source, fd, 0), expect=Expect.EQUAL, want=fd,
           subject=subject(context, file_id, end.key), note="bound to what takes its place")
    ]  # fmt: skip


def _make(ends: Mapping[FileId, Pipe], context: PlanContext) -> list[Op]:
    """A new pipe, filled; the first description of each direction is the end pipe2 gave."""
    state = next(iter(ends.values()))
    what = subject(context, next(iter(ends)), state.key)
    number = f"pipe{state.pipe_id}"
    both, reader, writer = Data.room(8), Slot(f"{number}.r"), Slot(f"{number}.w")
    ops = [
        Op(call="pipe2", args=(both, 0), subject=what),
        Op(call="@load32", args=(both, 0), yields=reader, subject=what),
        Op(call="@load32", args=(both, 4), yields=writer, subject=what),
    ]
    ops += fill(writer, state.queue, state.capacity, what)
    free = {0: reader, int(O.WRONLY): writer}
    # anew first: they are opened by the ends that pipe2 gave
    first = {int(end.flags & O.ACCMODE): i for i, end in reversed(list(ends.items()))}
    for file_id, end in ends.items():
        access = int(end.flags & O.ACCMODE)
        if access not in free or first[access] != file_id:
            ops += _again(file_id, end, reader, context)
    for direction, made in free.items():
        if direction in first:
            file_id = first[direction]
            fd, name = context.fd(file_id), subject(context, file_id, state.key)
            ops += move(made, fd, subject=name)
            was = int(O.DIRECT) if direction and state.queue.packets else 0
            ops += status_flags(fd, ends[file_id].flags, was, name)
        else:
            ops.append(Op(call="close", args=(made,), subject=what, note="nobody has this end"))
    return ops


def _again(file_id: FileId, end: Pipe, reader: Slot, context: PlanContext) -> list[Op]:
    """A further description, by the link in /proc of the read end at a known number."""
    fd, spare = context.fd(file_id), context.spare_fd
    what = subject(context, file_id, end.key)
    flags = end.flags & ~int(O.ASYNC)
    again = Op(
        call="openat", args=(AT_FDCWD, Data.path(f"/proc/self/fd/{spare}"), flags, 0),
        subject=what, note="one more description", remedy="mount /proc where the tree is restored",
        yields=Slot(f"open{fd}"),
    )  # fmt: skip
    return [
        Op(call="dup3", args=(reader, spare, 0), subject=what, expect=Expect.EQUAL, want=spare),
        *place(again, fd),
        Op(call="close", args=(spare,), subject=what),
        *status_flags(fd, end.flags, flags, what),
    ]


KIND: FileKind[Pipe] = PipeKind()
