# SPDX-License-Identifier: Apache-2.0
"""Files that tasks map and that no path leads to: memfds, deleted files, deleted programs.

Each is opened once (by /proc/PID/map_files of some task that maps it, or by its exe link), goes
through the kinds like a file behind a descriptor, and its areas get the number of that
description. A packet socket whose rings are mapped is found among the descriptors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torpor.engine.dump import rings
from torpor.engine.dump.capture import Captured
from torpor.engine.errors import Refused
from torpor.engine.files.memfd import gaps, huge_content, unmapped_content
from torpor.engine.kernel.fdview import MappedFd, Views
from torpor.engine.kernel.maps import DELETED, Vma
from torpor.engine.kind import FdView, FileId, refuse
from torpor.engine.memory import sysv
from torpor.engine.memory.areas import PENDING, SPECIAL_FILE, Area, Backing
from torpor.engine.sockets.packet import PacketState

Key = tuple[int, int, bool]
"""Device, inode, and whether it is mapped so that it can be written through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """One such file: the links in /proc/PID that lead to it, and who waits for its number."""

    pid: int
    link: str
    writable: bool
    areas: list[tuple[Captured, int]] = field(default_factory=list)
    """Tasks, and the starts of their areas."""
    programs: list[Captured] = field(default_factory=list)


def find(captured: Sequence[Captured]) -> list[Mapped]:
    """Each once, in the order of the tasks."""
    found: dict[Key, Mapped] = {}
    for item in captured:
        for area, vma in _pending(item):
            key = vma.dev_major << 20 | vma.dev_minor, vma.inode, area.writable_file
            link = f"map_files/{area.start:x}-{area.end:x}"
            new = Mapped(pid=item.task.pid, link=link, writable=area.writable_file)
            found.setdefault(key, new).areas.append((item, area.start))
    return [*found.values(), *_programs(captured)]


def _programs(captured: Sequence[Captured]) -> list[Mapped]:
    return [
        Mapped(pid=item.task.pid, link="exe", writable=False, programs=[item])
        for item in captured
        if item.capture.links["exe"].endswith(DELETED)
    ]


def open_all(found: Sequence[Mapped], views: Views) -> list[MappedFd]:
    """A view of each. Raises Denied without CAP_CHECKPOINT_RESTORE."""
    return [views.mapped(one.pid, one.link, writable=one.writable) for one in found]


def number(found: Sequence[Mapped], ids: Sequence[FileId]) -> None:
    """Give every area and program that waits for it the number of its description."""
    for one, file_id in zip(found, ids, strict=True):
        for item in one.programs:
            item.exe_file = file_id
        starts: dict[int, set[int]] = {}
        for item, start in one.areas:
            starts.setdefault(item.task.pid, set()).add(start)
        for item in {item.task.pid: item for item, _ in one.areas}.values():
            mine = starts[item.task.pid]
            item.areas = [replace(a, file_id=file_id) if a.start in mine else a for a in item.areas]


def packet_rings(
    captured: Sequence[Captured],
    views: Mapping[FileId, FdView],
    sockets: Mapping[FileId, PacketState],
    warn: Callable[[str], None],
) -> list[Refused]:
    """Give mapped rings the number of their socket, and turn them; the tasks still stand."""
    numbers = {views[file_id].st_ino: file_id for file_id in sockets}
    refused = []
    for item in captured:
        for inode, pieces in _rings(item).items():
            found = numbers.get(inode, FileId(0))
            mappings = rings.whole(pieces, sockets[found].rings_bytes) if found else None
            if mappings is None:
                where = f"{item.capture.subject}, {pieces[0].subject}"
                cause = "a part of the rings" if found else "no packet socket of the tree"
                refused.append(refuse(SPECIAL_FILE, where, cause))
                continue
            warn(f"{views[found].subject}: the mapped rings begin anew, without packets")
            starts = {piece.start for piece in pieces}
            others = [area for area in item.areas if area.start not in starts]
            turned = [p for m in mappings for p in rings.turned(m, sockets[found], item.task.pid)]
            mine = [replace(area, file_id=found) for area in turned]
            item.areas = sorted([*others, *mine], key=lambda area: area.start)
    return refused


def _rings(item: Captured) -> dict[int, list[Area]]:
    """Areas of a packet socket, by its inode."""
    found: dict[int, list[Area]] = {}
    for area, vma in _waiting(item):
        if area.backing is Backing.PACKETS:
            found.setdefault(vma.inode, []).append(area)
    return found


def unattached(
    captured: Sequence[Captured], views: Views
) -> dict[int, Sequence[tuple[int, bytes]]]:
    """Content of System V segments where no task has them attached, or may read it there."""
    found: dict[int, Sequence[tuple[int, bytes]]] = {}
    places: dict[int, list[tuple[int, Area]]] = {}
    for item in captured:
        for area in item.areas:
            if area.backing is Backing.SYSV:
                places.setdefault(area.shared_id, []).append((item.task.pid, area))
    sizes = {n: sysv.parse(n, raw).size_bytes for c in captured for n, raw in c.segments.items()}
    for number, all_of_it in places.items():
        shown = [(area.offset, area.offset + area.size_bytes) for _, area in all_of_it]
        pid, area = all_of_it[0]
        if area.huge_shift or gaps(shown, sizes[number]):
            link = f"map_files/{area.start:x}-{area.end:x}"
            view = views.mapped(pid, link, writable=False)
            is_huge = bool(area.huge_shift)
            content = huge_content(view) if is_huge else unmapped_content(view, shown)
            found[area.pages_id] = content
    return found


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
    return [one for one in _waiting(item) if one[0].backing is not Backing.PACKETS]


def _waiting(item: Captured) -> list[tuple[Area, Vma]]:
    waiting = {area.start: area for area in item.areas if area.file_id == PENDING}
    return [(waiting[vma.start], vma) for vma in item.vmas if vma.start in waiting]
