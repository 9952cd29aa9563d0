# SPDX-License-Identifier: Apache-2.0
"""A task's fresh memory made ready to be filled: small pages in place, huge ones aside.

Huge pages are made in a staging area, and moved to their place.

Facts (mm/userfaultfd.c, mm/khugepaged.c; v6.18):
- MADV_HUGEPAGE has pages made huge as they are written, but nothing takes the mark off an area
  again: MADV_NOHUGEPAGE sets another. So they are made in an area that goes afterwards.
- UFFDIO_MOVE (Linux 6.8) moves pages, huge ones whole, between private anonymous areas of one
  address space that have the same protection and lock, whatever their other marks. The target
  must be registered, and the task must ask for it itself. A GiB takes 1 ms.
- UFFD_USER_MODE_ONLY needs no right. With the last copy of the descriptor the registrations end,
  and areas that were split for them merge again.
- UFFDIO_COPY of whoever has a copy makes small pages where none are, without zeroing them and
  without a fault: 1 GiB by two threads takes a third less of the processor than process_vm_writev.
  Where a limit of memory is met it fails (ENOMEM). A page that is missing in a registered area
  cannot be written by process_vm_writev (EFAULT).
- MADV_COLLAPSE (Linux 6.1) makes pages huge in place, whatever the setting of the system is, and
  holds the lock of the address space while it zeroes and copies: nobody can fill meanwhile.
"""

import fcntl
import os
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
FLAGS = os.O_CLOEXEC | 1  # UFFD_USER_MODE_ONLY
UFFD_API, FEATURE_MOVE, MISSING = 0xAA, 1 << 16, 1
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_MOVE = 0xC018AA3F, 0xC020AA00, 0xC028AA05
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Range = tuple[int, int]
Staged = tuple[int, int, int]
"""Address, bytes, address in the staging area; 0 for what is not to be staged."""


@dataclass(slots=True, kw_only=True)
class Staging:
    """What makes pages in one task."""

    task: Living
    unfiltered: bool = True
    """No seccomp filter may end the task for a call that its container does not permit."""
    ranges: Sequence[Staged] = field(default_factory=list)
    """All that is registered, by address."""
    fd: int = -1
    """Our copy of the task's userfaultfd."""
    _inside: int = -1
    _area: Range = (0, 0)
    """The staging area."""

    def stage(self, huge: Sequence[Range], small: Sequence[Range]) -> bool:
        """Register ranges in which nothing is, with a staging area for huge ones.

        False where that cannot be, or where huge pages are wanted and none are made.
        """
        if (huge and is_switched_off()) or not self.unfiltered or not self._begin():
            return False
        try:
            staged = self._make_area(huge) if huge else []
            self.ranges = sorted([*staged, *((start, end - start, 0) for start, end in small)])
            for start, size, _ in self.ranges:
                request = struct.pack("<4Q", start, size, MISSING, 0)
                fcntl.ioctl(self.fd, UFFDIO_REGISTER, request)
        except (Error, OSError):
            self.give_up()
            return False
        return True

    def place(self, places: bytes) -> bool:
        """Move what was staged (of each huge page, whether); False when that failed."""
        moves = staged_pieces([one for one in self.ranges if one[2]], places)
        try:
            if moves:
                ops = [_move(self._inside, *piece) for piece in moves]
                self._run("huge pages to their place", ops)
        except Error:
            return False
        finally:
            self.give_up()
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
        self._inside = self.task.arena.call(self.task.pid, "userfaultfd", FLAGS)
        if self._inside < 0:
            return False
        try:
            pidfd = native.pidfd_open(self.task.pid)
            try:
                self.fd = native.pidfd_getfd(pidfd, self._inside)
            finally:
                os.close(pidfd)
            told = fcntl.ioctl(self.fd, UFFDIO_API, struct.pack("<3Q", UFFD_API, 0, 0))
        except (Error, OSError):
            self.give_up()
            return False
        if not struct.unpack("<3Q", told)[1] & FEATURE_MOVE:
            self.give_up()
            return False
        return True

    def _make_area(self, huge: Sequence[Range]) -> list[Staged]:
        size = sum(end - start for start, end in huge)
        vmas = maps.parse_maps(proc.read_text(self.task.pid, "maps"))
        at = find_hole([(v.start, v.end) for v in vmas if v.end <= areas.TASK_SIZE], size)
        self._run("room for huge pages", [
            Op(call="mmap", args=(at, size, PROT_RW, MAP_STAGING, NO_FD, 0),
               expect=Expect.EQUAL, want=at),
            Op(call="madvise", args=(at, size, MADV_HUGEPAGE)),
        ])  # fmt: skip
        self._area = at, size
        staged = []
        for start, end in huge:
            staged.append((start, end - start, at))
            at += end - start
        return staged

    def give_up(self) -> None:
        """Nothing of it is left; may be called again."""
        if self.fd >= 0:
            os.close(self.fd)
        ops = [Op(call="munmap", args=self._area)] if self._area[1] else []
        if self._inside >= 0:
            ops.append(Op(call="close", args=(self._inside,)))
        self.fd, self._inside, self._area, self.ranges = -1, -1, (0, 0), []
        if ops:
            self._run("pages are made", ops)

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


def _move(fd: int, start: int, size: int, staged: int) -> Op:
    request = Data(struct.pack("<4Qq", start, staged, size, 0, 0))
    return Op(call="ioctl", args=(fd, UFFDIO_MOVE, request), subject=f"{start:x}")
