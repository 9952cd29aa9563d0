# SPDX-License-Identifier: Apache-2.0
"""The calls that give a task its address space, after an exec and after a fork."""

from dataclasses import replace

import pytest

from tests.fixtures.trees import AREAS
from torpor.engine.errors import BadImage, Refused
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group, Move, VdsoPlan
from torpor.engine.restore import layout
from torpor.engine.restore.arena import Arena
from torpor.engine.restore.layout import Backings

ARENA = Arena(base=0x10000000)
NONE = Backings()
KERNEL = Group(
    start=0x7FFF00000000,
    end=0x7FFF00006000,
    parts=(("vvar", 0x7FFF00000000, 0x7FFF00004000), ("vdso", 0x7FFF00004000, 0x7FFF00006000)),
)
PLAN = VdsoPlan(
    moves=(
        Move(source=0x7FFF00000000, size_bytes=0x4000, target=0x7EEE00000000),
        Move(source=0x7FFF00004000, size_bytes=0x2000, target=0x7EEE00004000),
    ),
    keep_old_code=False,
)
VDSO = Area(start=0x7EEE00004000, end=0x7EEE00006000, prot=5, backing=Backing.VDSO)


def lines(program):
    return [op.describe() for op in program.ops]


def test_after_exec():
    park = f"{ARENA.park:#x}"
    code = f"{ARENA.park + 0x4000:#x}"
    program = layout.after_exec(ARENA, (*AREAS, VDSO), KERNEL, PLAN, NONE, {0x400000})
    assert lines(program) == [
        f"mremap(0x7fff00000000, 0x4000, 0x4000, 3, {park})  # vdso: parked",
        f"mremap(0x7fff00004000, 0x2000, 0x2000, 3, {code})  # vdso: parked",
        "munmap(0, 0x10000000)  # memory of the fresh program",
        f"munmap({ARENA.end:#x}, {0x7FFFFFFFF000 - ARENA.end:#x})  # memory of the fresh program",
        f"mremap({park}, 0x4000, 0x4000, 3, 0x7eee00000000)  # vdso: at its old place",
        f"mremap({code}, 0x2000, 0x2000, 3, 0x7eee00004000)  # vdso: at its old place",
        "openat(-100, '/bin/worker', 0x80000, 0) → map0  # /bin/worker: mapped file",
        "mmap(0x400000, 0x2000, 7, 18, $map0, 0)  # 400000-402000 r-xp /bin/worker",
        "mmap(0x500000, 0x3000, 3, 50, -1, 0)  # 500000-503000 rw-p anonymous",
        "mmap(0x7ffffffde000, 0x21000, 3, 306, -1, 0)  # 7ffffffde000-7ffffffff000 rw-p anonymous",
        "close($map0)  # /bin/worker: mapped file",
    ]
    assert all(op.want for op in program.ops if op.call in ("mremap", "mmap"))


def test_after_exec_with_old_code_kept():
    program = layout.after_exec(
        ARENA, (VDSO,), KERNEL, replace(PLAN, keep_old_code=True), NONE, {VDSO.start}
    )
    assert lines(program)[-1] == (
        "mmap(0x7eee00004000, 0x2000, 7, 50, -1, 0)  # 7eee00004000-7eee00006000 r-xp vdso"
    )


def test_after_exec_without_a_vdso():
    plan = VdsoPlan(moves=(), keep_old_code=False)
    program = layout.after_exec(ARENA, (), KERNEL, plan, NONE, set())
    assert lines(program)[-2:] == [
        f"munmap({ARENA.park:#x}, 0x4000)  # vdso",
        f"munmap({ARENA.park + 0x4000:#x}, 0x2000)  # vdso",
    ]


def test_after_fork_keeps_what_is_the_same():
    mine = (
        AREAS[0],
        replace(AREAS[1], end=0x504000),
        Area(start=0x600000, end=0x601000, prot=1, backing=Backing.ANON),
        AREAS[2],
    )
    program, kept = layout.after_fork(mine, AREAS, None, None, NONE, {0x400000, 0x600000}, False)
    assert [a.start for a in kept] == [0x400000, AREAS[2].start]
    assert lines(program) == [
        "munmap(0x500000, 0x3000)  # 500000-503000 rw-p anonymous: the parent's only",
        "mmap(0x500000, 0x4000, 3, 50, -1, 0)  # 500000-504000 rw-p anonymous",
        "mmap(0x600000, 0x1000, 3, 50, -1, 0)  # 600000-601000 r--p anonymous",
        "mprotect(0x400000, 0x2000, 7)  # 400000-402000 r-xp /bin/worker",
    ]


def test_after_fork_leaves_special_areas_alone():
    program, kept = layout.after_fork(
        (*AREAS, VDSO), (*AREAS, VDSO), KERNEL, KERNEL, NONE, set(), False
    )
    assert (lines(program), len(kept)) == ([], 3)


def test_a_child_with_its_vdso_elsewhere():
    with pytest.raises(Refused, match="vDSO elsewhere"):
        layout.after_fork((), (), KERNEL, None, NONE, set(), False)


@pytest.mark.parametrize(("prot", "flags"), [(3, 0), (1, 0o10000), (5, 0o110000), (7, 0o100000)])
def test_system_v_segments_are_attached(prot, flags):
    area = Area(start=0x600000, end=0x601000, prot=prot, backing=Backing.SYSV, shared_id=9)
    program, _ = layout.after_fork((area,), (), None, None, NONE, set(), False)
    (op,) = program.ops
    assert (op.call, op.args, op.want) == ("shmat", (9, 0x600000, flags), 0x600000)


def mapped_from(area, backings):
    program, _ = layout.after_fork((area,), (), None, None, backings, set(), False)
    return [line.split("  #")[0] for line in lines(program)]


def test_what_has_no_path_comes_from_service_descriptors():
    memfd = Area(start=0x6000, end=0x7000, prot=3, backing=Backing.MEMFD, shared_id=7, file_id=5)
    shared = replace(memfd, backing=Backing.SHARED, file_id=0)
    for area, backings in (
        (memfd, Backings(files={5: 600})),
        (shared, Backings(segments={7: 600})),
    ):
        assert mapped_from(area, backings) == ["mmap(0x6000, 0x1000, 3, 17, 600, 0)"]
        with pytest.raises(BadImage):
            mapped_from(area, NONE)


def test_a_description_that_cannot_write_is_opened_again():
    area = Area(start=0x6000, end=0x7000, prot=3, backing=Backing.MEMFD, file_id=5)
    backings = Backings(files={5: 600}, read_only={5})
    assert mapped_from(area, backings) == ["mmap(0x6000, 0x1000, 3, 17, 600, 0)"]
    assert mapped_from(replace(area, writable_file=True), backings) == [
        "openat(-100, '/proc/self/fd/600', 0x80002, 0) → map0",
        "mmap(0x6000, 0x1000, 3, 17, $map0, 0)",
        "close($map0)",
    ]


@pytest.mark.parametrize("prot", [0, 1, 3])
def test_a_child_with_other_protection(prot):
    child = replace(AREAS[1], prot=prot)
    program, kept = layout.after_fork((child,), (AREAS[1],), None, None, NONE, set(), False)
    assert kept == [child]
    wanted = [] if prot == AREAS[1].prot else [("mprotect", (0x500000, 0x3000, prot))]
    assert [(op.call, op.args) for op in program.ops] == wanted


def test_a_file_is_opened_once_for_each_way():
    first = Area(start=0x1000, end=0x2000, prot=1, backing=Backing.FILE, path="/x")
    areas = (
        first,
        replace(first, start=0x2000, end=0x3000, offset=0x1000),
        replace(first, start=0x4000, end=0x5000, backing=Backing.FILE_SHARED, writable_file=True),
    )
    program, _ = layout.after_fork(areas, (), None, None, NONE, set(), False)
    assert [op.call for op in program.ops] == [
        "openat", "mmap", "mmap", "openat", "mmap", "close", "close",
    ]  # fmt: skip


def test_a_piece_of_a_system_v_segment_is_moved_to_its_place():
    area = Area(start=0x600000, end=0x601000, prot=0, backing=Backing.SYSV, shared_id=9,
                offset=0x2000, writable_file=True)  # fmt: skip
    backings = Backings(attached={9: 0x3F00}, room=0x900000)
    assert mapped_from(area, backings) == [
        "shmat(9, 0x900000, 0)",
        "mremap(0x902000, 0x1000, 0x1000, 3, 0x600000)",
        "munmap(0x900000, 0x4000)",
        "mprotect(0x600000, 0x1000, 0)",
    ]
