# SPDX-License-Identifier: Apache-2.0
"""Programs that give a task its address space: from what it has to what it had.

A task starts either right after an exec (a few areas of its program, nothing of ours) or as
a fork of its parent, whose areas it then keeps where they are the same: that is how pages
which were shared copy-on-write stay shared. Pages are filled in from outside.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torpor.engine.errors import Refused
from torpor.engine.kind import Limit, refuse
from torpor.engine.memory import areas, vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group, Move, VdsoPlan
from torpor.engine.program.ops import Expect, Op, Program, Slot
from torpor.engine.restore.arena import Arena
from torpor.engine.restore.contents import subtract
from torpor.engine.tasks.model import Memory

MREMAP_FLAGS = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
NO_FD = (1 << 64) - 1
SHM_RDONLY, SHM_EXEC, SHM_REMAP = 0o10000, 0o100000, 0o40000

LIMITS = (
    Limit(
        case="shared by siblings only",
        what="shared memory that its common parent has unmapped",
        remedy="keep it mapped in the parent, or make it with memfd_create",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backings:
    """Service descriptors of memory that has no path: inode number → descriptor."""

    memfds: Mapping[int, int]
    made: Collection[int] = ()
    """Shared anonymous segments that earlier tasks have made: to be had only by inheritance."""


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
    return child.exe == parent.exe and vdso.group(child.areas) == vdso.group(parent.areas)


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
    sources = joined(inherited)
    kept = [
        a
        for a in wanted
        if (any(a.same_mapping(b) for b in inherited) or _in_place(a, sources))
        and (a.backing not in areas.SPECIAL)
    ]
    starts = {a.start for a in kept}
    ranges = sorted((a.start, a.end) for a in kept)
    program = Program("layout")
    again = [a for a in wanted if a.start not in starts and _source(a, sources) is not None]
    program.add(*(_map_again(a, sources) for a in again))
    ranges = sorted([*ranges, *((a.start, a.end) for a in again)])
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
    _map_all(program, [a for a in fresh if a not in again], backings, filled)
    for area in kept:
        if area.backing is Backing.SYSV:  # attached read-only it cannot be opened, nor need be
            continue
        if area.start in filled and not area.prot & areas.PROT_WRITE:
            program.add(
                Op(
                    call="mprotect",
                    args=(area.start, area.size_bytes, area.prot | areas.PROT_WRITE),
                    subject=area.subject,
                    note="open for filling",
                )
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
    mapped: list[Area] = []
    for area in joined(wanted):
        fd: int | Slot = NO_FD
        if area.backing is Backing.SHARED:
            if _source(area, mapped) is not None:
                program.add(_map_again(area, mapped))
                continue
            if area.shared_id in backings.made:
                raise refuse(LIMITS[0], area.subject)
            mapped.append(area)
        if area.backing is Backing.SYSV:
            program.add(_attach(area))
            continue
        if area.backing in (Backing.FILE, Backing.FILE_SHARED):
            key = (area.path, area.writable_file)
            if key not in opened:
                opened[key] = Slot(f"map{len(opened)}")
                program.add(
                    areas.plan_open(area.path, writable=area.writable_file, slot=opened[key])
                )
            fd = opened[key]
        elif area.backing is Backing.MEMFD:
            fd = _memfd(area, backings)
        program.add(areas.plan_map(area, fd, filled=area.start in filled))
    program.add(
        *(
            Op(call="close", args=(slot,), subject=path, note="mapped file")
            for (path, _), slot in opened.items()
        )
    )


def joined(found: Sequence[Area]) -> list[Area]:
    """Pieces of one shared anonymous mapping (mprotect splits them) as one area again."""
    out: list[Area] = []
    for area in found:
        last = out[-1] if out else None
        if (
            last is not None
            and area.backing is last.backing is Backing.SHARED
            and area.shared_id == last.shared_id
            and area.start == last.end
            and area.offset == last.offset + last.size_bytes
        ):
            out[-1] = replace(last, end=area.end, prot=last.prot | area.prot)
        else:
            out.append(area)
    return out


def _source(area: Area, sources: Sequence[Area]) -> Area | None:
    """A mapping that shows all of the segment which a shared anonymous area shows."""
    if area.backing is not Backing.SHARED:
        return None
    for other in sources:
        if (
            other.backing is Backing.SHARED
            and other.shared_id == area.shared_id
            and other.offset <= area.offset
            and area.offset + area.size_bytes <= other.offset + other.size_bytes
        ):
            return other
    return None


def _in_place(area: Area, sources: Sequence[Area]) -> bool:
    source = _source(area, sources)
    return source is not None and area.start - area.offset == source.start - source.offset


def _map_again(area: Area, sources: Sequence[Area]) -> Op:
    """An old size of 0 leaves the old mapping and makes another of it (mremap(2))."""
    source = _source(area, sources)
    assert source is not None
    at = source.start + area.offset - source.offset
    return Op(
        call="mremap",
        args=(at, 0, area.size_bytes, MREMAP_FLAGS, area.start),
        subject=area.subject,
        note="once more",
        expect=Expect.EQUAL,
        want=area.start,
    )


def _attach(area: Area) -> Op:
    flags = 0 if area.prot & areas.PROT_WRITE else SHM_RDONLY
    if area.prot & areas.PROT_EXEC:
        flags |= SHM_EXEC
    return Op(
        call="shmat",
        args=(area.shared_id, area.start, flags),
        subject=area.subject,
        expect=Expect.EQUAL,
        want=area.start,
    )


def _memfd(area: Area, backings: Backings) -> int:
    try:
        return backings.memfds[area.shared_id]
    except KeyError:
        raise Refused(
            "a memfd that is mapped but open nowhere",
            subject=area.subject,
            remedy="keep its descriptor open",
        ) from None


def special_group(areas_: Sequence[Area]) -> Group | None:
    """The special areas of an image."""
    return vdso.group(areas_)
