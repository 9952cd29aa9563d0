# SPDX-License-Identifier: Apache-2.0
"""Descriptor tables of a tree: who holds which open file description at which number.

Dump: `collect_tables` groups descriptors by description (kcmp, after a cheap comparison of what
/proc shows), finds the kind of each description and collects its state, and gathers every
refusal, not only the first. `encode_tables` writes what the kinds say and fdinfo-N.
Restore: `decode_tables` reads fdinfo-N, `placement` puts the descriptions at their numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torpor.engine.asking import Answers, Questions
from torpor.engine.errors import Findings, Refused
from torpor.engine.files import locks
from torpor.engine.files.common import O, bad_image
from torpor.engine.files.grouping import (
    Collected,
    Kinds,
    Placed,
    Table,
    group,
    in_flight,
    mapped_id,
)
from torpor.engine.files.locks import Lock
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    Foresight,
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
NOTHING = Foresight(None, None)


def collect_tables(
    tables: Sequence[Table],
    kinds: Kinds,
    context: DumpContext,
    directories: Mapping[tuple[int, str], FdView] | None = None,
    mapped: Sequence[FdView] = (),
) -> Collected:
    """`take` and `finish`. Fills ``context.views`` and ``context.holders``.

    ``directories`` are removed working and root directories, by task and name; ``mapped`` are
    files that tasks map and no path leads to: their ids are in `Collected.mapped`.
    """
    found = take(tables, kinds, context, directories, mapped)
    finish(found, tables, kinds, context)
    return found


def take(
    tables: Sequence[Table],
    kinds: Kinds,
    context: DumpContext,
    directories: Mapping[tuple[int, str], FdView] | None = None,
    mapped: Sequence[FdView] = (),
) -> Collected:
    """Group, identify, ask, and collect what the answers do not suffice for."""
    found = Collected()
    context.in_flight = in_flight(found, group(tables, found, context))
    found.mapped = [mapped_id(view, found) for view in mapped]
    context.views, context.holders = found.views, found.holders
    kind_of = {
        file_id: kind
        for file_id, view in found.views.items()
        if (kind := context.foreseen.get(view, NOTHING).kind or _kind(found, view, kinds))
    }
    asked = _ask(found.views, kind_of, context)
    done: set[tuple[FileKind[Any], int]] = set()
    for file_id, kind in kind_of.items():
        view, answers = found.views[file_id], asked.get(file_id)
        one = kind, view.pid
        # what a kind reads for all is read once for each task: its network may be another one
        is_known = one in done and _are_foreseen(view, answers, context)
        if answers is not None and (is_known or _suffice(kind, view, context)):
            done.add(one)
            found.later[file_id] = kind
        else:
            _collect(found, file_id, view, kind, context)
    for key, view in (directories or {}).items():
        file_id = found.directories[key] = FileId(found.first_free_id)
        found.first_free_id += 1
        if kind := _kind(found, view, kinds):
            _collect(found, file_id, view, kind, context)
    found.links = context.links
    return found


def finish(found: Collected, tables: Sequence[Table], kinds: Kinds, context: DumpContext) -> None:
    """What needs no more than was taken; the tasks may run on."""
    for file_id, kind in found.later.items():
        _collect(found, file_id, found.views[file_id], kind, context)
    if found.later:
        found.states = {name: dict(sorted(one.items())) for name, one in found.states.items()}
    for kind in kinds:
        states = found.states.get(kind.name)
        if states:
            found.refusals += kind.check(states, context)
    for table in tables:
        by_fd = {p.fd: p.file_id for p in found.entries[table.number]}
        locked, refused = locks.collect(table.tasks[0], table.views, by_fd)
        found.locks += locked
        found.refusals += refused
    found.locks = _of_takers(found, tables, context)


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


def _kind(found: Collected, view: FdView, kinds: Kinds) -> FileKind[Any] | None:
    kind = next((k for k in kinds if k.matches(view)), None)
    if kind is None:
        found.refusals.append(_nobody(view))
    return kind


def _suffice(kind: FileKind[Any], view: FdView, context: DumpContext) -> bool:
    """What is refused is refused by `collect`."""
    with suppress(Refused):
        return kind.suffice(view, context)
    return False


def _are_foreseen(view: FdView, answers: Answers | None, context: DumpContext) -> bool:
    known = context.foreseen.get(view)
    return known is not None and answers is not None and answers.are_those(known.answers)


def _ask(
    views: Mapping[FileId, FdView],
    kind_of: Mapping[FileId, FileKind[Any]],
    context: DumpContext,
) -> dict[FileId, Answers]:
    """Ask all that have questions in one go; those that have answered all of them."""
    if context.ask is None:
        return {}
    asked = [(i, q) for i, kind in kind_of.items() if (q := _questions(kind, views[i], context))]
    told = context.ask([(views[file_id], questions) for file_id, questions in asked])
    return {
        file_id: one
        for (file_id, _), one in zip(asked, told, strict=True)
        if one is not None and one.is_whole
    }


def _questions(kind: FileKind[Any], view: FdView, context: DumpContext) -> Questions | None:
    known = context.foreseen.get(view)
    return known.questions if known and known.kind else kind.questions(view)


def _collect(
    found: Collected, file_id: FileId, view: FdView, kind: FileKind[Any], context: DumpContext
) -> None:
    collected = _caught(found, kind.collect, view, context)
    if collected is not None:
        found.states.setdefault(kind.name, {})[file_id] = collected


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
