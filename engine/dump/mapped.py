# SPDX-License-Identifier: Apache-2.0
"""Files that tasks map and that no path leads to: memfds and deleted files.

Each is opened once (by /proc/PID/map_files of some task that maps it), goes through the kinds like
a file behind a descriptor, and its areas get the number of that description.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torpor.engine.dump.capture import Captured
from torpor.engine.kernel.fdview import MappedFd, Views
from torpor.engine.kernel.proc import Vma
from torpor.engine.kind import FileId
from torpor.engine.memory.areas import PENDING, Area, Backing

Key = tuple[int, int, bool]
"""Device, inode, and whether it is mapped so that it can be written through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """One such file, and a mapping of it."""

    key: Key
    pid: int
    area: Area


def find(captured: Sequence[Captured]) -> list[Mapped]:
    """Each once, in the order of the tasks."""
    found: dict[Key, Mapped] = {}
    for item in captured:
        for area, vma in _pending(item):
            key = _key(area, vma)
            found.setdefault(key, Mapped(key=key, pid=item.task.pid, area=area))
    return list(found.values())


def open_all(found: Sequence[Mapped], views: Views) -> list[MappedFd]:
    """A view of each. Raises Denied without CAP_CHECKPOINT_RESTORE."""
    return [
        views.mapped(one.pid, one.area.start, one.area.end, writable=one.key[2]) for one in found
    ]


def number(captured: Sequence[Captured], found: Sequence[Mapped], ids: Sequence[FileId]) -> None:
    """Give every area that waits for it the number of its description."""
    by_key: Mapping[Key, FileId] = {one.key: i for one, i in zip(found, ids, strict=True)}
    for item in captured:
        numbers = {area.start: by_key[_key(area, vma)] for area, vma in _pending(item)}
        if numbers:
            item.areas = [
                replace(a, file_id=numbers[a.start]) if a.start in numbers else a
                for a in item.areas
            ]


def ranges(captured: Sequence[Captured]) -> dict[int, list[tuple[int, int]]]:
    """Inode number of each memfd that is mapped → ranges of it, as memory shows them."""
    found: dict[int, list[tuple[int, int]]] = {}
    for item in captured:
        for area in item.areas:
            if area.backing is Backing.MEMFD:
                shown = (area.offset, area.offset + area.size_bytes)
                found.setdefault(area.shared_id, []).append(shown)
    return found


def _pending(item: Captured) -> list[tuple[Area, Vma]]:
    waiting = {area.start: area for area in item.areas if area.file_id == PENDING}
    return [(waiting[vma.start], vma) for vma in item.vmas if vma.start in waiting]


def _key(area: Area, vma: Vma) -> Key:
    return vma.dev_major << 20 | vma.dev_minor, vma.inode, area.writable_file
