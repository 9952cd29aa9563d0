# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage
from torpor.engine.files import regular
from torpor.engine.files.common import O
from torpor.engine.files.magics import HUGETLBFS_MAGIC
from torpor.engine.files.memfd import KIND
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def view(flags=O.RDWR | O.LARGEFILE, seals=1, **more):
    values = {"st_size": 6, "content": b"memory", "fs_magic": 0x01021994} | more
    return RecordedFd(
        link="/memfd:nä (deleted)", st_mode=0o100777, st_nlink=0, flags=flags, st_ino=77,
        fcntls={1034: seals}, st_uid=7, st_gid=8, paths={}, **values,
    )  # fmt: skip


def collect(*views, context=None):
    context = context or dump_context()
    return {FileId(i): KIND.collect(v, context) for i, v in enumerate(views, 1)}


def calls(states):
    text = described(KIND, states, plan_context(*states))
    return [line.split("  #")[0] for line in text.splitlines()]


def test_descriptions():
    views = view(seals=0xF), view(flags=O.LARGEFILE, pos=2)
    assert KIND.matches(views[0])
    assert not regular.KIND.matches(views[0])
    states = collect(*views)
    back, _ = through_images(KIND, states)
    assert back[1] == states[1]
    assert back[1].name == "nä"
    assert calls(states) == [
        "memfd_create('nä', 2) → memfd77", "dup3($memfd77, 600, 0)", "close($memfd77)",
        "ftruncate(600, 6)", "fchown(600, 7, 8)", "dup3(600, 513, 0)",
        "openat(-100, '/proc/self/fd/600', 0x8000, 0) → open514", "dup3($open514, 514, 0)",
        "close($open514)", "lseek(514, 2, 0)", "close(600)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mapped", "loose"),
    [
        ([], [(0, b"memory")]),
        ([(0, 4096)], []),
        ([(4, 4096)], [(0, b"memo")]),
        ([(3, 4), (0, 2)], [(2, b"m"), (4, b"ry")]),
    ],
)
def test_what_nobody_maps_is_read(mapped, loose):
    context = dump_context(mapped={77: mapped})
    collect(view(), view(), context=context)
    assert context.loose == {77: loose}


def test_huge_pages():
    """Read from the file, page by page; zeros are not kept, and nothing is left to a mapping."""
    pages = bytes(8192) + b"x" * 4096
    one = view(fs_magic=HUGETLBFS_MAGIC, st_blksize=4096, st_size=12288, content=pages)
    context = dump_context(mapped={77: [(0, 12288)]})
    states = collect(one, context=context)
    assert context.loose == {77: [(8192, b"x" * 4096)]}
    assert states[1].huge_shift == 12
    back, images = through_images(KIND, states)
    assert back == states
    assert [m.hugetlb_flag for m, _ in images.entries("memfd")] == [4 | 12 << 26]
    assert calls(states)[0] == f"memfd_create('nä', {hex(6 | 12 << 26)}) → memfd77"


def test_shared_anonymous_memory_of_huge_pages():
    one = view(fs_magic=HUGETLBFS_MAGIC, st_blksize=2 << 20, st_size=0)
    one.link = "/anon_hugepage (deleted)"
    assert KIND.matches(one)
    assert not regular.KIND.matches(one)
    assert collect(one)[1].name == "/anon_hugepage"


def test_an_inode_that_is_not_there():
    _, images = through_images(KIND, collect(view()))
    images.images["memfd"] = []
    with pytest.raises(BadImage):
        KIND.decode(images)
