# SPDX-License-Identifier: Apache-2.0
"""CLOCK_MONOTONIC and CLOCK_BOOTTIME as a task reads them, and time namespaces.

Facts (probed on v6.18):
- Both count from the boot of a machine. A time namespace adds an offset to each; it is told by
  /proc/PID/timens_offsets, always in relation to the first namespace, and set there by a task with
  CAP_SYS_TIME before the first one enters (then EACCES).
- That file is about the namespace that children will be in, which is the task's own unless it has
  called unshare(2).
- unshare(CLONE_NEWTIME) and setns(2) need CAP_SYS_ADMIN; setns takes a task with one thread only.
- A time that the program would read as less than 0 is refused (ERANGE).

Source: time_namespaces(7); kernel/time/namespace.c, proc_timens_set_offset (v6.18).
"""

import time
from typing import NamedTuple

from torpor.engine.errors import Error
from torpor.engine.kernel import proc

SECOND_NS = 1_000_000_000


class Clocks(NamedTuple):
    """What both say, or what a namespace adds to them."""

    monotonic_ns: int
    boottime_ns: int


NONE = Clocks(0, 0)


def offsets(pid: int | str) -> Clocks:
    """Of a task's time namespace; nothing where there are no such."""
    try:
        text = proc.read_text(pid, "timens_offsets")
    except Error:
        return NONE
    found = {}
    for line in text.splitlines():
        name, seconds, rest = line.split()
        found[name] = int(seconds) * SECOND_NS + int(rest)
    return Clocks(found.get("monotonic", 0), found.get("boottime", 0))


def ahead(pid: int | str) -> Clocks:
    """By how much a task's clocks are ahead of ours."""
    own, ours = offsets(pid), offsets("self")
    return Clocks(own.monotonic_ns - ours.monotonic_ns, own.boottime_ns - ours.boottime_ns)


def now(by: Clocks = NONE) -> Clocks:
    """What a task reads that is ahead of us by so much."""
    return Clocks(
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) + by.monotonic_ns,
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) + by.boottime_ns,
    )


def to_go_on(wanted: Clocks) -> Clocks:
    """The offsets of a namespace in which a task reads this at the moment."""
    ours, here = offsets("self"), now()
    return Clocks(
        wanted.monotonic_ns - here.monotonic_ns + ours.monotonic_ns,
        wanted.boottime_ns - here.boottime_ns + ours.boottime_ns,
    )


def as_text(offset: Clocks) -> bytes:
    """As /proc/PID/timens_offsets takes it."""
    named = (("monotonic", offset.monotonic_ns), ("boottime", offset.boottime_ns))
    lines = (f"{name} {ns // SECOND_NS} {ns % SECOND_NS}\n" for name, ns in named)
    return "".join(lines).encode()
