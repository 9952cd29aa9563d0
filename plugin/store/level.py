# SPDX-License-Identifier: Apache-2.0
"""How strongly chunks are compressed: as it is quickest for the store that is written to.

A chunk costs the time of its compression and that of writing what is left of it. A slow store is
worth a stronger level, a quick one none. Both times are measured of every chunk; the level with
the smallest expected sum is taken, and every so often one of its neighbours, to know it as well.
"""

import threading
from dataclasses import dataclass

LEVELS = (-7, -3, 1, 3, 6, 9)
"""Of zstd; each takes about twice the time of the one before."""
FIRST = LEVELS.index(1)
TRY_EVERY = 8
KEPT = 0.8
"""Weight of what was known against what was measured last."""


@dataclass(slots=True)
class _Known:
    """Of one level, per plain byte: seconds of compression, bytes that are left."""

    compress_s: float
    left: float

    def learn(self, compress_s: float, left: float) -> None:
        self.compress_s = KEPT * self.compress_s + (1 - KEPT) * compress_s
        self.left = KEPT * self.left + (1 - KEPT) * left


class Levels:
    """The level for the next chunk. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._write_s = 0.0
        """Per byte that is left."""
        self._count = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """Level of zstd for a chunk."""
        with self._lock:
            self._count += 1
            best = self._best()
            if self._count % TRY_EVERY:
                return LEVELS[best]
            step = 1 if self._count // TRY_EVERY % 2 else -1
            return LEVELS[min(max(best + step, 0), len(LEVELS) - 1)]

    def learn(self, level: int, plain: int, left: int, compress_s: float, write_s: float) -> None:
        """What a chunk of so many bytes has cost, and what was left of it."""
        if not plain or not left:
            return
        with self._lock:
            known = self._known.get(level)
            if known is None:
                self._known[level] = _Known(compress_s / plain, left / plain)
            else:
                known.learn(compress_s / plain, left / plain)
            cost = write_s / left
            self._write_s = KEPT * self._write_s + (1 - KEPT) * cost if self._write_s else cost

    def _best(self) -> int:
        if not self._known:
            return FIRST
        return LEVELS.index(min(self._known, key=self._cost))

    def _cost(self, level: int) -> float:
        known = self._known[level]
        return known.compress_s + known.left * self._write_s
