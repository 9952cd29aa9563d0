# SPDX-License-Identifier: Apache-2.0
"""Memory is read from the tasks straight into the images, because they stand still until then.

That is so when they are to be ended, or to stay stopped: no room of ours is needed.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

from torpor.engine import native
from torpor.engine.dump.ways.way import Part, Runs, Way
from torpor.engine.kernel import pagemap
from torpor.engine.options import MemoryWay


class Held(Way):
    """The tasks themselves are the source."""

    kind = MemoryWay.FROZEN

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._files: list[int] = []

    def take(self, parts: Sequence[Part]) -> None:
        """Find the pages."""
        for part in parts:
            if part.source is None:
                part.scan(part.pid)
                part.source = Runs(self._origin(part), part.runs)

    def _origin(self, part: Part) -> int:
        """What others have copy-on-write is not pinned (see native/seam/memory.c)."""
        if not part.forked:
            return native.of_task(part.pid)
        self._files.append(pagemap.open_memory(part.pid))
        return native.of_file(self._files[-1])

    def close(self) -> None:
        """Close what was opened."""
        for fd in self._files:
            with suppress(OSError):
                os.close(fd)
        self._files.clear()
