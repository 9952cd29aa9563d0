# SPDX-License-Identifier: Apache-2.0
"""Service numbers: above all that any task uses, the seed's own kept where they are needed."""

from types import SimpleNamespace

from tests.fixtures import trees
from torpor.engine.files.common import O
from torpor.engine.files.eventfd import KIND
from torpor.engine.files.grouping import Placed
from torpor.engine.kernel.recorded import RecordedFd, dump_context
from torpor.engine.kind import FileId
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.restore import descriptors


def snapshot(tables, mapped=(), areas=()):
    view = RecordedFd(link="anon_inode:[eventfd]", flags=O.RDWR, info=("eventfd-count: 5",))
    state = KIND.collect(view, dump_context())
    ids = {one.file_id for placed in tables.values() for one in placed}
    return SimpleNamespace(
        tables=tables, states=[(KIND, dict.fromkeys(ids, state))], locks=(), mapped=set(mapped),
        tree=trees.tree(trees.task(memory=trees.memory(areas))),
    )  # fmt: skip


def plan(tables, **more):
    return descriptors.plan(
        snapshot(tables), descriptors.Seed(**more), path_map={}, address_map={},
        new_container=False, warn=lambda _: None,
    )  # fmt: skip


def placed(fd, file_id, cloexec=False):
    return Placed(file_id=FileId(file_id), fd=fd, cloexec=cloexec)


def test_one_description_at_two_numbers():
    tables = {41: [placed(3, 7), placed(200, 7, cloexec=True)]}
    found = plan(tables, stdio=(0, 1, 2), inherit={"pipe:[9]": 5})
    base = found.base
    assert base > 200
    assert found.context.stdio == {0: base, 1: base + 1, 2: base + 2}
    assert found.context.inherit == {"pipe:[9]": base + 3}
    assert found.context.fds == {7: base + 4}
    assert found.highest == found.context.spare_fd + descriptors.RESERVED
    kept = [op for op in found.create.ops if op.note == "kept"]
    assert [op.args for op in kept] == [
        (0, base, 0), (1, base + 1, 0), (2, base + 2, 0), (5, base + 3, 0),
    ]  # fmt: skip
    closing = found.create.ops[len(kept)]
    assert (closing.call, closing.args) == ("close_range", (0, base - 1, 0))
    made = {op.call for op in found.create.ops[len(kept) + 1 :]}
    assert {"eventfd2", "dup3"} <= made
    put, close = descriptors.placement(tables[41], found)
    assert [(op.args[0], op.args[1]) for op in put.ops] == [(base + 4, 3), (base + 4, 200)]
    assert put.ops[1].args[2] == O.CLOEXEC
    assert close.ops[0].call == "close_range"


def test_numbers_of_the_seed_are_never_overwritten():
    assert plan({41: []}, inherit={"x": 900}).base > 900


def test_what_is_only_mapped_has_service_numbers_too():
    areas = [
        Area(start=0x1000, end=0x3000, prot=3, backing=Backing.SHARED, shared_id=9, offset=0x4000),
        Area(start=0x5000, end=0x6000, prot=3, backing=Backing.SHARED, shared_id=9),
    ]
    whole = snapshot({41: [placed(3, 7)]}, mapped=[12], areas=areas)
    found = descriptors.plan(
        whole, descriptors.Seed(), path_map={}, address_map={}, new_container=False, warn=print
    )
    assert found.context.fds == {7: 64, 12: 65}
    assert found.segments == {9: 66}
    assert found.context.spare_fd == 67
    assert descriptors.shared_segments(whole.tree) == {9: 0x6000}
