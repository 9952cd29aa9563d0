# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Findings
from torpor.engine.files import locks, regular, table
from torpor.engine.files.common import O
from torpor.engine.files.grouping import Placed, Table
from torpor.engine.files.locks import Lock
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import RecordedFd, RecordedImages
from torpor.engine.kind import DumpContext, Holder, PlanContext
from torpor.engine.options import TcpPolicy

KINDS = [regular.KIND]


def context(**more):
    return DumpContext(
        tcp=TcpPolicy.REFUSE, container=False, ghost_limit_bytes=1 << 20,
        tasks={1041: 41, 1042: 42}, **more,
    )  # fmt: skip


def fd(task, number, description, **more):
    return RecordedFd(pid=1000 + task, ns_pid=task, fd=number, description=description, **more)


def two_tasks():
    """41 has a, a again and b; its child 42 has b and a file of the same path opened anew."""
    return [
        Table(number=1, tasks=(41, 43), views=[
            fd(41, 0, "a"), fd(41, 1, "a"), fd(41, 7, "b", flags=O.CLOEXEC, pos=3),
        ]),
        Table(number=2, tasks=(42,), views=[fd(42, 3, "b", pos=3), fd(42, 4, "c", pos=3)]),
    ]  # fmt: skip


def test_descriptions_are_shared_across_tables():
    found = table.collect_tables(two_tasks(), KINDS, context())
    assert not found.refusals
    assert found.entries == {
        1: [
            Placed(fd=0, file_id=1), Placed(fd=1, file_id=1),
            Placed(fd=7, file_id=2, cloexec=True),
        ],
        2: [Placed(fd=3, file_id=2), Placed(fd=4, file_id=3)],
    }  # fmt: skip
    assert found.holders[2] == [Holder(task=41, fd=7), Holder(task=42, fd=3)]
    assert list(found.states["regular"]) == [1, 2, 3]
    assert found.first_free_id == 4
    assert found.descriptors == 5


def test_tables_come_back_from_images():
    found = table.collect_tables(two_tasks(), KINDS, context())
    images = RecordedImages()
    table.encode_tables(found, KINDS, images)
    placements = table.decode_tables(images, {41: 1, 42: 2, 43: 1})
    assert placements == {41: found.entries[1], 42: found.entries[2]}
    assert table.holders_of(placements) == found.holders
    assert {m.type for m, _ in images.entries("fdinfo-1")} == {pb.REG}
    assert table.service_base(placements) == 64
    assert table.service_base({1: [Placed(fd=64, file_id=1)]}) == 128
    assert table.service_base({}) == 64


def test_service_numbers_are_in_a_gap_when_there_is_no_room_above():
    used = {1: [Placed(fd=fd, file_id=1) for fd in (3, 70, 900, 1023)]}
    assert table.service_base(used, needed=50, limit=1100) == 1024
    assert table.service_base(used, needed=50, limit=1024) == 128
    assert table.service_base(used, needed=800, limit=1024) == 1024


def test_placement():
    placed = [Placed(fd=0, file_id=1), Placed(fd=7, file_id=2, cloexec=True)]
    plan = PlanContext(fds={1: 64, 2: 65}, holders={}, spare_fd=66)
    assert [op.describe() for op in table.placement(placed, plan, keep=[8])] == [
        "dup3(64, 0, 0)  # fd 0",
        "dup3(65, 7, 0x80000)  # fd 7",
        "close_range(1, 6, 0)",
        "close_range(9, 0xffffffff, 0)  # service descriptors",
    ]


def test_every_refusal_is_told():
    views = [
        fd(41, 3, "x", st_mode=0o140777, link="socket:[1]", fs_magic=0x534F434B),
        fd(41, 4, "y", link="/covered", paths={}),
        fd(41, 5, "z"),
        fd(41, 6, "l", info=("lock:\t1: DELEG  ACTIVE    READ 1041 fe:00:1 0 EOF",)),
    ]
    found = table.collect_tables([Table(number=1, tasks=(41,), views=views)], KINDS, context())
    assert len(found.refusals) == 3
    with pytest.raises(Findings) as error:
        found.refuse()
    assert "(and 2 more)" in str(error.value)


def test_doubled_number_in_an_image():
    images = RecordedImages()
    for _ in range(2):
        images.add("fdinfo-1", pb.fdinfo_entry(id=1, type=pb.REG, fd=3, flags=0))
    with pytest.raises(BadImage):
        table.decode_tables(images, {41: 1})


def test_locks_are_told_once():
    flock = "lock:\t1: FLOCK  ADVISORY  WRITE 1041 fe:00:1 0 EOF"
    posix = "lock:\t2: POSIX  ADVISORY  READ 1041 fe:00:1 100 106"
    ofd = "lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:1 3 6"
    waiter = "lock:\t1: -> POSIX  ADVISORY  WRITE 1042 fe:00:1 0 EOF"
    views = [
        fd(41, 2, "w", flags=O.WRONLY, info=(posix,), paths={"/data/file": (0xFE00, 1234)}),
        fd(41, 3, "a", flags=O.RDWR, info=(flock, posix, ofd, waiter)),
        fd(41, 4, "a", flags=O.RDWR, info=(flock, posix, ofd, waiter)),
    ]
    found = table.collect_tables([Table(number=1, tasks=(41,), views=views)], KINDS, context())
    assert found.locks == [
        Lock(flag=locks.FLOCK, kind=locks.WRITE, task=41, fd=3),
        Lock(flag=locks.POSIX, kind=locks.READ, task=41, fd=3, start=100, length=7),
        Lock(flag=locks.OFD, kind=locks.WRITE, task=41, fd=3, start=3, length=4),
    ]
    images = RecordedImages()
    table.encode_tables(found, KINDS, images)
    assert table.decode_locks(images) == found.locks
    assert [late.op.describe() for late in table.late_locks(found.locks)] == [
        "flock(3, 6)  # fd 3",
        "fcntl(3, 6, read 100..106)  # fd 3",
        "fcntl(3, 37, write 3..6)  # fd 3",
    ]
