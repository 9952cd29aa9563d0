# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace

import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.common import O
from torpor.engine.files.pidfd import (
    EXIT_CODE_AT,
    INFO_EXIT,
    KIND,
    PIDFD_GET_INFO,
    Pidfd,
    reaped,
)
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder


def view(pid, flags=O.RDWR | O.CLOEXEC | O.NONBLOCK):
    return RecordedFd(
        link="anon_inode:[pidfd]", st_mode=0o700, st_ino=9, flags=flags,
        info=(f"Pid:\t{pid}", f"NSpid:\t{pid}\t42"),
    )  # fmt: skip


def test_pidfd():
    state = KIND.collect(view(1042), dump_context())
    assert state == Pidfd(task=42, flags=O.NONBLOCK, ino=9)
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {FileId(1): state}
    warnings = []
    context = plan_context(1, warn=warnings.append)
    context.holders = {
        1: [Holder(task=41, fd=4), Holder(task=41, fd=5), Holder(task=42, fd=6)],
    }  # fmt: skip
    what = "  # fd 4 -> pidfd of task 42"
    assert described(KIND, back, context).splitlines() == [
        "eventfd2(0, 0) → later513  # fd 4 -> anon_inode:[pidfd]: until its task is there",
        "dup3($later513, 513, 0)  # fd 4 -> anon_inode:[pidfd]",
        "close($later513)  # fd 4 -> anon_inode:[pidfd]",
        f"41: pidfd_open(42, 2048) → late1{what}",
        f"41: fcntl(4, 1) → flags1{what}",
        f"41: dup3($late1, 4, 0){what}",
        f"41: fcntl(4, 2, $flags1){what}",
        f"41: fcntl(5, 1) → flags1{what}",
        f"41: dup3($late1, 5, 0){what}",
        f"41: fcntl(5, 2, $flags1){what}",
        f"41: close($late1){what}",
        f"42: pidfd_open(42, 2048) → late1{what}",
        f"42: fcntl(6, 1) → flags1{what}",
        f"42: dup3($late1, 6, 0){what}",
        f"42: fcntl(6, 2, $flags1){what}",
        f"42: close($late1){what}",
    ]
    assert "2 tasks shared it" in warnings[0]


def test_of_ended_tasks():
    told = struct.pack("<QQ", INFO_EXIT, 0).ljust(EXIT_CODE_AT, b"\0") + struct.pack("<i", 0x300)
    states = {
        FileId(i): KIND.collect(replace(view(-1), st_ino=ino, ioctls={PIDFD_GET_INFO: told}),
                                dump_context())
        for i, ino in ((1, 7), (2, 8), (3, 7))
    }  # fmt: skip
    assert states[1] == Pidfd(task=-1, flags=O.NONBLOCK, ino=7, status=0x300)
    back, _ = through_images(KIND, states)
    assert back == states
    assert {ino: list(held) for ino, held in reaped(back).items()} == {7: [1, 3], 8: [2]}
    assert not described(KIND, back, plan_context(1, 2, 3))


def test_of_threads():
    context = dump_context(threads={1041: 41, 1055: 55})
    states = {FileId(1): KIND.collect(view(1055, O.EXCL), context)}
    assert states[1] == Pidfd(task=55, flags=O.EXCL, ino=9, is_thread=True)
    back, _ = through_images(KIND, states)
    assert back == states
    late = KIND.late(back, plan_context(1))
    assert late[0].op.describe().startswith("pidfd_open(55, 128)")
    assert all(one.last for one in late)


@pytest.mark.parametrize("pid", [0, 999])
def test_limits(pid):
    with pytest.raises(Refused):
        KIND.collect(view(pid), dump_context())


@pytest.mark.parametrize("task", [0, -7])
def test_images_with_wrong_tasks(task):
    images = RecordedImages()
    KIND.encode({FileId(1): Pidfd(task=task, flags=2)}, images)
    with pytest.raises(BadImage):
        KIND.decode(images)
