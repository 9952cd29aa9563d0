# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.errors import KernelError, Refused
from torpor.engine.memory.areas import TASK_SIZE
from torpor.engine.restore import arena
from torpor.engine.restore.arena import LOWEST, Arena, find_hole

MIB = 1 << 20
FIRST = LOWEST - 8 * MIB
pages = st.tuples(st.integers(0, 1 << 16), st.integers(1, 1 << 12))
ranges = st.lists(
    pages.map(lambda p: (FIRST + p[0] * 4096, FIRST + (p[0] + p[1]) * 4096)), max_size=20
)


@given(ranges, st.integers(1, 64 * MIB))
def test_a_hole_is_free_aligned_and_the_lowest(used, size):
    base = find_hole(used, size)
    assert base % (2 * MIB) == 0
    assert base >= LOWEST
    assert all(end <= base or start >= base + size for start, end in used)
    for lower in range(LOWEST, base, 2 * MIB):
        assert any(start < lower + size and end > lower for start, end in used)


def test_no_room():
    with pytest.raises(Refused, match="no room left"):
        find_hole([(0, TASK_SIZE - 4096)], 8192)
    assert find_hole([], 4096) == LOWEST


def test_parts_of_the_arena():
    one = Arena(base=LOWEST)
    assert one.base + arena.CODE_BYTES + one.program_bytes == one.park
    assert one.scratch + arena.SCRATCH_BYTES == one.park
    assert one.end == one.base + one.size_bytes == one.park + arena.PARK_BYTES + arena.STACK_BYTES


def test_the_executor_fits():
    code = arena.executor_code()
    assert 0 < len(code) <= arena.CODE_BYTES


def test_check():
    assert arena.check(5, "mmap", "task 41") == 5
    with pytest.raises(KernelError, match="mmap failed") as error:
        arena.check(-12, "mmap", "task 41", "free memory")
    assert (error.value.errno, error.value.remedy) == (12, "free memory")
