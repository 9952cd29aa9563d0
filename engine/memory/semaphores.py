# SPDX-License-Identifier: Apache-2.0
"""System V semaphores in a namespace that is not the tree's own, and SEM_UNDO.

Facts (probed on v6.18):
- A set outlives its users, so on the same host its values are there when the tree comes back.
- What a task has promised to undo (SEM_UNDO) is nowhere to be read, and is undone when the
  old task is killed after the dump. Then the value differs from that of the dump, and the pid
  of the last change is that task's, though it is dead (ipc/sem.c, exit_sem). So the restore
  knows who held how much, and has that task take it again, with SEM_UNDO.
- Where several tasks had something to undo on one semaphore, the last one gets it all.
- CRIU keeps semaphores only of ipc namespaces of the tree; ours are in torpor.json.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torpor.engine.kernel.sysvipc import SemaphoreSet
from torpor.engine.kind import ImageSink, ImageSource
from torpor.engine.program.ops import Data, Expect, Op

SEM_UNDO, IPC_NOWAIT = 0o10000, 0o4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A set that the tree used. ``ended``: the tasks were killed right after the dump."""

    sem_id: int
    key: int
    values: tuple[int, ...]
    ended: bool


def collect(sets: Iterable[SemaphoreSet], pids: Mapping[int, int], *, ended: bool) -> list[Kept]:
    """Sets that a task of the tree was the last to change; ``pids`` as seen from here."""
    return [
        Kept(sem_id=one.sem_id, key=one.key, values=tuple(one.values), ended=ended)
        for one in sets
        if any(pid in pids for pid in one.pids)
    ]


def encode(kept: Sequence[Kept], images: ImageSink) -> None:
    """Keep them in our own file."""
    if kept:
        images.extra("sysv", "semaphores", [asdict(one) for one in kept])


def decode(images: ImageSource) -> list[Kept]:
    """Read them back. Raises ValueError, TypeError or KeyError."""
    return [
        Kept(
            sem_id=int(one["sem_id"]),
            key=int(one["key"]),
            values=tuple(int(value) for value in one["values"]),
            ended=bool(one["ended"]),
        )
        for one in images.extra("sysv", "semaphores") or ()
    ]


def plan(
    kept: Sequence[Kept], now: Iterable[SemaphoreSet], tree: Mapping[int, int]
) -> tuple[dict[int, list[Op]], list[str]]:
    """What each task has to take again, and what to tell; ``tree`` is pid here → pid inside."""
    there = {one.sem_id: one for one in now}
    ops: dict[int, list[Op]] = {}
    warnings = []
    for one in kept:
        found = there.get(one.sem_id)
        if found is None or (found.key, len(found.values)) != (one.key, len(one.values)):
            warnings.append(f"semaphore set {one.sem_id} is gone")
            continue
        for number, (was, value) in enumerate(zip(one.values, found.values, strict=True)):
            owner = tree.get(found.pids[number])
            if value != was and owner is not None:
                flags = IPC_NOWAIT | (SEM_UNDO if one.ended else 0)
                ops.setdefault(owner, []).append(_take(one.sem_id, number, was - value, flags))
    return ops, warnings


def _take(sem_id: int, number: int, change: int, flags: int) -> Op:
    return Op(
        call="semop",
        args=(sem_id, Data(struct.pack("<Hhh", number, change, flags)), 1),
        subject=f"semaphore {number} of set {sem_id}",
        note=f"{change:+d}, as before",
        expect=Expect.ANY,
    )
