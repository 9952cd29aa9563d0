# SPDX-License-Identifier: Apache-2.0
"""Which open file descriptions the descriptors of a tree lead to, also those in flight.

Descriptors that look alike in /proc are compared by kcmp(2). What they look like, and which kind
they are of, can be told before their task is stopped: `foresee`.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torpor.engine.errors import Error, Findings, Refused
from torpor.engine.files.common import FileType, O, file_type, info_value
from torpor.engine.files.locks import Lock
from torpor.engine.kind import Ask, DumpContext, FdView, FileId, FileKind, Foresight, Holder

UNSTABLE = ("lock:", "it_value:", "ticks:", "eventfd-count:", "pos:")
"""Lines of fdinfo that may differ between two readings of one description."""

IN_FLIGHT = "scm_fds"
"""Of a unix socket's fdinfo: how many descriptors wait in it."""

Kinds = Sequence[FileKind[Any]]
Classes = dict[Hashable, list[FileId]]
"""Descriptions by what /proc shows of them, each in the kernel's order."""
Foreseen = Mapping[FdView, Foresight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One descriptor table; ``tasks`` (pids inside) share it by CLONE_FILES, the first owns it.

    ``number`` is its files_id, the N of fdinfo-N.
    """

    number: int
    tasks: tuple[int, ...]
    views: Sequence[FdView]


class Placed(NamedTuple):
    """A number in a table and the description behind it. No frozen dataclass, as `Holder`."""

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
    later: dict[FileId, FileKind[Any]] = field(default_factory=dict)
    """Those whose answers suffice: to be collected by `finish`."""
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


def foresee(views: Iterable[FdView], kinds: Kinds, ask: Ask, context: DumpContext) -> Foreseen:
    """Of views of tasks that run. Sockets have been asked for their kinds.

    What suffices now suffices under the stop when all is answered in the same way again.
    """
    kind_of: dict[FdView, FileKind[Any]] = {}
    looks_of = {}
    for view in views:
        looks_of[view] = looks(view)
        with suppress(Error, OSError):
            if kind := next((k for k in kinds if k.matches(view)), None):
                kind_of[view] = kind
    questions = {v: kind.questions(v) for v, kind in kind_of.items()}
    asked = [(v, q) for v, q in questions.items() if q is not None]
    answers = {
        view: one
        for (view, _), one in zip(asked, ask(asked), strict=True)
        if one is not None and one.is_whole and _suffices(kind_of[view], view, context)
    }
    return {
        v: Foresight(kind_of.get(v), looks_of[v], answers.get(v), questions.get(v))
        for v in looks_of
    }


def _suffices(kind: FileKind[Any], view: FdView, context: DumpContext) -> bool:
    with suppress(Error, OSError):
        return kind.suffice(view, context)
    return False


def group(tables: Sequence[Table], found: Collected, context: DumpContext) -> Classes:
    """Find the descriptions behind all descriptors."""
    classes: Classes = {}
    looks_of = _looks_of(tables, context)
    for table in tables:
        placed, task = found.entries.setdefault(table.number, []), table.tasks[0]
        for view in table.views:
            file_id, _ = _identify(view, looks_of[view], found, classes)
            cloexec = bool(view.flags & O.CLOEXEC)
            placed.append(Placed(fd=view.fd, file_id=file_id, cloexec=cloexec))
            found.holders.setdefault(file_id, []).append(Holder(task=task, fd=view.fd))
    return classes


def in_flight(found: Collected, classes: Classes) -> dict[int, list[tuple[FileId, ...]]]:
    """What waits in unix sockets, also in those that wait in others: descriptions like any."""
    carried: dict[int, list[tuple[FileId, ...]]] = {}
    todo = list(found.views.values())
    while todo:
        view = todo.pop()
        is_socket = file_type(view.st_mode) == FileType.SOCKET
        if not is_socket or info_value(view, IN_FLIGHT) in (None, "0"):
            continue
        messages = carried.setdefault(view.st_ino, [])
        for message in view.in_flight():
            ids = []
            for one in message:
                file_id, is_new = _identify(one, looks(one), found, classes)
                ids.append(file_id)
                if is_new:
                    todo.append(one)
            messages.append(tuple(ids))
    return carried


def _looks_of(tables: Sequence[Table], context: DumpContext) -> dict[FdView, Hashable]:
    """Of all; those that look alike are compared in one go, where that can be."""
    found: dict[FdView, Hashable] = {}
    alike: dict[Hashable, list[FdView]] = {}
    for view in (view for table in tables for view in table.views):
        known = context.foreseen.get(view)
        found[view] = known.looks if known else looks(view)
        alike.setdefault(found[view], []).append(view)
    if context.rank is not None:
        context.rank([views for views in alike.values() if len(views) > 1])
    return found


def _identify(
    view: FdView, like: Hashable, found: Collected, classes: Classes
) -> tuple[FileId, bool]:
    """Id of its description, and whether it is seen for the first time."""
    alike = classes.setdefault(like, [])
    at, file_id = _find(view, alike, found.views) if alike else (0, None)
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


def mapped_id(view: FdView, found: Collected) -> FileId:
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


def looks(view: FdView) -> Hashable:
    """What two descriptors of one description have in common."""
    info = tuple(line for line in view.info if not line.startswith(UNSTABLE))
    flags = view.flags & ~int(O.CLOEXEC)
    return view.st_dev, view.st_ino, view.pos, flags, view.link, info
