# SPDX-License-Identifier: Apache-2.0
"""Who has to take which semaphore again."""

import struct

import pytest

from torpor.engine.kernel.recorded import RecordedImages
from torpor.engine.kernel.sysvipc import SemaphoreSet
from torpor.engine.memory import semaphores
from torpor.engine.memory.semaphores import Kept

KEPT = Kept(sem_id=9, key=0x70, values=(3, 0, 1), ended=True)


def now(values, pids, key=0x70):
    return [SemaphoreSet(sem_id=9, key=key, values=values, pids=pids)]


def test_only_sets_of_the_tree():
    sets = [*now((3, 0, 1), (0, 7, 41)), SemaphoreSet(sem_id=4, key=0, values=(1,), pids=(7,))]
    kept = semaphores.collect(sets, {41: 1}, ended=True)
    assert kept == [KEPT]
    images = RecordedImages()
    semaphores.encode(kept, images)
    assert semaphores.decode(images) == kept
    assert semaphores.decode(RecordedImages()) == []


@pytest.mark.parametrize(("ended", "flags"), [(True, 0o14000), (False, 0o4000)])
def test_what_was_undone_is_taken_again(ended, flags):
    kept = [Kept(sem_id=9, key=0x70, values=(3, 0, 1), ended=ended)]
    ops, told = semaphores.plan(kept, now((5, 0, 0), (41, 42, 7)), {41: 1, 42: 2})
    assert told == []
    ((task, (op,)),) = ops.items()
    assert (task, op.call, op.args[0]) == (1, "semop", 9)
    assert struct.unpack("<Hhh", op.args[1].content) == (0, -2, flags)


def test_others_may_have_changed_it():
    assert semaphores.plan([KEPT], now((5, 0, 1), (7, 7, 7)), {41: 1}) == ({}, [])


@pytest.mark.parametrize("there", [[], now((3, 0, 1), (0, 0, 0), key=1), now((3,), (0,))])
def test_a_set_that_is_gone_is_told(there):
    ops, (told,) = semaphores.plan([KEPT], there, {41: 1})
    assert ops == {}
    assert "set 9" in told
