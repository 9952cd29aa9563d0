# SPDX-License-Identifier: Apache-2.0
"""CLOCK_MONOTONIC and CLOCK_BOOTTIME over a move: they go on, and so do deadlines on them."""

import ctypes
import os
import threading
import time

from files_base import LIBC, chosen, state

MONOTONIC, ABSOLUTE, CLONE_NEWTIME = 1, 1, 0x80
AHEAD_S = 2


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("rest", ctypes.c_long))


def sleeps_until(deadline, woken):
    at = Timespec(int(deadline), int(deadline % 1 * 1e9))
    assert LIBC.clock_nanosleep(MONOTONIC, ABSOLUTE, ctypes.byref(at), None) == 0
    woken.append(time.monotonic())


def tells(place):
    both = (time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    (place / "clocks").write_text(" ".join(str(one) for one in both))


@state
def goes_on(place):
    """A thread sleeps until a deadline of the old clock; a child has the same clocks."""
    woken = []
    deadline = time.monotonic() + AHEAD_S
    sleeper = threading.Thread(target=sleeps_until, args=(deadline, woken))
    sleeper.start()
    before = time.monotonic()
    yield
    tells(place)
    assert time.monotonic() >= before
    sleeper.join(60)
    assert woken, "it sleeps too long"
    assert woken[0] >= deadline
    pid = os.fork()
    if not pid:
        os._exit(time.monotonic() < before)
    assert os.waitpid(pid, 0)[1] == 0


@state
def for_children(place):
    """Only what it forks is going to be in another time namespace."""
    assert LIBC.unshare(CLONE_NEWTIME) == 0
    yield


if __name__ == "__main__":
    chosen()
