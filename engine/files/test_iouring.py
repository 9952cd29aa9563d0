# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.common import O
from torpor.engine.files.iouring import KIND, Uring
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId

IDLE = {
    "SqMask": "0x7", "SqHead": 5, "SqTail": 5, "CachedSqHead": 5, "CqMask": "0xf", "CqHead": 3,
    "CqTail": 5, "CachedCqTail": 5, "SqThread": -1, "UserFiles": 0, "UserBufs": 0,
}  # fmt: skip


def view(more=(), **facts):
    lines = [f"{name}:\t{value}" for name, value in (IDLE | facts).items()]
    return RecordedFd(
        link="anon_inode:[io_uring]", st_ino=99, flags=O.RDWR | O.CLOEXEC,
        info=(*lines, "PollList:", *more, "CqOverflowList:"),
    )  # fmt: skip


def test_idle_rings():
    warnings = []
    states = {FileId(1): KIND.collect(view(), dump_context(warn=warnings.append))}
    assert states[1] == Uring(ino=99, submissions=8, completions=16, requests=5, flags=O.RDWR)
    assert "eventfd" in warnings[0]
    back, images = through_images(KIND, states)
    assert back == states
    text = described(KIND, back, plan_context(1))
    assert text.startswith("io_uring_setup(8, 16 completions) → ring513")
    for change in ({"requests": 1 << 25}, {"submissions": 0}, {"completions": "x"}):
        facts = images.extra("io_uring", "1")
        images.extra("io_uring", "1", facts | change)
        with pytest.raises(BadImage):
            KIND.decode(images)
        images.extra("io_uring", "1", facts)


@pytest.mark.parametrize(
    ("busy", "words"),
    [
        (view(CachedSqHead=7), "2 under way"),
        (view(more=("  op=6, task_works=0",)), "under way"),
        (view(UserFiles=1), "registered"),
        (view(SqThread=77), "SQPOLL"),
        (view(CachedSqHead=1 << 25, CachedCqTail=1 << 25), "33,554,432"),
    ],
)
def test_limits(busy, words):
    with pytest.raises(Refused) as error:
        KIND.collect(busy, dump_context())
    assert words in str(error.value)
