# SPDX-License-Identifier: Apache-2.0
"""Rings of io_setup(2): made anew and moved over what holds their place and their content."""

import struct

from torpor.engine import native
from torpor.engine.errors import KernelError, Refused
from torpor.engine.memory import aio
from torpor.engine.memory.aio import Ring
from torpor.engine.restore.arena import SCRATCH_BYTES
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import memory_of

AT_FDCWD = -100
AT_ONCE = (SCRATCH_BYTES - 64) // 8
MREMAP_FLAGS = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
REMEDY = "raise fs.aio-max-nr"


def create(task: Living) -> None:
    """All rings of a task, whose areas hold what they had."""
    for area in aio.rings_of(memory_of(task).areas):
        raw = native.read_memory(task.pid, area.start, area.size_bytes)
        ring = aio.parse(area, raw)
        made = _set_up(task, ring)
        _complete(task, made, len(ring.events) // aio.EVENT_BYTES)
        native.write_memory(task.pid, made + aio.HEADER.size, ring.events)
        size = ring.size_bytes
        _call(task, ring, "mremap", made, size, size, MREMAP_FLAGS, ring.start)


def _set_up(task: Living, ring: Ring) -> int:
    """Address of a fresh ring of the same length."""
    scratch = task.arena.scratch
    native.write_memory(task.pid, scratch, bytes(8))
    _call(task, ring, "io_setup", ring.requests, scratch)
    (made,) = struct.unpack("<Q", native.read_memory(task.pid, scratch, 8))
    raw = native.read_memory(task.pid, made, aio.HEADER.size)
    _, room, *_ = aio.HEADER.unpack(raw)
    if aio.HEADER.size + room * aio.EVENT_BYTES != ring.size_bytes:
        raise Refused(
            "this machine has more processors, and gives a larger ring of events",
            subject=_subject(task, ring), cause=f"{room} events",
            remedy="restore on a machine with fewer processors",
        )  # fmt: skip
    return int(made)


def _complete(task: Living, made: int, count: int) -> None:
    """Have the kernel count as many events as there were."""
    if not count:
        return
    arena, pid = task.arena, task.pid
    native.write_memory(pid, arena.scratch, b"/dev/null\0")
    fd = arena.call(pid, "openat", AT_FDCWD, arena.scratch, 0, 0)
    native.write_memory(pid, arena.scratch, aio.empty_read(fd))
    native.write_memory(pid, arena.scratch + 64, struct.pack("<Q", arena.scratch) * AT_ONCE)
    done = 0
    while done < count:
        got = arena.call(pid, "io_submit", made, min(count - done, AT_ONCE), arena.scratch + 64)
        if got <= 0:
            raise KernelError("io_submit failed", errno=-got, subject=task.image.subject)
        done += got
    arena.call(pid, "close", fd)


def _call(task: Living, ring: Ring, name: str, *args: int) -> None:
    result = task.arena.call(task.pid, name, *args)
    if result < 0:
        raise KernelError(f"{name} failed", errno=-result, subject=_subject(task, ring),
                          remedy=REMEDY)  # fmt: skip


def _subject(task: Living, ring: Ring) -> str:
    return f"{task.image.subject}, ring of events at {ring.start:x}"
