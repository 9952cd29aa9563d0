# SPDX-License-Identifier: Apache-2.0
"""What a thread of ours does while others wait for it: it comes first.

Facts: a nice value counts among the tasks of one session only where the kernel groups by these
(sched_autogroup_enabled), and among those of one cgroup. A thread with SCHED_RR comes before all
that are neither; threads and children of it are not so (SCHED_RESET_ON_FORK); it ends with it.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIRST_NICE = -20
FIRST = os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1)


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage is looked for: with much in memory that takes longer than the work."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Haste:
    """What this thread does while tasks stand still, and no longer: it comes before others.

    ``pressing`` is for moments: before all others, not only by a nice value.

    No cyclic garbage is looked for either: with much captured that takes longer than the capture.
    """

    def __init__(self, *, pressing: bool = False) -> None:
        self._pressing = pressing
        self._nice: int | None = None
        self._policy: tuple[int, os.sched_param] | None = None
        self._collecting = False

    def begin(self) -> None:
        """From now on; without CAP_SYS_NICE as before."""
        self._collecting = gc.isenabled()
        gc.disable()
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, FIRST_NICE)
            if self._pressing:
                self.press()

    def press(self) -> None:
        """What follows takes moments (again): before all others."""
        if self._policy is None and self._nice is not None:
            with suppress(OSError):
                before = os.sched_getscheduler(0), os.sched_getparam(0)
                os.sched_setscheduler(0, *FIRST)
                self._policy = before

    def ease(self) -> None:
        """What follows takes longer than moments. May be called again."""
        if self._policy is not None:
            os.sched_setscheduler(0, *self._policy)
            self._policy = None

    def end(self) -> None:
        """As it was. May be called again."""
        self.ease()
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
