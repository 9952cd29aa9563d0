# SPDX-License-Identifier: Apache-2.0
"""Rings of io_uring: brought to their old counts, then mapped over what holds their content."""

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torpor.engine import native
from torpor.engine.errors import BadImage, KernelError, Refused
from torpor.engine.files import iouring
from torpor.engine.files.common import created
from torpor.engine.files.iouring import Uring
from torpor.engine.kernel import maps, proc
from torpor.engine.kind import FileId
from torpor.engine.memory.areas import TASK_SIZE, Area, Backing
from torpor.engine.program.ops import Expect, Op, Program
from torpor.engine.restore.contents import subtract
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.work import Work, memory_of

NR_ENTER = 426
REQUEST_BYTES = 64
OFFSET_REQUESTS = 1 << 28
MAP_SHARED_POPULATED = 0x1 | 0x8000
MAP_HOLE = 0x22 | 0x4000 | 0x100000  # private, anonymous, MAP_NORESERVE, MAP_FIXED_NOREPLACE
NO_FD = (1 << 64) - 1
LOWEST = 0x10000
REMEDY = "restore on the kernel of the dump"
SQ_TAIL, CQ_HEAD, CQ_TAIL, SHAPE = 4, 8, 12, slice(16, 32)
"""Where struct io_rings has them; the shape is the masks and sizes of both rings."""

_libc = ctypes.CDLL(None, use_errno=True)


def create(work: Work, root: Living) -> None:
    """All rings of the tree, in every task that maps them."""
    states = _states(work)
    by_inode = {state.ino: file_id for file_id, state in states.items()}
    for file_id, state in states.items():
        with _own(root, work.plan.context.fd(file_id)) as fd:
            _count(fd, state)
    for task in work.alive():
        rings = [a for a in memory_of(task).areas if a.backing is Backing.URING]
        for area in rings:
            if area.shared_id not in by_inode:
                raise BadImage("maps an io_uring that is not in the images", subject=area.subject)
        if rings:
            with _without_holes(task):
                for area in rings:
                    _map(task, area, work.plan.context.fd(by_inode[area.shared_id]))


def _states(work: Work) -> Mapping[FileId, Uring]:
    states = (found for kind, found in work.snapshot.states if kind is iouring.KIND)
    return created(next(states, {}), work.plan.context)


@contextmanager
def _own(root: Living, fd: int) -> Iterator[int]:
    """A descriptor of ours for a ring of the root."""
    pidfd = native.pidfd_open(root.pid)
    try:
        own = native.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
    try:
        yield own
    finally:
        os.close(own)


def _count(fd: int, state: Uring) -> None:
    """Requests that do nothing, until both rings have counted as many as before."""
    size = -(-(64 + 16 * state.completions + 4 * state.submissions) // 4096) * 4096
    with (
        mmap.mmap(fd, size) as rings,
        mmap.mmap(fd, REQUEST_BYTES * state.submissions, offset=OFFSET_REQUESTS) as requests,
    ):
        requests[:] = bytes(len(requests))
        at_once, done = min(state.submissions, state.completions), 0
        while done < state.requests:
            count = min(at_once, state.requests - done)
            done += count
            struct.pack_into("<I", rings, SQ_TAIL, done)
            if _libc.syscall(NR_ENTER, fd, count, 0, 0, None, 0) != count:
                raise KernelError("io_uring_enter failed", errno=ctypes.get_errno(),
                                  subject=iouring.LINK)  # fmt: skip
            struct.pack_into("<I", rings, CQ_HEAD, done)
        (given,) = struct.unpack_from("<I", rings, CQ_TAIL)
    if given != state.requests:
        raise Refused(
            "the rings of this kernel cannot be brought to where they were",
            subject=iouring.LINK, cause=f"{given} of {state.requests} completions",
            remedy=REMEDY,
        )  # fmt: skip


def _map(task: Living, area: Area, fd: int) -> None:
    """In place of the area that holds the old content, which goes into the ring."""
    size = area.size_bytes
    content = native.read_memory(task.pid, area.start, size)
    _call(task, area, "munmap", area.start, size)
    made = _call(task, area, "mmap", 0, size, area.prot, MAP_SHARED_POPULATED, fd, area.offset)
    if made != area.start:
        raise Refused("the ring is not where it was", subject=area.subject,
                      cause=f"the kernel chose {made:x}", remedy=REMEDY)  # fmt: skip
    if area.offset != OFFSET_REQUESTS:
        fresh = native.read_memory(task.pid, made, SHAPE.stop)
        if fresh[SHAPE] != content[SHAPE]:
            raise Refused("the rings of this kernel have another shape", subject=area.subject,
                          remedy=REMEDY)  # fmt: skip
    native.write_memory(task.pid, made, content)


@contextmanager
def _without_holes(task: Living) -> Iterator[None]:
    """With every hole of the address space taken, so that the kernel has no choice."""
    used = [(v.start, v.end) for v in maps.parse_maps(proc.read_text(task.pid, "maps"))]
    holes = subtract([(LOWEST, TASK_SIZE)], used)
    _run(task, [
        Op(call="mmap", args=(start, end - start, 0, MAP_HOLE, NO_FD, 0), subject="hole",
           expect=Expect.EQUAL, want=start)
        for start, end in holes
    ])  # fmt: skip
    yield
    _run(task, [Op(call="munmap", args=(a, b - a), subject="hole") for a, b in holes])


def _run(task: Living, ops: list[Op]) -> None:
    task.arena.run(task.pid, Program("holes", ops), task.image.subject)


def _call(task: Living, area: Area, name: str, *args: int) -> int:
    result = task.arena.call(task.pid, name, *args)
    if -4096 < result < 0:
        raise KernelError(f"{name} of a ring failed", errno=-result, subject=area.subject)
    return result
