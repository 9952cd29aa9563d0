# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage
from torpor.engine.files import locks
from torpor.engine.files.locks import BREAKING, FLOCK, LEASE, NONE, OFD, POSIX, READ, WRITE, Lock
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import RecordedFd, RecordedImages
from torpor.engine.kind import FileId

LINES = {
    "POSIX  ADVISORY  READ 1041 fe:00:1 5 9": Lock(
        flag=POSIX, kind=READ, task=41, fd=3, start=5, length=5
    ),
    "OFDLCK ADVISORY  WRITE -1 fe:00:1 0 EOF": Lock(flag=OFD, kind=WRITE, task=41, fd=3),
    "FLOCK  ADVISORY  WRITE 1041 fe:00:1 0 EOF": Lock(flag=FLOCK, kind=WRITE, task=41, fd=3),
    "LEASE  ACTIVE    WRITE 1041 fe:00:1 0 EOF": Lock(flag=LEASE, kind=WRITE, task=41, fd=3),
    "LEASE  BREAKING  READ 1041 fe:00:1 0 EOF": Lock(
        flag=LEASE, kind=READ | BREAKING, task=41, fd=3
    ),
    "LEASE  BREAKING  UNLCK 1041 fe:00:1 0 EOF": Lock(
        flag=LEASE, kind=NONE | BREAKING, task=41, fd=3
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_lines_of_fdinfo(line):
    view = RecordedFd(flags=2, info=(f"lock:\t1: {line}",))
    found, refused = locks.collect(41, [view], {3: FileId(1)})
    assert (found, refused) == ([LINES[line]], [])
    images = RecordedImages()
    locks.encode(found, images)
    assert locks.decode(images) == found


def test_who_has_taken_a_lock_takes_it_again():
    mine, childs, other = (
        Lock(flag=FLOCK, kind=WRITE, task=task, fd=3, by=by)
        for task, by in ((41, 1042), (42, 1042), (42, 9))
    )
    numbers = {1041: 41, 1042: 42}
    assert locks.of_takers([mine, childs], lambda _: FileId(1), numbers) == [childs]
    both = [mine, other]
    assert locks.of_takers(both, lambda lock: FileId(lock.task), numbers) == both


def test_waiters_are_left_to_their_system_call():
    view = RecordedFd(info=("lock:\t1: -> FLOCK  ADVISORY  WRITE 1041 fe:00:1 0 EOF",))
    assert locks.collect(41, [view], {3: FileId(1)}) == ([], [])


def test_a_lease_that_is_broken_is_broken_again():
    calls = [late.op.describe() for late in locks.late([LINES[list(LINES)[4]]])]
    assert calls == [
        "fcntl(3, 1024, 1)  # fd 3: lease",
        "fcntl(3, 8, 0)  # fd 3",
        "openat(-100, '/proc/self/fd/3', 2048, 0) → lease3  # fd 3: breaks the lease",
        "close($lease3)  # fd 3",
    ]


def test_a_lease_that_goes_was_of_a_reader_or_a_writer():
    ops = [late.op for late in locks.late([LINES[list(LINES)[5]]])]
    assert [op.args[2] for op in ops[:2]] == [READ, WRITE]
    assert [op.args[2] for op in ops if op.call == "openat"] == [0o4001]


@pytest.mark.parametrize(("flag", "kind"), [(POSIX, BREAKING), (LEASE, NONE), (16, READ)])
def test_bad_images(flag, kind):
    images = RecordedImages()
    images.add("filelocks", pb.file_lock_entry(flag=flag, type=kind, pid=1, fd=3, start=0, len=0))
    with pytest.raises(BadImage):
        locks.decode(images)
