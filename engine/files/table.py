# SPDX-License-Identifier: Apache-2.0
"""Descriptor tables of a tree: who holds which open file description at which number.

Dump: `collect_tables` groups descriptors by description (kcmp, after a cheap comparison of what
/proc shows), finds the kind of each description and collects its state, and gathers every
refusal, not only the first. `encode_tables` writes what the kinds say and fdinfo-N.
Restore: `decode_tables` reads fdinfo-N, `placement` puts the descriptions at their numbers.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.engine.errors import Findings, Refused
from torpor.engine.files import locks
from torpor.engine.files.common import O, bad_image, info_value
from torpor.engine.files.locks import Lock
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    Holder,
    ImageSink,
    ImageSource,
    LateOp,
    PlanContext,
)
from torpor.engine.program.ops import Expect, Op

FD_CLOEXEC = 1
LAST_FD = (1 << 32) - 1
MAX_FD = 1 << 30
UNSTABLE = ("lock:", "it_value:", "ticks:", "eventfd-count:", "pos:")
"""Lines of fdinfo that may differ between two readings of one description."""

IN_FLIGHT = "scm_fds"
"""Of a unix socket's fdinfo: how many descriptors wait in it."""

Kinds = Sequence[FileKind[Any]]
Classes = dict[Hashable, list[FileId]]
"""Descriptions by what /proc shows of them, each in the kernel's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One descriptor table; ``tasks`` (pids inside) share it by CLONE_FILES, the first owns it.

    ``number`` is its files_id, the N of fdinfo-N.
    """

    number: int
    tasks: tuple[int, ...]
    views: Sequence[FdView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A number in a table and the description behind it."""

    fd: int
    file_id: FileId
    cloexec: bool = False


@dataclass(slots=True, kw_only=True)
class Collected:
    """What the tables hold. ``states`` by the name of the kind."""

    entries: dict[int, list[Placed]] = field(default_factory=dict)
    views: dict[FileId, FdView] = field(default_factory=dict)
    holders: dict[FileId, list[Holder]] = field(default_factory=dict)
    states: dict[str, dict[FileId, Any]] = field(default_factory=dict)
    locks: list[Lock] = field(default_factory=list)
    directories: dict[tuple[int, str], FileId] = field(default_factory=dict)
    """(task, "cwd" or "root") → the directory, where it was removed."""
    links: list[tuple[FdView, str]] = field(default_factory=list)
    """Names that the kinds want made (`DumpContext.links`)."""
    refusals: list[Refused] = field(default_factory=list)
    mapped: list[FileId] = field(default_factory=list)
    """Of each mapped file that was given: the description that stands for it."""
    first_free_id: int = 1

    @property
    def descriptors(self) -> int:
        """Numbers in all tables."""
        return sum(len(placed) for placed in self.entries.values())

    def refuse(self) -> None:
        """Raise all refusals as one, if there are any."""
        if self.refusals:
            raise Findings(tuple(self.refusals))


def collect_tables(
    tables: Sequence[Table],
    kinds: Kinds,
    context: DumpContext,
    directories: Mapping[tuple[int, str], FdView] | None = None,
    mapped: Sequence[FdView] = (),
) -> Collected:
    """Group, identify and collect. Fills ``context.views`` and ``context.holders``.

    ``directories`` are removed working and root directories, by task and name; ``mapped`` are
    files that tasks map and no path leads to: their ids are in `Collected.mapped`.
    """
    found = Collected()
    context.in_flight = _in_flight(found, _group(tables, found))
    found.mapped = [_mapped_id(view, found) for view in mapped]
    context.views, context.holders = found.views, found.holders
    for file_id, view in found.views.items():
        _collect(found, file_id, view, kinds, context)
    for key, view in (directories or {}).items():
        file_id = found.directories[key] = FileId(found.first_free_id)
        found.first_free_id += 1
        _collect(found, file_id, view, kinds, context)
    for kind in kinds:
        states = found.states.get(kind.name)
        if states:
            found.refusals += kind.check(states, context)
    found.links = context.links
    for table in tables:
        by_fd = {p.fd: p.file_id for p in found.entries[table.number]}
        locked, refused = locks.collect(table.tasks[0], table.views, by_fd)
        found.locks += locked
        found.refusals += refused
    found.locks = _of_takers(found, tables, context)
    return found


def _of_takers(found: Collected, tables: Sequence[Table], context: DumpContext) -> list[Lock]:
    numbers = {table.tasks[0]: table.number for table in tables}
    ids = {
        (task, placed.fd): placed.file_id
        for task, number in numbers.items()
        for placed in found.entries[number]
    }
    stands = {task: table.tasks[0] for table in tables for task in table.tasks}
    owners = {outer: stands[task] for outer, task in context.tasks.items() if task in stands}
    return locks.of_takers(found.locks, lambda lock: ids[lock.task, lock.fd], owners)


def encode_tables(found: Collected, kinds: Kinds, images: ImageSink) -> None:
    """Write every kind's images, fdinfo-N and filelocks."""
    sink = _TypeSink(images)
    for kind in kinds:
        states = found.states.get(kind.name)
        if states:
            kind.encode(states, sink)
    for number, placed in found.entries.items():
        images.begin(f"fdinfo-{number}")
        for one in placed:
            images.add(
                f"fdinfo-{number}",
                pb.fdinfo_entry(
                    id=one.file_id, type=sink.types[one.file_id], fd=one.fd,
                    flags=FD_CLOEXEC if one.cloexec else 0,
                ),
            )  # fmt: skip
    locks.encode(found.locks, images)


def decode_tables(images: ImageSource, tables: Mapping[int, int]) -> dict[int, list[Placed]]:
    """Placements of each table's owner; ``tables`` is pid inside → files_id, in tree order.

    Tasks that share a table are not there: their owner places for them.
    Raises: BadImage.
    """
    result: dict[int, list[Placed]] = {}
    seen: set[int] = set()
    for task, number in tables.items():
        if number in seen:
            continue
        seen.add(number)
        numbers: set[int] = set()
        result[task] = []
        for entry, _ in images.entries(f"fdinfo-{number}"):
            if entry.fd in numbers or entry.fd > MAX_FD:
                bad_image(f"number {entry.fd} is wrong or there twice", f"fdinfo-{number}.img")
            numbers.add(entry.fd)
            cloexec = bool(entry.flags & FD_CLOEXEC)
            result[task].append(Placed(fd=entry.fd, file_id=FileId(entry.id), cloexec=cloexec))
    return result


def decode_locks(images: ImageSource) -> list[Lock]:
    """File locks of filelocks.img."""
    return locks.decode(images)


def late_locks(held: Iterable[Lock]) -> list[LateOp]:
    """Operations of the holders of file locks; after all placements."""
    return locks.late(held)


def holders_of(placements: Mapping[int, Sequence[Placed]]) -> dict[FileId, list[Holder]]:
    """Who holds each description, in tree order."""
    result: dict[FileId, list[Holder]] = {}
    for task, placed in placements.items():
        for one in placed:
            result.setdefault(one.file_id, []).append(Holder(task=task, fd=one.fd))
    return result


def service_base(
    placements: Mapping[int, Sequence[Placed]],
    least: int = 64,
    *,
    needed: int = 0,
    limit: int | None = None,
) -> int:
    """First of ``needed`` numbers, from ``least`` on, that no task of the tree uses.

    Above all of them; when that does not fit below ``limit``, the first gap that is wide enough.
    """
    used = sorted({p.fd for placed in placements.values() for p in placed})
    above = _rounded(used[-1] + 1 if used else 0, least)
    if limit is None or above + needed <= limit:
        return above
    start = least
    for fd in used:
        if fd - start >= needed:
            break
        start = max(start, _rounded(fd + 1, least))
    return start


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step or step


def placement(
    placed: Sequence[Placed], context: PlanContext, *, keep: Iterable[int] = ()
) -> list[Op]:
    """Operations of a table's owner: its descriptors at their numbers, all others closed.

    ``keep`` are numbers to leave open besides.
    """
    ops = [_place(one, context.fd(one.file_id)) for one in sorted(placed, key=lambda p: p.fd)]
    first = 0
    for fd in sorted({*keep, *(p.fd for p in placed)}):
        if fd > first:
            ops.append(Op(call="close_range", args=(first, fd - 1, 0)))
        first = fd + 1
    ops.append(Op(call="close_range", args=(first, LAST_FD, 0), note="service descriptors"))
    return ops


def _place(one: Placed, service: int) -> Op:
    return Op(
        call="dup3", args=(service, one.fd, int(O.CLOEXEC) if one.cloexec else 0),
        subject=f"fd {one.fd}", expect=Expect.EQUAL, want=one.fd,
        remedy="raise the limit of open files (RLIMIT_NOFILE)",
    )  # fmt: skip


def _collect(
    found: Collected, file_id: FileId, view: FdView, kinds: Kinds, context: DumpContext
) -> None:
    kind = next((k for k in kinds if k.matches(view)), None)
    if kind is None:
        found.refusals.append(_nobody(view))
        return
    collected = _caught(found, kind.collect, view, context)
    if collected is not None:
        found.states.setdefault(kind.name, {})[file_id] = collected


def _group(tables: Sequence[Table], found: Collected) -> Classes:
    classes: Classes = {}
    for table in tables:
        placed = found.entries.setdefault(table.number, [])
        for view in table.views:
            file_id, _ = _identify(view, found, classes)
            cloexec = bool(view.flags & O.CLOEXEC)
            placed.append(Placed(fd=view.fd, file_id=file_id, cloexec=cloexec))
            holder = Holder(task=table.tasks[0], fd=view.fd)
            found.holders.setdefault(file_id, []).append(holder)
    return classes


def _in_flight(found: Collected, classes: Classes) -> dict[int, list[tuple[FileId, ...]]]:
    """What waits in unix sockets, also in those that wait in others: descriptions like any."""
    carried: dict[int, list[tuple[FileId, ...]]] = {}
    todo = list(found.views.values())
    while todo:
        view = todo.pop()
        if info_value(view, IN_FLIGHT) in (None, "0"):
            continue
        messages = carried.setdefault(view.st_ino, [])
        for message in view.in_flight():
            ids = []
            for one in message:
                file_id, is_new = _identify(one, found, classes)
                ids.append(file_id)
                if is_new:
                    todo.append(one)
            messages.append(tuple(ids))
    return carried


def _identify(view: FdView, found: Collected, classes: Classes) -> tuple[FileId, bool]:
    """Id of its description, and whether it is seen for the first time."""
    alike = classes.setdefault(_looks(view), [])
    at, file_id = _find(view, alike, found.views)
    if file_id is not None:
        return file_id, False
    file_id = FileId(found.first_free_id)
    found.first_free_id += 1
    alike.insert(at, file_id)
    found.views[file_id] = view
    return file_id, True


def _find(
    view: FdView, alike: Sequence[FileId], views: Mapping[FileId, FdView]
) -> tuple[int, FileId | None]:
    """Its place among descriptions in the kernel's order, and which of them it is."""
    low, high = 0, len(alike)
    while low < high:
        middle = (low + high) // 2
        order = view.file_order(views[alike[middle]])
        if order == 0:
            return middle, alike[middle]
        low, high = (low, middle) if order < 0 else (middle + 1, high)
    return low, None


def _mapped_id(view: FdView, found: Collected) -> FileId:
    """A description of the same file through which it can be mapped as it was, or a new one."""
    for file_id, other in found.views.items():
        same = (other.st_dev, other.st_ino) == (view.st_dev, view.st_ino)
        access = other.flags & O.ACCMODE
        enough = access == O.RDWR or access == view.flags & O.ACCMODE
        if same and enough and not other.flags & O.PATH:
            return file_id
    file_id = FileId(found.first_free_id)
    found.first_free_id += 1
    found.views[file_id] = view
    return file_id


def _looks(view: FdView) -> Hashable:
    """What two descriptors of one description have in common."""
    info = tuple(line for line in view.info if not line.startswith(UNSTABLE))
    flags = view.flags & ~int(O.CLOEXEC)
    return view.st_dev, view.st_ino, view.pos, flags, view.link, info


def _caught(
    found: Collected,
    collect: Callable[[FdView, DumpContext], Any],
    view: FdView,
    context: DumpContext,
) -> Any:  # noqa: ANN401
    try:
        return collect(view, context)
    except Findings as error:
        found.refusals += error.items
    except Refused as error:
        found.refusals.append(error)
    return None


def _nobody(view: FdView) -> Refused:
    return Refused(
        "torpor does not know this kind of descriptor",
        subject=view.subject,
        cause=f"mode {view.st_mode:#o}, file system {view.fs_magic:#x}",
        remedy="close it before the checkpoint, and report it",
    )


class _TypeSink:
    """Passes everything on and notes the type under which each file was written."""

    def __init__(self, images: ImageSink) -> None:
        self.images = images
        self.types: dict[int, Any] = {}

    def add(self, name: str, message: Any, payload: bytes = b"") -> None:  # noqa: ANN401
        if name == "files":
            self.types[message.id] = message.type
        self.images.add(name, message, payload)

    def begin(self, name: str) -> None:
        self.images.begin(name)

    def extra(self, section: str, key: str, value: Any) -> None:  # noqa: ANN401
        self.images.extra(section, key, value)
