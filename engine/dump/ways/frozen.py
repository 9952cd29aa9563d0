# SPDX-License-Identifier: Apache-2.0
"""Memory is copied while the tasks stand still: into buffers, made before the stop.

It always works; the pause grows by 110 to 220 ms for each GiB. A stop that nobody waits for to
end needs no copy of ours: see `held.py`.
"""

from collections.abc import Sequence

from torpor.engine.dump.buffers import Capture
from torpor.engine.dump.ways.way import Part, Way
from torpor.engine.options import MemoryWay


class Frozen(Way):
    """Buffers with room for about ``size_bytes``."""

    kind = MemoryWay.FROZEN

    def __init__(self, size_bytes: int, reason: str) -> None:
        self.reason = reason
        self._size_bytes = size_bytes
        self._capture = Capture()

    def prepare(self) -> None:
        """Have the pages of the buffers."""
        self._capture.prepare(self._size_bytes)

    def take(self, parts: Sequence[Part]) -> None:
        """Copy."""
        for part in parts:
            if part.source is None:
                part.scan(part.pid)
                part.source = self._capture.read(part.pid, part.runs, forked=part.forked)

    def close(self) -> None:
        """Free the buffers."""
        self._capture.close()
