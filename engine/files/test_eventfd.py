# SPDX-License-Identifier: Apache-2.0
from torpor.engine.files.common import O
from torpor.engine.files.eventfd import KIND, Eventfd
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId

VIEW = RecordedFd(
    link="anon_inode:[eventfd]", st_mode=0o600, fs_magic=0x09041934,
    flags=O.RDWR | O.NONBLOCK | O.CLOEXEC,
    info=("eventfd-count:               1f", "eventfd-id: 1", "eventfd-semaphore: 1"),
)  # fmt: skip


def test_collect():
    assert KIND.matches(VIEW)
    assert KIND.collect(VIEW, dump_context()) == Eventfd(
        count=31, flags=O.RDWR | O.NONBLOCK, is_semaphore=True
    )
    old = RecordedFd(link=VIEW.link, flags=2, info=("eventfd-count: 0",))
    assert not KIND.collect(old, dump_context()).is_semaphore


def test_images_and_plan():
    states = {
        FileId(1): KIND.collect(VIEW, dump_context()),
        FileId(2): Eventfd(count=1 << 40, flags=O.RDWR | O.ASYNC),
    }
    back, _ = through_images(KIND, states)
    assert back == states
    assert described(KIND, back, plan_context(1, 2)) == (
        "eventfd2(31, 2049) → eventfd513  # fd 3 -> anon_inode:[eventfd]\n"
        "dup3($eventfd513, 513, 0)  # fd 3 -> anon_inode:[eventfd]\n"
        "close($eventfd513)  # fd 3 -> anon_inode:[eventfd]\n"
        "eventfd2(0, 0) → eventfd514  # fd 4 -> anon_inode:[eventfd]\n"
        "dup3($eventfd514, 514, 0)  # fd 4 -> anon_inode:[eventfd]\n"
        "close($eventfd514)  # fd 4 -> anon_inode:[eventfd]\n"
        "write(514, count 1099511627776, 8)  # fd 4 -> anon_inode:[eventfd]\n"
        "fcntl(514, 4, 0x2000)  # fd 4 -> anon_inode:[eventfd]: status flags"
    )
