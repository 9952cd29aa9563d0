# SPDX-License-Identifier: Apache-2.0
"""What a thread of ours does while others wait for it: it comes first."""

import gc
import os
from contextlib import suppress

FIRST_NICE = -20


class Haste:
    """What this thread does while tasks stand still, and no longer: it comes before others.

    No cyclic garbage is looked for either: with much captured that takes longer than the capture.
    """

    def __init__(self) -> None:
        self._nice: int | None = None
        self._collecting = False

    def begin(self) -> None:
        """From now on; without CAP_SYS_NICE as before."""
        self._collecting = gc.isenabled()
        gc.disable()
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, FIRST_NICE)

    def end(self) -> None:
        """As it was. May be called again."""
        if self._nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)
            self._nice = None
        if self._collecting:
            gc.enable()
            self._collecting = False

    def __enter__(self) -> "Haste":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
