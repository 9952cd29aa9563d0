# SPDX-License-Identifier: Apache-2.0
"""What a thread of ours does while others wait for it: it comes first.

Facts: a nice value counts among the tasks of one session only where the kernel groups by these
(sched_autogroup_enabled), and among those of one cgroup. A thread with SCHED_RR comes before all
that are neither; threads and children of it are not so (SCHED_RESET_ON_FORK); it ends with it.

A processor without work halts, and to wake it takes 20 to 50 microseconds on a virtual machine,
more where it sleeps deeply: twice for each time that a task runs for us and stops again. While
someone holds /dev/cpu_dma_latency with a 0 in it, those without work look for some all the time
(Documentation/power/pm_qos_interface.rst, v6.18; tried: a small task stood still for 1.45 ms
instead of 2.0, its restore took 7.2 instead of 8.7). It ends with the file, so also with us.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIRST_NICE = -20
LATENCY = "/dev/cpu_dma_latency"
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


class Processors:
    """Whether those without work answer at once."""

    __slots__ = ("_file",)

    def __init__(self) -> None:
        self._file = -1

    def wake(self) -> None:
        """From now on, for moments: it takes as much power as work does. Without the right, not."""
        if self._file < 0:
            with suppress(OSError):
                self._file = os.open(LATENCY, os.O_WRONLY | os.O_CLOEXEC)
                os.write(self._file, bytes(4))

    def rest(self) -> None:
        """They may sleep. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


OF_A_RESTORE = Processors()
"""Those of the restore that this process makes: what takes longer than moments lets them rest."""


@contextmanager
def awake() -> Iterator[None]:
    """A restore: many processes are born, and each is waited for."""
    OF_A_RESTORE.wake()
    try:
        yield
    finally:
        OF_A_RESTORE.rest()


class Haste:
    """What this thread does while tasks stand still, and no longer: it comes before others.

    ``pressing`` is for moments: before all others, not only by a nice value.

    No cyclic garbage is looked for either: with much captured that takes longer than the capture.
    """

    def __init__(self, *, pressing: bool = False) -> None:
        self._pressing = pressing
        self._processors = Processors()
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
        if self._nice is not None:
            self._processors.wake()
        if self._policy is None and self._nice is not None:
            with suppress(OSError):
                before = os.sched_getscheduler(0), os.sched_getparam(0)
                os.sched_setscheduler(0, *FIRST)
                self._policy = before

    def ease(self) -> None:
        """What follows takes longer than moments. May be called again."""
        self._processors.rest()
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
