# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files import ghost as ghosts
from torpor.engine.files.common import O, Owner
from torpor.engine.files.regular import KIND, Regular
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import RecordedFd, RecordedImages
from torpor.engine.kind import DumpContext, FileId, Holder, PlanContext
from torpor.engine.options import TcpPolicy


def dump_context(**more):
    values = {"tcp": TcpPolicy.REFUSE, "container": False, "ghost_limit_bytes": 1 << 20}
    return DumpContext(**(values | {"tasks": {1041: 41}} | more))


def plan_context(*ids):
    return PlanContext(
        fds={i: 512 + i for i in ids},
        holders={i: [Holder(task=41, fd=2 + i)] for i in ids},
        spare_fd=600,
    )


def through_images(states):
    images = RecordedImages()
    KIND.encode(states, images)
    return KIND.decode(images), images


def gone(**more):
    values = {
        "link": "/tmp/work/x (deleted)", "st_nlink": 0, "flags": O.RDWR | O.CLOEXEC, "st_size": 5,
        "content": b"bytes", "st_uid": 7, "st_gid": 8, "st_mode": 0o100640,
        "paths": {"/tmp": (1, 1), "/tmp/work": (1, 2)},
    }  # fmt: skip
    return RecordedFd(**(values | more))


def describe(states, context):
    return [op.describe() for op in KIND.plan(states, context)]


def test_an_external_file_is_given_or_missed():
    view = RecordedFd(link="/var/log/app", flags=O.WRONLY, pos=7, mnt_id=27, st_ino=0x9C)
    state = KIND.collect(view, dump_context(external=frozenset({"file[1b:9c]"})))
    kept, _ = through_images({FileId(1): state})
    assert kept == {FileId(1): state}
    given = replace(plan_context(1), inherit={"file[1b:9c]": 9})
    assert describe(kept, given) == ["dup3(9, 513, 0)  # fd 3 -> file[1b:9c]: given in its place"]
    with pytest.raises(Refused, match="--inherit-fd"):
        KIND.plan(kept, plan_context(1))


def test_a_named_file_is_opened_and_placed():
    view = RecordedFd(link="/var/log/app", flags=O.WRONLY | O.CLOEXEC, pos=7, st_size=9)
    state = KIND.collect(view, dump_context())
    assert state == Regular(path="/var/log/app", flags=1, pos=7, mode=0o100644, size=9)
    assert describe({FileId(1): state}, plan_context(1)) == [
        "openat(-100, '/var/log/app', 257, 0) → open513  # fd 3 -> /var/log/app",
        "dup3($open513, 513, 0)  # fd 3 -> /var/log/app",
        "close($open513)  # fd 3 -> /var/log/app",
        "lseek(513, 8, 4)  # fd 3 -> /var/log/app: has at least 9 bytes",
        "lseek(513, 7, 0)  # fd 3 -> /var/log/app: position",
    ]


def test_states_come_back_from_images():
    states = {
        FileId(1): KIND.collect(RecordedFd(flags=O.APPEND | 1, st_size=3), dump_context()),
        FileId(2): KIND.collect(gone(), dump_context()),
        FileId(3): KIND.collect(
            gone(flags=O.RDWR | O.TMPFILE | O.DIRECTORY, paths={"/tmp/work": (1, 1)}),
            dump_context(),
        ),
        FileId(4): KIND.collect(
            RecordedFd(link="/gone (deleted)", st_mode=0o40755, st_nlink=0, paths={}),
            dump_context(),
        ),
        FileId(5): Regular(path="/a", flags=0, owner=Owner(kind=1, pid=41, signal=10)),
    }
    for number in (3, 4):
        ghost = replace(states[FileId(number)].ghost, number=number)
        states[FileId(number)] = replace(states[FileId(number)], ghost=ghost)
    back, images = through_images(states)
    assert back == states
    assert {m.id: m.flags for _, m in images.files("REG")}[3] == O.RDWR


def test_one_ghost_for_two_descriptions():
    context = dump_context()
    one = KIND.collect(gone(), context)
    other = KIND.collect(gone(fd=4, flags=0, pos=3), context)
    assert one.ghost is other.ghost
    states = {FileId(1): one, FileId(2): other}
    back, images = through_images(states)
    assert back == states
    assert len(list(images.entries("ghost-file-1"))) == 2
    assert [op.describe().split("  #")[0] for op in KIND.plan(states, plan_context(1, 2))] == [
        "openat(-100, '/tmp/work', 0x210000, 0) → ghost1.folder",
        "openat($ghost1.folder, '.torpor-ghost-1', 0x200c2, 384) → ghost1.file",
        "pwrite64($ghost1.file, <5 bytes>, 5, 0)",
        "ftruncate($ghost1.file, 5)",
        "dup3($ghost1.file, 600, 0)",
        "openat(-100, '/proc/self/fd/600', 258, 0) → ghost1.one",
        "dup3($ghost1.one, 513, 0)",
        "close($ghost1.one)",
        "openat(-100, '/proc/self/fd/600', 256, 0) → ghost1.one",
        "dup3($ghost1.one, 514, 0)",
        "close($ghost1.one)",
        "fchownat($ghost1.file, '', 7, 8, 0x1000)",
        "fchmod($ghost1.file, 416)",
        "utimensat($ghost1.file, '', <32 bytes>, 0x1000)",
        "renameat2($ghost1.folder, '.torpor-ghost-1', $ghost1.folder, 'x', 1) → ghost1.named",
        "renameat2($ghost1.folder, '.torpor-ghost-1', $ghost1.folder, 'x', 2) → ghost1.swapped",
        "fcntl($ghost1.folder, 0, $ghost1.named) → ghost1.ours",
        "fcntl($ghost1.folder, 0, $ghost1.swapped) → ghost1.theirs",
        "fcntl($ghost1.folder, 0, 0) → ghost1.rest",
        "fcntl($ghost1.file, 0, $ghost1.swapped) → ghost1.blind",
        "dup3($ghost1.blind, $ghost1.rest, 0)",
        "unlinkat($ghost1.ours, 'x', 0)",
        "unlinkat($ghost1.theirs, 'x', 0)",
        "renameat2($ghost1.theirs, '.torpor-ghost-1', $ghost1.theirs, 'x', 1)",
        "unlinkat($ghost1.rest, '.torpor-ghost-1', 0)",
        "statx($ghost1.file, '', 0x1000, 4, buffer[256])",
        "@load32(buffer[256], 16) → ghost1.links",
        "close($ghost1.ours)",
        "close($ghost1.theirs)",
        "close($ghost1.rest)",
        "close($ghost1.blind)",
        "fcntl(513, 1)",
        "fcntl(514, 1)",
        "close(600)",
        "close($ghost1.file)",
        "close($ghost1.folder)",
        "lseek(514, 3, 0)",
    ]


def test_zeros_are_not_stored():
    content = b"a" + bytes(ghosts.BLOCK_BYTES * 3) + b"b" + bytes(10)
    chunks = list(ghosts.split(content))
    assert [(offset, len(data)) for offset, data in chunks] == [(0, 4096), (12288, 12)]
    rebuilt = bytearray(len(content))
    for offset, data in chunks:
        rebuilt[offset : offset + len(data)] = data
    assert bytes(rebuilt) == content
    big = bytes([1]) * (3 * ghosts.PIECE_BYTES + 5)
    assert max(len(data) for _, data in ghosts.split(big)) <= ghosts.PIECE_BYTES
    assert b"".join(data for _, data in ghosts.split(big)) == big


def test_a_raw_ghost_of_criu_is_read():
    images = RecordedImages()
    images.add("files", pb.file_entry(type=pb.REG, id=9, reg=pb.reg_file_entry(
        id=9, flags=2, pos=0, name=b"/tmp/x",
        fown=pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0),
    )))  # fmt: skip
    images.add("remap-fpath", pb.remap_file_path_entry(orig_id=9, remap_id=10, remap_type=1))
    images.add("ghost-file-a", pb.ghost_file_entry(uid=1, gid=2, mode=0o100600), b"raw content")
    state = KIND.decode(images)[FileId(9)]
    assert state.ghost.size == 11
    assert state.ghost.chunks == ((0, b"raw content"),)


@pytest.mark.parametrize(
    ("view", "case"),
    [
        (gone(st_nlink=1, st_size=5), "unlinked-with-other-names"),
        (RecordedFd(link="/covered", paths={"/covered": (9, 9)}), "unreachable-path"),
        (gone(st_size=1 << 21, ranges=[(0, 1 << 21)]), "ghost-too-large"),
        (
            RecordedFd(fcntl_buffers={16: b"\1\0\0\0\x99\0\0\0"}),
            "signal-owner-outside",
        ),
    ],
)
def test_limits(view, case):
    with pytest.raises(Refused) as error:
        KIND.collect(view, dump_context())
    limit = next(limit for limit in KIND.limits if limit.case == case)
    assert (error.value.what, error.value.remedy) == (limit.what, limit.remedy)


def test_a_reader_of_a_file_with_other_names_gets_a_copy():
    warnings = []
    state = KIND.collect(gone(st_nlink=1, flags=0), dump_context(warn=warnings.append))
    assert state.ghost.chunks == ((0, b"bytes"),)
    assert "other names" in warnings[0]


def test_another_name_is_found_or_made():
    view = gone(st_nlink=1, others={"/tmp/work": "/tmp/work/other"})
    state = KIND.collect(view, dump_context())
    assert (state.ghost.link, state.ghost.chunks) == ("/tmp/work/other", ())
    back, images = through_images({FileId(1): state})
    assert back[FileId(1)].ghost.link == "/tmp/work/other"
    assert not list(images.entries("remap-fpath"))
    context = dump_context(link_remap=True)
    state = KIND.collect(gone(st_nlink=1), context)
    assert context.links[0][1] == state.ghost.link == "/tmp/work/link_remap.1"
    back, images = through_images({FileId(1): state})
    assert [remap.remap_type for remap, _ in images.entries("remap-fpath")] == [pb.LINKED]
    plan = describe(back, plan_context(1))
    assert "linkat(-100, '/tmp/work/link_remap.1', $ghost1.folder" in plan[3]
    assert any("futex(buffer[8], 4, 0, 0, buffer[8], $ghost1.before)" in line for line in plan)
    assert any("unlinkat(-100, '/tmp/work/link_remap.1', 0)" in text for text in plan)


def test_what_else_a_ghost_has():
    state = KIND.collect(
        gone(times=(1_000_000_005, 2_000_000_007), attributes={"user.a": b"1"}, ranges=[(2, 4)]),
        dump_context(),
    )
    assert state.ghost.chunks == ((2, b"te"),)
    back, _ = through_images({FileId(1): state})
    assert back == {FileId(1): state}
    plan = "\n".join(describe(back, plan_context(1)))
    assert "utimensat($ghost1.file" in plan
    assert "fsetxattr($ghost1.file, 'user.a'" in plan


@pytest.mark.parametrize("kind", [0o120777, 0o140755, 0o020600])
def test_ghosts_that_are_held_by_path_only(kind):
    state = KIND.collect(
        gone(st_mode=kind, flags=O.PATH | O.NOFOLLOW, st_rdev=0x103, target="else/where"),
        dump_context(),
    )
    back, _ = through_images({FileId(1): state})
    assert back[FileId(1)].ghost.target == ("else/where" if kind == 0o120777 else "")
    made = describe(back, plan_context(1))[1]
    assert made.startswith(("symlinkat('else/where'", "mknodat("))


def test_a_name_that_ends_like_a_deleted_one():
    state = KIND.collect(RecordedFd(link="/tmp/x (deleted)"), dump_context())
    assert state.path == "/tmp/x (deleted)"
    assert state.ghost is None


def test_only_held_files_become_descriptors():
    states = {FileId(1): Regular(path="/exe", flags=0), FileId(2): Regular(path="/b", flags=0)}
    assert all("/exe" not in text for text in describe(states, plan_context(2)))


def test_paths_are_mapped():
    context = plan_context(1)
    context.path_map = {"/old": "/new", "/old/deep": "/other"}
    assert "'/other/f'" in describe({FileId(1): Regular(path="/old/deep/f", flags=0)}, context)[0]
    assert "'/older'" in describe({FileId(1): Regular(path="/older", flags=0)}, context)[0]


def test_bad_images():
    images = RecordedImages()
    images.add("files", pb.file_entry(type=pb.REG, id=1, reg=pb.reg_file_entry(
        id=1, flags=0, pos=0, name=b"relative",
        fown=pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0),
    )))  # fmt: skip
    with pytest.raises(BadImage):
        KIND.decode(images)


def test_owners_are_set_late():
    state = Regular(path="/a", flags=0, owner=Owner(kind=1, pid=41, signal=10))
    late = KIND.late({FileId(1): state}, plan_context(1))
    assert [(op.task, op.op.describe()) for op in late] == [
        (41, "fcntl(3, 15, task 41)  # fd 3: who gets its signals"),
        (41, "fcntl(3, 10, 10)  # fd 3"),
    ]
