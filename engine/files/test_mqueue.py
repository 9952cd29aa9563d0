# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.mqueue import KIND, Notice, Queue
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def view(queued=0, notify=0, signal=0, pid=0, **more):
    text = f"QSIZE:{queued:<10} NOTIFY:{notify:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n"
    values = {"queue": (4, 64, 1 if queued else 0), "st_mode": 0o100600, "flags": 2} | more
    return RecordedFd(link="/jobs", fs_magic=0x19800202, content=text.encode(), **values)


def test_a_queue_with_a_name():
    state = KIND.collect(view(queued=7, signal=10, pid=1041), dump_context())
    assert state == Queue(
        name="jobs", inode=1234, flags=2, mode=0o600, maximum=4, size=64, is_empty=False,
        notice=Notice(task=41, how=0, signal=10),
    )  # fmt: skip
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {FileId(1): state}
    text = described(KIND, back, plan_context(1))
    assert [line.split("  #")[0] for line in text.splitlines()] == [
        "mq_open('jobs', 2, 384, 4 messages of 64 bytes) → queue1234",
        "dup3($queue1234, 600, 0)",
        "close($queue1234)",
        "mq_open('jobs', 2, 0, 0) → open513",
        "dup3($open513, 513, 0)",
        "close($open513)",
        "close(600)",
        "41: mq_notify(3, signal 10)",
    ]


def test_a_deleted_one_is_made_again():
    state = KIND.collect(view(st_nlink=0), dump_context())
    text = described(KIND, {FileId(1): state}, plan_context(1))
    assert "mq_open('jobs', 194, 384" in text
    assert "mq_unlink('jobs')" in text


@pytest.mark.parametrize(
    "more", [{"st_nlink": 0, "queued": 5}, {"notify": 2, "pid": 1041}, {"pid": 9}]
)
def test_limits(more):
    with pytest.raises(Refused):
        KIND.collect(view(**more), dump_context())


def test_bad_images():
    state = KIND.collect(view(), dump_context())
    _, images = through_images(KIND, {FileId(1): state})
    for kept in ({}, {"name": "a/b", "inode": 1, "flags": 0, "mode": 0, "maximum": 1, "size": 1,
                      "is_empty": True, "is_deleted": False, "notice": None}):  # fmt: skip
        images.extra("mqueue", "1", kept)
        with pytest.raises(BadImage):
            KIND.decode(images)
