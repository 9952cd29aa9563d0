# SPDX-License-Identifier: Apache-2.0
"""Areas from smaps texts in the shapes of several kernels, through images, to calls.

The texts are set together from what kernels print, with the device and inode numbers of one
machine: 3.16 has VmFlags and [vvar], 6.1 names of anonymous memory, 6.18 droppable areas and
[vvar_vclock].
"""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fixtures import trees
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.maps import parse_smaps
from torpor.engine.memory import areaimages, areas, mapping
from torpor.engine.memory.areaimages import MappedFiles, MemfdInode
from torpor.engine.memory.areas import PENDING, Area, Backing
from torpor.engine.program.ops import Slot

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures/smaps"


def collected(name):
    text = (FIXTURES / f"smaps-{name}-x86_64.txt").read_text()
    return areas.collect(parse_smaps(text), "task 41")


def backings(found):
    return [a.backing.name for a in found]


COMMON = ["SHARED", "SYSV", "MEMFD", "FILE_SHARED", "FILE_SHARED"]


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("3.16", ["FILE", "FILE", "ANON", "ANON", *COMMON, "ANON", "VVAR", "VDSO", "VSYSCALL"]),
        ("6.1", ["FILE", "FILE", "ANON", "ANON", "ANON", "SHARED", "ANON", *COMMON, "ANON", "VVAR",
                 "VDSO", "VSYSCALL"]),
        ("6.18", ["FILE", "FILE", "ANON", "ANON", "ANON", "SHARED", "ANON", *COMMON, "ANON", "ANON",
                  "VVAR", "VVAR", "VDSO", "VSYSCALL"]),
    ],
)  # fmt: skip
def test_kernels(kernel, expected):
    found, refused = collected(kernel)
    assert refused == []
    assert backings(found) == expected


def test_fields():
    found, _ = collected("6.18")
    by_start = {a.start: a for a in found}
    text, data = found[0], found[1]
    assert (text.prot, text.path, text.offset) == (5, "/usr/bin/dbus-daemon", 0)
    assert (data.prot, data.offset, data.size_bytes) == (3, 0x52000, 0x3000)
    assert by_start[0x7F0000000000].noreserve
    assert by_start[0x7F0000100000].advice == (10, 12, 14, 18)
    assert by_start[0x7F0000400000].prot == 0
    assert by_start[0x7F1000000000].shared_id == 34034
    assert by_start[0x7F1000100000].shared_id == 32769
    assert by_start[0x7F1000200000].offset == 0x1000
    assert by_start[0x7F1000300000].writable_file
    assert not by_start[0x7F1000400000].writable_file
    assert by_start[0x7F1000400000].path == "/var/cache/read only"
    droppable = by_start[0x7F2000000000]
    assert (droppable.droppable, droppable.noreserve, droppable.advice) == (True, False, ())
    assert by_start[0x7FFD0F000000].grows_down
    assert text.subject == "400000-452000 r-xp /usr/bin/dbus-daemon"


def test_every_limit_is_met():
    found, refused = collected("refused-6.18")
    (deleted,) = [area for area in found if area.path]
    assert {area.backing for area in found} >= {*areas.RINGS}
    assert (deleted.file_id, deleted.path.endswith("(deleted)")) == (PENDING, False)
    assert {r.what for r in refused} == {limit.what for limit in areas.LIMITS}
    assert all(r.remedy for r in refused)
    assert refused[0].subject.startswith("task 41, 7f00")


def through_image(area, files=None):
    entry, file_id = pb.vma_entry(), 0
    if files is None:
        files, file_id = MappedFiles(paths={5: area.path}), 5 if area.path else 0
    areaimages.encode(area, entry, file_id=file_id, heap=(0, 0), stack=0)
    return areaimages.decode(pb.vma_entry.FromString(entry.SerializeToString()), files)


@settings(max_examples=60)
@given(trees.area_lists())
def test_round_trip(found):
    assert tuple(through_image(area) for area in found) == found


@pytest.mark.parametrize("kernel", ["3.16", "6.1", "6.18"])
def test_round_trip_of_whole_texts(kernel):
    for found in collected(kernel)[0]:
        area, files = found, None
        if area.backing is Backing.MEMFD:
            area = replace(area, file_id=9)
            files = MappedFiles(memfds={9: MemfdInode(name=b"shared", shared_id=area.shared_id)})
        assert through_image(area, files) == area


def test_a_memfd_of_dev_zero_is_shared_memory():
    files = MappedFiles(memfds={3: MemfdInode(name=b"/dev/zero", shared_id=8)})
    area = Area(start=0x1000, end=0x2000, prot=3, backing=Backing.MEMFD, shared_id=8, file_id=3)
    back = through_image(area, files)
    assert (back.backing, back.shared_id, back.file_id) == (Backing.SHARED, 8, 0)


HUGE = """7f8000000000-7f8000400000 rw-p 00000000 00:11 77                 /anon_hugepage (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
VmFlags: rd wr mr mw me de ht
7f8000400000-7f8000800000 rw-s 00200000 00:11 78                 /anon_hugepage (deleted)
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms de ht
"""


def test_reserved_huge_pages():
    (own, shared), refused = areas.collect(parse_smaps(HUGE), "task 41")
    assert refused == []
    assert (own.backing, own.huge_shift, own.offset) == (Backing.ANON, 21, 0)
    assert (shared.backing, shared.huge_shift, shared.offset) == (Backing.MEMFD, 21, 2 << 20)
    assert (shared.file_id, shared.shared_id) == (PENDING, 78)
    assert through_image(own) == own
    shared = replace(shared, file_id=9)
    files = MappedFiles(memfds={9: MemfdInode(name=b"/anon_hugepage", shared_id=78)})
    assert through_image(shared, files) == shared
    flags = 0x10 | 0x40000 | 21 << 26
    assert mapping.plan_map(own, 0, filled=False).args[3] == flags | 0x22
    assert mapping.plan_map(shared, 600, filled=False).args[3] == 0x11


def test_rings_of_a_packet_socket():
    text = (
        "7f0000000000-7f0000006000 rw-s 00000000 00:09 4711    socket:[4711]\n"
        "Size:    24 kB\nVmFlags: rd wr sh mr mw ms mm \n"
    )
    ((area,), refused) = areas.collect(parse_smaps(text), "task 41")
    assert refused == []
    assert (area.backing, area.file_id, area.shared) == (Backing.PACKETS, PENDING, True)
    entry = pb.vma_entry()
    numbered = replace(area, file_id=6)
    areaimages.encode(numbered, entry, file_id=0, heap=(0, 0), stack=0)
    assert (entry.shmid, entry.status, entry.flags, entry.fdflags) == (6, 1 | 1 << 11, 1, 2)
    assert areaimages.decode(entry, MappedFiles()) == numbered
    assert mapping.plan_map(numbered, 1006, filled=False).args[3:] == (0x11, 1006, 0)


def test_files_without_a_name():
    files = MappedFiles(
        paths={4: "/gone"}, memfds={3: MemfdInode(name=b"x", shared_id=8)}, nameless={4}
    )
    gone = Area(start=0x1000, end=0x2000, prot=3, backing=Backing.FILE, path="/gone", file_id=4)
    own = replace(gone, path="/memfd:x", file_id=3)
    both = replace(gone, backing=Backing.FILE_SHARED, writable_file=True)
    for area in (gone, own, both):
        assert through_image(area, files) == area


def test_heap_and_stack_are_marked():
    area = Area(start=0x5000, end=0x8000, prot=3, backing=Backing.ANON)
    entry = pb.vma_entry()
    areaimages.encode(area, entry, file_id=0, heap=(0x5000, 0x7010), stack=0x7F00)
    assert (
        entry.status
        == areaimages.REGULAR | areaimages.ANON_PRIVATE | areaimages.HEAP | areaimages.STACK
    )
    assert entry.flags == areas.MAP_PRIVATE | areas.MAP_ANONYMOUS


@pytest.mark.parametrize(
    ("area", "fd", "filled", "text"),
    [
        (trees.AREAS[0], Slot("map0"), False,
         "mmap(0x400000, 0x2000, 5, 18, $map0, 0)  # 400000-402000 r-xp /bin/worker"),
        (trees.AREAS[0], Slot("map0"), True,
         "mmap(0x400000, 0x2000, 7, 18, $map0, 0)  # 400000-402000 r-xp /bin/worker"),
        (trees.AREAS[2], -1, True,
         "mmap(0x7fffffffde000, 0x21000, 3, 306, -1, 0)  # "
         "7ffffffde000-7ffffffff000 rw-p anonymous"),
        (Area(start=0x1000, end=0x2000, prot=3, backing=Backing.SHARED, shared_id=4, offset=4096),
         9, False, "mmap(0x1000, 0x1000, 3, 17, 9, 0x1000)  # 1000-2000 rw-s shared anonymous"),
        (Area(start=0x1000, end=0x2000, prot=3, backing=Backing.ANON, droppable=True), -1, False,
         "mmap(0x1000, 0x1000, 3, 56, -1, 0)  # 1000-2000 rw-p anonymous"),
    ],
)  # fmt: skip
def test_plan_map(area, fd, filled, text):
    op = mapping.plan_map(area, fd, filled=filled)
    assert op.describe() == text.replace("0x7fffffffde000", "0x7ffffffde000")
    assert op.want == area.start


def test_plan_open():
    op = mapping.plan_open("/lib/x", writable=False, slot=Slot("map0"))
    assert op.describe().startswith("openat(-100, '/lib/x', ")
    assert "same files" in op.remedy
    assert mapping.plan_open("/x", writable=True, slot=Slot("m")).args[2] == 2 | 0o2000000


def test_plan_final():
    text = Area(start=0x1000, end=0x2000, prot=5, backing=Backing.FILE, path="/x")
    data = Area(
        start=0x3000, end=0x5000, prot=3, backing=Backing.ANON, advice=(10, 14), locked=True
    )
    vvar = Area(start=0x6000, end=0x7000, prot=1, backing=Backing.VVAR, locked=True, advice=(16,))
    ops = mapping.plan_final((text, data, vvar), {0x1000, 0x3000})
    assert [op.describe() for op in ops] == [
        "mprotect(0x1000, 0x1000, 5)  # 1000-2000 r-xp /x",
        "madvise(0x3000, 0x2000, 10)  # 3000-5000 rw-p anonymous: advice",
        "madvise(0x3000, 0x2000, 14)  # 3000-5000 rw-p anonymous: advice",
        "mlock2(0x3000, 0x2000, 0)  # 3000-5000 rw-p anonymous",
    ]
    assert mapping.plan_final((text,), set()) == []
