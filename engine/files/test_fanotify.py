# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import Bug, Refused
from torpor.engine.files.fanotify import FILESYSTEM, FIONREAD, INODE, KIND, LINK, MOUNT
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId

INFO = (
    "fanotify flags:3 event-flags:8002",
    "fanotify ino:13 sdev:fe00000 mflags:40 mask:8000020 ignored_mask:2 fhandle-bytes:8"
    " fhandle-type:1 f_handle:1300000000000000",
    "fanotify mnt_id:1e mflags:0 mask:8 ignored_mask:0",
    "fanotify sdev:1b mflags:0 mask:8 ignored_mask:0",
)


def view(info=INFO, queued=0, **more):
    values = {"watches": {0x13: "/data"}, "mounts": {0x1E: "/mnt", 0x1B: "/dev/shm"}} | more
    return RecordedFd(
        link=LINK, st_mode=0o600, info=info, flags=0o4002,
        ioctls={FIONREAD: queued.to_bytes(4, "little")}, **values,
    )  # fmt: skip


def test_groups_and_marks():
    state = KIND.collect(view(), dump_context())
    assert (state.init_flags, state.event_flags) == (3, 0x8002)
    assert [m.kind for m in state.marks] == [FILESYSTEM, MOUNT, INODE]
    back, images = through_images(KIND, {FileId(1): state})
    assert sorted(back[FileId(1)].marks, key=lambda m: m.kind) == sorted(
        state.marks, key=lambda m: m.kind
    )
    [(_, entry)] = images.files("FANOTIFY")
    assert [mark.type for mark in entry.mark] == [2, 1]
    text = described(KIND, {FileId(1): state}, plan_context(1))
    assert [line.split("  #")[0] for line in text.splitlines()] == [
        "fanotify_init(3, 0x8002) → fanotify513",
        "dup3($fanotify513, 513, 0)",
        "close($fanotify513)",
        "fanotify_mark(513, 257, 8, -100, '/dev/shm')",
        "fanotify_mark(513, 17, 8, -100, '/mnt')",
        "fanotify_mark(513, 5, 0x8000020, -100, '/data')",
        "fanotify_mark(513, 101, 2, -100, '/data')",
    ]


def test_queued_events_are_warned_of():
    warnings = []
    KIND.collect(view(queued=24), dump_context(warn=warnings.append))
    assert "24 bytes of queued events are lost" in warnings[0]


def test_limits():
    with pytest.raises(Refused, match="path of a watch"):
        KIND.collect(view(watches={}), dump_context())
    with pytest.raises(Refused, match="mount"):
        KIND.collect(view(mounts={}), dump_context())
    with pytest.raises(Bug):
        KIND.collect(view(info=()), dump_context())
