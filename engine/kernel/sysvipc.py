# SPDX-License-Identifier: Apache-2.0
"""System V semaphores of our own ipc namespace, read without touching them."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Error
from torpor.engine.kernel import proc

GETALL, GETPID = 13, 11

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemaphoreSet:
    """Values and the pids of who changed each of them last."""

    sem_id: int
    key: int
    values: Sequence[int]
    pids: Sequence[int]


def semaphore_sets() -> Iterator[SemaphoreSet]:
    """All sets that we may read; none on a kernel without them."""
    try:
        lines = proc.read_text("sysvipc", "sem").splitlines()[1:]
    except Error:
        return
    for line in lines:
        key, sem_id, _, count = (int(word) for word in line.split()[:4])
        values = (ctypes.c_ushort * count)()
        if _libc.semctl(sem_id, 0, GETALL, values) < 0:
            continue
        pids = [_libc.semctl(sem_id, number, GETPID) for number in range(count)]
        yield SemaphoreSet(sem_id=sem_id, key=key, values=tuple(values), pids=tuple(pids))


def same_namespace(pid: int) -> bool:
    """Whether a task is in our ipc namespace."""
    try:
        return os.readlink("/proc/self/ns/ipc") == os.readlink(f"/proc/{pid}/ns/ipc")
    except OSError:
        return False
