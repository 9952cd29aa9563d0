# SPDX-License-Identifier: Apache-2.0
"""What of a pause is spent in calls of the engine's C code, which are next to only the kernel's.

The rest is Python between them. Each call is timed from outside, which costs less than a
microsecond a call.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from torpor.engine import haste
from torpor.engine.native.seam import lib

NATIVE = "torpor.engine.native."


class Timed:
    """In place of the C library: adds up how long its functions take while it ``counts``."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.counts = False

    def __getattr__(self, name: str) -> object:
        found = getattr(lib, name)
        if not callable(found):
            return found
        timed = self._timed(found)
        setattr(self, name, timed)
        return timed

    def _timed(self, call: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object) -> object:
            begin = time.perf_counter()
            try:
                return call(*args)
            finally:
                if self.counts:
                    self.spent_s += time.perf_counter() - begin

        return timed


@contextmanager
def timed() -> Iterator[Timed]:
    """Counts from the begin of a dump's pause to its end."""
    found = Timed()
    begin, end = haste.Haste.begin, haste.Haste.end

    def begins(self: haste.Haste) -> None:
        begin(self)
        found.counts = True

    def ends(self: haste.Haste) -> None:
        found.counts = False
        end(self)

    modules = [
        m for name, m in sys.modules.items() if name.startswith(NATIVE) and hasattr(m, "lib")
    ]
    with mock.patch.multiple(haste.Haste, begin=begins, end=ends):
        for module in modules:
            module.lib = found  # type: ignore[attr-defined]
        try:
            yield found
        finally:
            for module in modules:
                module.lib = lib  # type: ignore[attr-defined]
