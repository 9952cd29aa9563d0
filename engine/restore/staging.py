# SPDX-License-Identifier: Apache-2.0
"""Huge pages for a task's memory: made in a staging area, and moved to their place.

Facts (mm/userfaultfd.c, mm/khugepaged.c; v6.18):
- MADV_HUGEPAGE has pages made huge as they are written, but nothing takes the mark off an area
  again: MADV_NOHUGEPAGE sets another. So they are made in an area that goes afterwards.
- UFFDIO_MOVE (Linux 6.8) moves pages, huge ones whole, between private anonymous areas of one
  address space that have the same protection and lock, whatever their other marks. The target
  must be registered, and the task must ask for it itself. A GiB takes 1 ms.
- UFFD_USER_MODE_ONLY needs no right. With the last copy of the descriptor the registrations end,
  and areas that were split for them merge again.
- MADV_COLLAPSE (Linux 6.1) makes pages huge in place, whatever the setting of the system is, and
  holds the lock of the address space while it zeroes and copies: nobody can fill meanwhile.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torpor.engine import native
from torpor.engine.errors import Error
from torpor.engine.kernel import maps, proc
from torpor.engine.memory import areas
from torpor.engine.program.ops import Data, Expect, Op, Program
from torpor.engine.restore.arena import find_hole
from torpor.engine.restore.spawn import Living

HUGE = 2 << 20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
MAP_STAGING = 0x22 | 0x4000 | 0x100000  # PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE
PROT_RW = 3
NO_FD = (1 << 64) - 1
O_CLOEXEC, USER_MODE_ONLY = 0o2000000, 1
UFFD_API, FEATURE_MOVE, MISSING = 0xAA, 1 << 16, 1
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_MOVE = 0xC018AA3F, 0xC020AA00, 0xC028AA05
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Range = tuple[int, int]
Staged = tuple[int, int, int]
"""Address, bytes, address in the staging area."""


@dataclass(slots=True, kw_only=True)
class HugePages:
    """What makes them in one task."""

    task: Living
    unfiltered: bool = True
    """No seccomp filter may end the task for a call that its container does not permit."""
    ranges: Sequence[Staged] = field(default_factory=list)
    _fd: int = -1

    def stage(self, ranges: Sequence[Range]) -> bool:
        """Have a staging area for ranges; False where there can be none."""
        if is_switched_off() or not self.unfiltered or not self._begin():
            return False
        size = sum(end - start for start, end in ranges)
        vmas = maps.parse_maps(proc.read_text(self.task.pid, "maps"))
        try:
            at = find_hole([(v.start, v.end) for v in vmas if v.end <= areas.TASK_SIZE], size)
            self._run("room for huge pages", [
                Op(call="mmap", args=(at, size, PROT_RW, MAP_STAGING, NO_FD, 0),
                   expect=Expect.EQUAL, want=at),
                Op(call="madvise", args=(at, size, MADV_HUGEPAGE)),
            ])  # fmt: skip
        except Error:
            self._end([])
            return False
        found = []
        for start, end in ranges:
            found.append((start, end - start, at))
            at += end - start
        self.ranges = found
        return True

    def place(self, places: bytes) -> bool:
        """Move what was staged (of each huge page, whether); False when that failed."""
        moves = staged_pieces(self.ranges, places)
        try:
            self._run("huge pages to their place", [
                *(_register(self._fd, start, size) for start, size, _ in self.ranges),
                *(_move(self._fd, *piece) for piece in moves),
            ])  # fmt: skip
        except Error:
            return False
        finally:
            size = sum(size for _, size, _ in self.ranges)
            self._end([Op(call="munmap", args=(self.ranges[0][2], size))])
        return True

    def collapse(self, ranges: Sequence[Range]) -> None:
        """Huge pages where there are pages; where the kernel will not, they stay small."""
        self._run("huge pages", [
            Op(call="madvise", args=(start, end - start, MADV_COLLAPSE), expect=Expect.ANY,
               subject=f"{start:x}-{end:x}")
            for start, end in ranges
        ])  # fmt: skip

    def _begin(self) -> bool:
        """Have a userfaultfd that can move pages."""
        arena, pid = self.task.arena, self.task.pid
        self._fd = arena.call(pid, "userfaultfd", O_CLOEXEC | USER_MODE_ONLY)
        if self._fd < 0:
            return False
        native.write_memory(pid, arena.scratch, struct.pack("<3Q", UFFD_API, 0, 0))
        result = arena.call(pid, "ioctl", self._fd, UFFDIO_API, arena.scratch)
        features = struct.unpack("<3Q", native.read_memory(pid, arena.scratch, 24))[1]
        if result < 0 or not features & FEATURE_MOVE:
            self._end([])
            return False
        return True

    def _end(self, ops: Sequence[Op]) -> None:
        self._run("huge pages are made", [*ops, Op(call="close", args=(self._fd,))])
        self._fd, self.ranges = -1, []

    def _run(self, name: str, ops: Sequence[Op]) -> None:
        self.task.arena.run(self.task.pid, Program(name, list(ops)), self.task.image.subject)


def is_switched_off() -> bool:
    """Whether no page becomes huge when it is first written, whatever is advised."""
    with suppress(OSError):
        return "[never]" in SETTING.read_text(encoding="ascii")
    return True


def staged_pieces(ranges: Sequence[Staged], places: bytes) -> list[Staged]:
    """The parts of ranges that were staged; ``places`` has 1 for such a huge page, in order."""
    pieces: list[Staged] = []
    number = 0
    for start, size, staged in ranges:
        for at in range(0, size, HUGE):
            if places[number] == native.STAGED:
                last = pieces[-1] if pieces else (0, 0, 0)
                if at and last[0] + last[1] == start + at:
                    pieces[-1] = (last[0], last[1] + HUGE, last[2])
                else:
                    pieces.append((start + at, HUGE, staged + at))
            number += 1
    return pieces


def _register(fd: int, start: int, size: int) -> Op:
    request = Data(struct.pack("<4Q", start, size, MISSING, 0))
    return Op(call="ioctl", args=(fd, UFFDIO_REGISTER, request), subject=f"{start:x}")


def _move(fd: int, start: int, size: int, staged: int) -> Op:
    request = Data(struct.pack("<4Qq", start, staged, size, 0, 0))
    return Op(call="ioctl", args=(fd, UFFDIO_MOVE, request), subject=f"{start:x}")
