# SPDX-License-Identifier: Apache-2.0
"""Clocks that go on: a tree gets a time namespace in which no time has passed since its dump.

CLOCK_MONOTONIC and CLOCK_BOOTTIME count from the boot of a machine. On another one a program would
find its deadlines long past, or wait for them as long as the first machine had been up.

Facts: the root enters the namespace as it executes its first program (native/seam/spawn.c); a task
that is there already, as a container's placeholder, could do so by its own rights only. See
`kernel/clocks.py`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import BadImage, Denied, KernelError
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import Source
from torpor.engine.kernel import clocks
from torpor.engine.kernel.clocks import SECOND_NS, Clocks
from torpor.engine.options import ClockPolicy

TOLERANCE_S = 2.0
LATEST_S = 1 << 32
"""The kernel takes none above half of what fits into a ktime_t."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the clocks said to the tree when it was dumped; ``realtime_ns`` is 0 when not known."""

    clocks: Clocks
    realtime_ns: int = 0


def read(images: ImageDirectory, source: Source) -> Recorded | None:
    """Of an image directory; None where it does not say. Raises BadImage."""
    for name in images.names:
        if name.startswith("timens-"):
            entry = images.message(name, pb.timens_entry)
            told = Clocks(_ns(entry.monotonic, name), _ns(entry.boottime, name))
            wall = source.extra("dump", "realtime_ns")
            is_one = isinstance(wall, int) and 0 < wall < LATEST_S * SECOND_NS
            return Recorded(clocks=told, realtime_ns=wall if is_one else 0)
    return None


def offsets(recorded: Recorded | None, policy: ClockPolicy) -> Clocks | None:
    """Of the namespace that a tree is to get; None when it is to get none."""
    if recorded is None or policy is ClockPolicy.MACHINE:
        return None
    return clocks.to_go_on(recorded.clocks)


@contextmanager
def opened(namespace: Path | None) -> Iterator[int]:
    """A descriptor of a namespace that is there already; -1 for none. Raises KernelError."""
    if namespace is None:
        yield -1
        return
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("cannot open the time namespace", errno=error.errno or 0,
                          subject=str(namespace),
                          remedy="give a file like /proc/PID/ns/time") from error  # fmt: skip
    try:
        yield fd
    finally:
        os.close(fd)


def not_entered(pid: int, fd: int, namespace: Path) -> None:
    """Raise Denied for a task that has not entered it."""
    wanted = os.fstat(fd)
    with suppress(OSError):  # a kernel without such namespaces
        own = os.stat(f"/proc/{pid}/ns/time")
        if (own.st_dev, own.st_ino) == (wanted.st_dev, wanted.st_ino):
            return
    raise Denied(
        "the tree cannot enter the time namespace",
        subject=str(namespace),
        remedy="run with CAP_SYS_ADMIN, and give the file of a time namespace",
    )


def missing(
    pid: int, wanted: Clocks | None, recorded: Recorded | None, policy: ClockPolicy
) -> str | None:
    """What to tell when a task has not got it. Raises Denied where it must."""
    if wanted is not None and clocks.offsets(pid) == wanted:
        return None
    if policy is ClockPolicy.CONTINUE:
        raise Denied(
            "the clocks of the tree cannot go on",
            subject=f"pid {pid}",
            cause="no time namespace for it" if recorded else "the images do not tell them",
            remedy="run with CAP_SYS_ADMIN and CAP_SYS_TIME, or restore with --clocks machine",
        )
    return jump(recorded)


def jump(recorded: Recorded | None) -> str | None:
    """What to tell a tree that lives by the clocks of this machine."""
    if recorded is None or not recorded.realtime_ns:
        return None
    passed_ns = clocks.now().monotonic_ns - recorded.clocks.monotonic_ns
    jump_s = (passed_ns - (time.time_ns() - recorded.realtime_ns)) / SECOND_NS
    if abs(jump_s) < TOLERANCE_S:
        return None
    return (
        f"CLOCK_MONOTONIC jumps by {jump_s:+.0f} s (another boot): deadlines that a program "
        "keeps on it come early or late by as much"
    )


def _ns(told: pb.timespec, name: str) -> int:
    if told.tv_sec >= LATEST_S or told.tv_nsec >= SECOND_NS:
        raise BadImage("tells a time that cannot be", subject=f"{name}.img",
                       cause=f"{told.tv_sec} s and {told.tv_nsec} ns")  # fmt: skip
    return int(told.tv_sec) * SECOND_NS + int(told.tv_nsec)
