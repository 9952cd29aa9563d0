# SPDX-License-Identifier: Apache-2.0
"""Programs that give a task its address space: from what it has to what it had.

A task starts either right after an exec (a few areas of its program, nothing of ours) or as
a fork of its parent, whose areas it then keeps where they are the same: that is how pages
which were shared copy-on-write stay shared. Pages are filled in from outside.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.errors import BadImage, Refused
from torpor.engine.memory import areas, mapping, vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group, Move, VdsoPlan
from torpor.engine.program.ops import Arg, Expect, Op, Program, Slot
from torpor.engine.restore.arena import Arena
from torpor.engine.restore.contents import subtract
from torpor.engine.tasks.model import Memory

MREMAP_FLAGS = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
NO_FD = (1 << 64) - 1
SHM_RDONLY, SHM_EXEC, SHM_REMAP = 0o10000, 0o100000, 0o40000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backings:
    """Service descriptors of memory that has no path.

    ``files`` by number of the description (CRIU has one that is ``read_only`` stand for all
    mappings); ``segments`` by id of shared anonymous memory. ``attached`` has the sizes of System
    V segments, ``room`` is where one may be attached for a moment, or rings be mapped.
    """

    files: Mapping[int, int] = field(default_factory=dict)
    read_only: Collection[int] = ()
    segments: Mapping[int, int] = field(default_factory=dict)
    attached: Mapping[int, int] = field(default_factory=dict)
    rings: Mapping[int, int] = field(default_factory=dict)
    """Size of both rings of packet sockets, by file."""
    room: int = 0


def after_exec(
    arena: Arena,
    wanted: Sequence[Area],
    current: Group,
    plan: VdsoPlan,
    backings: Backings,
    filled: set[int],
) -> Program:
    """Replace everything that an exec has mapped."""
    program = Program("layout")
    parked = _park(program, arena, current)
    program.add(
        Op(call="munmap", args=(0, arena.base), subject="memory of the fresh program"),
        Op(
            call="munmap",
            args=(arena.end, areas.TASK_SIZE - arena.end),
            subject="memory of the fresh program",
        ),
    )
    _unpark(program, plan.moves, parked)
    if plan.moves == ():
        program.add(
            *(Op(call="munmap", args=(at, size), subject="vdso") for at, size in parked.values())
        )
    _map_all(program, [a for a in wanted if _mappable(a, plan)], backings, filled)
    return program


def forked_from(child: Memory, parent: Memory) -> bool:
    """Whether a child's memory can be had from its parent's: neither has executed since.

    The same program executed anew (a shell started by a shell) has its vDSO elsewhere.
    """
    same = (child.exe, child.exe_file) == (parent.exe, parent.exe_file)
    return same and vdso.group(child.areas) == vdso.group(parent.areas)


def after_fork(
    wanted: Sequence[Area],
    inherited: Sequence[Area],
    old: Group | None,
    new: Group | None,
    backings: Backings,
    filled: set[int],
    keep_old_code: bool,
) -> tuple[Program, list[Area]]:
    """Drop what the parent has more, add what the child has more; and what stayed."""
    if old != new:
        raise Refused(
            "a child has its vDSO elsewhere than its parent",
            remedy="restart that child after its parent",
        )
    before = {b.start: b for b in inherited}
    kept = [
        a
        for a in wanted
        if a.backing not in areas.SPECIAL and a.start in before and a.same_mapping(before[a.start])
    ]
    starts = {a.start for a in kept}
    ranges = sorted((a.start, a.end) for a in kept)
    program = Program("layout")
    for area in inherited:
        if area.backing in areas.SPECIAL:
            continue
        program.add(
            *(
                Op(
                    call="munmap",
                    args=(start, end - start),
                    subject=area.subject,
                    note="the parent's only",
                )
                for start, end in subtract([(area.start, area.end)], ranges)
            )
        )
    plan = VdsoPlan(moves=(), keep_old_code=keep_old_code)
    fresh = [
        a
        for a in wanted
        if a.start not in starts and _mappable(a, plan) and a.backing not in areas.SPECIAL
    ]
    _map_all(program, fresh, backings, filled)
    for area in kept:
        is_closed = area.start in filled and not area.prot & areas.PROT_WRITE
        if is_closed or area.prot != before[area.start].prot:
            prot = area.prot | areas.PROT_WRITE if is_closed else area.prot
            program.add(
                Op(call="mprotect", args=(area.start, area.size_bytes, prot), subject=area.subject)
            )
    return program, kept


def _mappable(area: Area, plan: VdsoPlan) -> bool:
    if area.backing is Backing.VDSO:
        return plan.keep_old_code
    return area.backing not in areas.SPECIAL


def _park(program: Program, arena: Arena, current: Group) -> dict[int, tuple[int, int]]:
    """Move the kernel's block into the arena: old start → (place, size)."""
    parked = {}
    for _, start, end in current.parts:
        target = arena.park + start - current.start
        program.add(
            Op(
                call="mremap",
                args=(start, end - start, end - start, MREMAP_FLAGS, target),
                subject="vdso",
                note="parked",
                expect=Expect.EQUAL,
                want=target,
            )
        )
        parked[start] = (target, end - start)
    return parked


def _unpark(program: Program, moves: Sequence[Move], parked: Mapping[int, tuple[int, int]]) -> None:
    for move in moves:
        place, size = parked[move.source]
        program.add(
            Op(
                call="mremap",
                args=(place, size, size, MREMAP_FLAGS, move.target),
                subject="vdso",
                note="at its old place",
                expect=Expect.EQUAL,
                want=move.target,
            )
        )


def _map_all(
    program: Program, wanted: Sequence[Area], backings: Backings, filled: set[int]
) -> None:
    opened: dict[tuple[str, bool], Slot] = {}
    for area in wanted:
        if area.backing is Backing.SYSV:
            program.extend(_attach(area, backings))
            continue
        fd: Arg | None = _descriptor(area, backings)
        path = area.path
        if fd is not None and area.writable_file and area.file_id in backings.read_only:
            fd, path = None, f"/proc/self/fd/{fd}"
        if fd is None:
            key = (path, area.writable_file)
            if key not in opened:
                opened[key] = Slot(f"map{len(opened)}")
                program.add(mapping.plan_open(path, writable=area.writable_file, slot=opened[key]))
            fd = opened[key]
        if area.backing is Backing.PACKETS and area.size_bytes < backings.rings.get(
            area.file_id, 0
        ):
            program.extend(_ring_piece(area, fd, backings))
            continue
        program.add(mapping.plan_map(area, fd, filled=area.start in filled))
    program.add(
        *(
            Op(call="close", args=(slot,), subject=path, note="mapped file")
            for (path, _), slot in opened.items()
        )
    )


def _descriptor(area: Area, backings: Backings) -> int | None:
    """What an area is mapped from; None for a file that is to be opened by its path."""
    try:
        if area.file_id:
            return backings.files[area.file_id]
        if area.backing is Backing.SHARED:
            return backings.segments[area.shared_id]
    except KeyError:
        raise BadImage("maps a file that is not in the images", subject=area.subject) from None
    return None if area.path else NO_FD


def _attach(area: Area, backings: Backings) -> list[Op]:
    """Attach a segment; a piece of it is moved to its place, and the rest detached."""
    flags = 0 if area.writable_file or area.prot & areas.PROT_WRITE else SHM_RDONLY
    if area.prot & areas.PROT_EXEC:
        flags |= SHM_EXEC
    whole = -(-backings.attached.get(area.shared_id, area.size_bytes) // areas.PAGE) * areas.PAGE
    is_piece = area.size_bytes != whole
    at = backings.room if is_piece else area.start
    ops = [
        Op(
            call="shmat",
            args=(area.shared_id, at, flags),
            subject=area.subject,
            expect=Expect.EQUAL,
            want=at,
        )
    ]
    size = area.size_bytes
    if is_piece:
        ops.append(
            Op(
                call="mremap",
                args=(at + area.offset, size, size, MREMAP_FLAGS, area.start),
                subject=area.subject,
                note="a piece of it",
                expect=Expect.EQUAL,
                want=area.start,
            )
        )
        ops.append(Op(call="munmap", args=(at, whole), subject=area.subject, note="the rest"))
    given = areas.PROT_READ | (0 if flags & SHM_RDONLY else areas.PROT_WRITE)
    if area.prot & ~areas.PROT_EXEC != given:
        ops.append(Op(call="mprotect", args=(area.start, size, area.prot), subject=area.subject))
    return ops


def _ring_piece(area: Area, fd: Arg, backings: Backings) -> list[Op]:
    """Rings are mapped as a whole; a piece is moved to its place, and the rest unmapped."""
    size, at = backings.rings[area.file_id], backings.room
    flags = areas.MAP_FIXED | areas.sharing_flags(area)
    return [
        Op(call="mmap", args=(at, size, area.prot, flags, fd, 0), subject=area.subject,
           expect=Expect.EQUAL, want=at),
        Op(call="mremap",
           args=(at + area.offset, area.size_bytes, area.size_bytes, MREMAP_FLAGS, area.start),
           subject=area.subject, note="a piece of them", expect=Expect.EQUAL, want=area.start),
        Op(call="munmap", args=(at, size), subject=area.subject, note="the rest"),
    ]  # fmt: skip


def special_group(areas_: Sequence[Area]) -> Group | None:
    """The special areas of an image."""
    return vdso.group(areas_)
