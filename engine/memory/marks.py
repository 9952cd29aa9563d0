# SPDX-License-Identifier: Apache-2.0
"""What lies on areas besides their flags: guard regions, seals, locks on fault.

Facts (probed on v6.18):
- Guard regions (MADV_GUARD_INSTALL, Linux 6.13) are marks in page tables; an area that may have
  some says `gu` in VmFlags (6.18), PAGEMAP_SCAN tells which pages (6.15). They cannot be installed
  in a locked area, but may be in one that was locked later.
- VmFlags `lo` without `lf` is mlock, with it mlock2(MLOCK_ONFAULT).
- Whether later mappings will be locked (mlockall(MCL_FUTURE)) is nowhere to be read. Where every
  area that can be locked is, it is taken for asked: who locks only what there is goes on to
  map more, and those areas are not locked.
- A sealed area (`sl`, mseal, Linux 6.10) can neither be moved nor changed any more: sealed last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.kernel.maps import Vma
from torpor.engine.memory.areas import SPECIAL_NAMES
from torpor.engine.program.ops import Expect, Op

MADV_GUARD_INSTALL = 102
GUARD = 1 << 16
"""CRIU's vma_entry.status."""
MCL_FUTURE, MCL_ONFAULT = 2, 4

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Of one address space; ``lock_future`` are flags of mlockall, 0 for none."""

    guards: Ranges = ()
    sealed: Ranges = ()
    on_fault: Ranges = ()
    lock_future: int = 0


NONE = Marks()


def collect(vmas: Sequence[Vma], guards: Sequence[tuple[int, int]]) -> Marks:
    """From VmFlags, and the guard regions that were found."""
    locked = [_locked(vma) for vma in vmas if _lockable(vma)]
    lock_future = 0
    if locked and all(locked):
        on_fault = all("lf" in vma.vm_flags for vma in vmas if _lockable(vma))
        lock_future = MCL_FUTURE | (MCL_ONFAULT if on_fault else 0)
    return Marks(
        guards=tuple(guards),
        sealed=_ranges(vma for vma in vmas if "sl" in vma.vm_flags),
        on_fault=_ranges(vma for vma in vmas if _locked(vma) and "lf" in vma.vm_flags),
        lock_future=lock_future,
    )


def may_have_guards(vma: Vma) -> bool:
    """Whether an area is to be looked at for guard regions."""
    return "gu" in vma.vm_flags


def _locked(vma: Vma) -> bool:
    return "lo" in vma.vm_flags


def _lockable(vma: Vma) -> bool:
    return not vma.name.startswith(SPECIAL_NAMES) and not vma.vm_flags & {"dp", "pf", "io", "ht"}


def _ranges(vmas: Any) -> Ranges:  # noqa: ANN401
    return tuple((vma.start, vma.end) for vma in vmas)


def encode(marks: Marks) -> dict[str, Any]:
    """For torpor.json; empty when there is nothing to say."""
    values = {
        "sealed": [list(pair) for pair in marks.sealed],
        "on_fault": [list(pair) for pair in marks.on_fault],
        "lock_future": marks.lock_future,
    }
    return {name: value for name, value in values.items() if value}


def decode(kept: Any, guards: Ranges) -> Marks:  # noqa: ANN401
    """Read them back; images of CRIU have none but guards. Raises ValueError or TypeError."""
    kept = kept or {}
    ranges = {
        name: tuple((int(start), int(end)) for start, end in kept.get(name, ()))
        for name in ("sealed", "on_fault")
    }
    return Marks(guards=guards, lock_future=int(kept.get("lock_future", 0)), **ranges)


def encode_guards(marks: Marks, vmas: Any) -> None:  # noqa: ANN401
    """As CRIU 4.2: entries of their own behind the areas, which lie in these."""
    for start, end in marks.guards:
        vmas.add(start=start, end=end, pgoff=0, shmid=0, prot=0, flags=0, status=GUARD, fd=-1)


def decode_guards(vmas: Any) -> Ranges:  # noqa: ANN401
    """Read them back."""
    return tuple((entry.start, entry.end) for entry in vmas if entry.status & GUARD)


def plan_guards(marks: Marks) -> list[Op]:
    """Guard regions, before anything is locked."""
    return [
        Op(
            call="madvise",
            args=(start, end - start, MADV_GUARD_INSTALL),
            subject=f"{start:x}-{end:x}",
            note="guard region",
            remedy="restore on Linux 6.13 or newer",
        )
        for start, end in marks.guards
    ]


def plan_last(marks: Marks) -> list[Op]:
    """What nothing of the address space may be changed behind."""
    ops = []
    if marks.lock_future:
        ops.append(
            Op(
                call="mlockall",
                args=(marks.lock_future,),
                subject="memory",
                note="later mappings are locked",
                expect=Expect.ANY,
            )
        )
    ops += [
        Op(
            call="mseal",
            args=(start, end - start, 0),
            subject=f"{start:x}-{end:x}",
            note="sealed",
            remedy="restore on Linux 6.10 or newer",
        )
        for start, end in marks.sealed
    ]
    return ops
