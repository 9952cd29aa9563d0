# SPDX-License-Identifier: Apache-2.0
"""What is read of a tree before it is stopped, to be found again, or to be proven, under the stop.

Code that can be borrowed is searched for now and compared as bytes before it is used. Areas are
parsed now: a line of smaps that is the same under the stop is not parsed twice. What a thread of
this machine can have at all is asked once.

smaps walks every page: 20 to 35 ms for a GiB of 4 KiB pages. Of a large task it is read now, and
under the stop only maps is compared, and how much is locked. What neither tells (mseal, mlock2,
guard regions, some of madvise) is looked for when smaps is read again after the pause.

NUMA policies and the niceness of a session (autogroup, sched(7)) are taken as they were before it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torpor.engine.capture import process_inside
from torpor.engine.dump import layout, questions, threads
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Error, Refused, Vanished
from torpor.engine.kernel import borrow, proc, uffd
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import Vma, parse_maps, parse_smaps
from torpor.engine.kernel.proc import parse_status
from torpor.engine.memory import areas
from torpor.engine.memory.areas import Area

LARGE_BYTES = 64 << 20
ADVICE = frozenset({"hg", "nh", "rr", "sr", "mg", "dd", "sd", uffd.FLAG})
"""Flags that are taken as they were a moment before the stop, or not at all."""
LOCKED = re.compile(r"^VmLck:.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a text of smaps tells."""

    text: str
    vmas: Sequence[Vma]
    areas: Sequence[Area]
    refused: Sequence[Refused]
    layout: layout.Layout

    @classmethod
    def of(cls, text: str, subject: str, *, watched: bool = False) -> "Parsed":
        """``watched`` are areas whose memory we watch: that is none of theirs."""
        vmas = uffd.unmarked(parse_smaps(text)) if watched else parse_smaps(text)
        found, refused = areas.collect(vmas, subject)
        return cls(
            text=text, vmas=vmas, areas=found, refused=refused, layout=layout.of(vmas, found)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A task as it was before the stop; texts to compare only of a large one."""

    space: AddressSpace
    is_large: bool
    parsed: Parsed
    """Its smaps, which may be the same under the stop."""
    maps: str = ""
    smaps: str = ""
    locked: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    """Content of files of /proc/PID by name, of those which tell something."""

    def knows(self, maps: str, status: str) -> bool:
        """Whether its smaps may stand for the one that was not read under the stop."""
        return bool(self.maps) and maps == self.maps and _locked(status) == self.locked

    def changed(self, smaps: str) -> list[str]:
        """Areas that are now marked in another way, advice aside: what stood for them was wrong."""
        now = _marks(smaps)
        return [area for area, marks in _marks(self.smaps).items() if now.get(area, marks) != marks]


Spaces = dict[int, Looked]
"""Of tasks by pid. One that is not here, or does not hold any more, is found under the stop."""


def look(tasks: Iterable[StoppedTask]) -> Spaces:
    """Read what will be needed. A task that cannot be read yet is refused, if at all, later."""
    threads.asked_settings()
    found: Spaces = {}
    for task in tasks:
        if not task.tids:
            continue
        with suppress(Error):
            found[task.pid] = _look_at(task.pid)
    return found


def verify(spaces: Spaces, smaps_used: Mapping[int, str]) -> None:
    """See that nothing has changed that maps does not tell of; the tasks may run on.

    Raises Vanished when something has: the dump can be tried again.
    """
    for pid, used in smaps_used.items():
        looked = spaces.get(pid)
        if looked is None or not looked.maps or used != looked.smaps:
            continue
        with suppress(Vanished):
            smaps = proc.read_text(pid, "smaps")
            if areas_changed := looked.changed(smaps):
                break
    else:
        return
    raise Vanished(
        "has changed its memory just now",
        subject=f"task {pid}",
        cause=f"by mlock, mseal or madvise: {', '.join(areas_changed)}",
    )


def _look_at(pid: int) -> Looked:
    status = proc.read_text(pid, "status")
    told = parse_status(status)
    maps = proc.read_text(pid, "maps")
    space = AddressSpace.find(pid, parse_maps(maps), told)  # has code be mapped, which smaps counts
    smaps = proc.read_text(pid, "smaps")
    parsed = Parsed.of(smaps, f"task {process_inside(status, pid)}")
    borrow.foresee(
        space,
        (questions.of_leader(told), threads.QUESTION),
        status.encode("utf-8", "surrogateescape"),
    )
    is_large = int((told.line("VmRSS") or "0").split()[0]) << 10 >= LARGE_BYTES
    others = _others(pid, is_leader=told.pid == told.ns_sid[0], is_large=is_large)
    if not is_large or proc.read_text(pid, "maps") != maps:
        return Looked(space=space, is_large=is_large, parsed=parsed, others=others)
    return Looked(
        space=space,
        is_large=True,
        parsed=parsed,
        maps=maps,
        smaps=smaps,
        locked=_locked(status),
        others=others,
    )


def _others(pid: int, *, is_leader: bool, is_large: bool) -> dict[str, str]:
    names = ["autogroup"] if is_leader else []
    if _has_nodes() or not is_large:
        names.append("numa_maps")
    found = {}
    for name in names:
        with suppress(Error):
            found[name] = proc.read_text(pid, name)
    return found


@cache
def _has_nodes() -> bool:
    """Whether there is memory at more than one place."""
    return len([*Path("/sys/devices/system/node").glob("node[0-9]*")]) > 1


def _marks(smaps: str) -> dict[str, frozenset[str]]:
    return {f"{v.start:x}-{v.end:x}": v.vm_flags - ADVICE for v in parse_smaps(smaps)}


def _locked(status: str) -> str:
    found = LOCKED.search(status)
    return found[0] if found else ""
