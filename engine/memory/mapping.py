# SPDX-License-Identifier: Apache-2.0
"""The calls that make areas: mmap, and what can only be set when all pages are in place."""

from collections.abc import Collection, Sequence

from torpor.engine.memory import marks
from torpor.engine.memory.areas import (
    AT_FDCWD,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    O_CLOEXEC,
    O_RDONLY,
    O_RDWR,
    PROT_WRITE,
    RINGS,
    SPECIAL,
    Area,
    Backing,
    huge_flags,
    sharing_flags,
)
from torpor.engine.memory.marks import Marks
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot

HUGE_REMEDY = "reserve as many huge pages as the program had (sysctl vm.nr_hugepages)"


def plan_map(area: Area, fd: Arg, *, filled: bool) -> Op:
    """The mmap of an area; open for writing when pages are still to be filled in."""
    flags = MAP_FIXED | sharing_flags(area)
    prot = area.prot
    if area.backing in (Backing.ANON, Backing.VDSO, *RINGS):
        flags |= MAP_ANONYMOUS
    if area.grows_down:
        flags |= MAP_GROWSDOWN
    if area.noreserve:
        flags |= MAP_NORESERVE
    if filled:
        prot |= PROT_WRITE
    if flags & MAP_ANONYMOUS:
        flags |= huge_flags(area.huge_shift)
    return Op(
        call="mmap",
        args=(
            area.start,
            area.size_bytes,
            prot,
            flags,
            fd,
            0 if area.backing in RINGS else area.offset,
        ),
        subject=area.subject,
        expect=Expect.EQUAL,
        want=area.start,
        remedy=HUGE_REMEDY if area.huge_shift else "",
    )


def plan_open(path: str, *, writable: bool, slot: Slot) -> Op:
    """Open a mapped file."""
    return Op(
        call="openat",
        args=(AT_FDCWD, Data.path(path), (O_RDWR if writable else O_RDONLY) | O_CLOEXEC, 0),
        subject=path,
        note="mapped file",
        yields=slot,
        remedy="the same image and the same files must be there on the new node",
    )


def plan_final(
    areas: Sequence[Area], opened: Collection[int], marked: Marks = marks.NONE
) -> list[Op]:
    """Final protection, advice and locks, once every page is in place and children exist.

    ``opened`` has the starts of the areas which were mapped writable to be filled in.
    """
    ops = marks.plan_guards(marked)
    on_fault = {start for start, _ in marked.on_fault}
    for area in areas:
        if area.backing in SPECIAL:
            continue
        if area.start in opened and not area.prot & PROT_WRITE:
            ops.append(
                Op(
                    call="mprotect",
                    args=(area.start, area.size_bytes, area.prot),
                    subject=area.subject,
                )
            )
        ops += [
            Op(
                call="madvise",
                args=(area.start, area.size_bytes, number),
                subject=area.subject,
                note="advice",
            )
            for number in area.advice
        ]
        if area.locked:
            has_guards = any(at < area.end and area.start < end for at, end in marked.guards)
            ops.append(_lock(area, on_fault=area.start in on_fault, has_guards=has_guards))
    return ops + marks.plan_last(marked)


def _lock(area: Area, *, on_fault: bool, has_guards: bool) -> Op:
    """What cannot be read, or lies beyond a file's end, is locked all the same, with an error."""
    whole = area.backing is Backing.ANON and area.prot & PROT_WRITE and not has_guards
    return Op(
        call="mlock2",
        args=(area.start, area.size_bytes, 1 if on_fault else 0),
        subject=area.subject,
        remedy="allow as much locked memory (RLIMIT_MEMLOCK) as before",
        expect=Expect.OK if whole or on_fault else Expect.ANY,
    )
