# SPDX-License-Identifier: Apache-2.0
"""Room for the pages of stopped tasks: made ready before the stop, written after the thaw.

Facts (measured, B of the kernel notes): allocating the destination is what costs; into huge
pages that are there already, two threads of process_vm_readv take 108 ms a GiB, into a new
file 530 to 750.
"""

from array import array
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.closing import Closing
from torpor.engine.kernel.room import memory_room

ROUND = 2 << 20
HEADROOM = 1.05
RESERVE = 64 << 20
"""Left alone for everything else that the dump does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a buffer."""

    buffer: native.Buffer
    start: int
    size_bytes: int

    def extents(self, start: int, size_bytes: int) -> "array[int]":
        """See `ways.way.Source`."""
        return self.buffer.extent(self.start + start, size_bytes)


class Capture(Closing):
    """Buffers of one dump. A context manager: freed at its end."""

    def __init__(self) -> None:
        self._buffers: list[native.Buffer] = []
        self._used = 0

    def prepare(self, size_bytes: int) -> None:
        """Have room for about that many bytes, its pages present, as far as memory allows.

        Tasks that share memory count it each, so the number may be far too large.
        """
        wanted = int(size_bytes * HEADROOM) + ROUND
        self._grow(min(wanted, max(memory_room() - RESERVE, ROUND)))

    def _grow(self, size_bytes: int) -> None:
        size = (size_bytes + ROUND - 1) // ROUND * ROUND
        buffer = native.Buffer(size)
        self._buffers.append(buffer)
        self._used = 0
        buffer.populate(0, size)

    def read(self, pid: int, runs: "array[int]", *, forked: bool = False) -> Slice:
        """Copy (address, bytes) runs of a stopped task; ``forked`` see `native.Buffer`.

        What was not expected needs more room, and the pause grows by the time to make it.
        """
        need = sum(runs[1::2])
        if not self._buffers or self._buffers[-1].size - self._used < need:
            self._grow(need)
        part = Slice(buffer=self._buffers[-1], start=self._used, size_bytes=need)
        if need:
            part.buffer.capture_runs(pid, runs, part.start, forked=forked)
        self._used += need
        return part

    def close(self) -> None:
        """Give the room back."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()
