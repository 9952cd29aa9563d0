# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.inotify import FIONREAD, KIND, MAX_STEPS, Inotify, Watch
from torpor.engine.files.watched import Target
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId

INFO = (
    "inotify wd:3 ino:13 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1"
    " f_handle:1300000000000000",
    "inotify wd:1 ino:98c08a sdev:fe00000 mask:80000fff ignored_mask:0 fhandle-bytes:c"
    " fhandle-type:81 f_handle:8ac09800c5cb0f3401020304",
)


def view(info=INFO, queued=0, paths=None):
    return RecordedFd(
        link="anon_inode:inotify", st_mode=0o600, info=info,
        ioctls={FIONREAD: queued.to_bytes(4, "little")},
        watches=paths if paths is not None else {0x13: "/etc", 0x98C08A: "/data"},
    )  # fmt: skip


def test_collect_and_images():
    state = KIND.collect(view(), dump_context())
    assert [(w.wd, w.target.path, w.mask) for w in state.watches] == [
        (1, "/data", 0x80000FFF), (3, "/etc", 2),
    ]  # fmt: skip
    assert state.watches[0].target.handle == bytes.fromhex("8ac09800c5cb0f3401020304")
    back, images = through_images(KIND, {FileId(1): state})
    assert back == {FileId(1): state}
    [(_, entry)] = images.files("INOTIFY")
    assert len(entry.wd[0].f_handle.handle) == 16


def test_numbers_are_reached_by_adding_and_removing():
    states = {FileId(1): KIND.collect(view(), dump_context())}
    text = described(KIND, states, plan_context(1))
    assert [line.split("  #")[0] for line in text.splitlines()] == [
        "inotify_init1(2048) → inotify513",
        "dup3($inotify513, 513, 0)",
        "close($inotify513)",
        "inotify_add_watch(513, '/data', 0x82000fff)",
        "inotify_add_watch(513, '/etc', 0x2000002)",
        "inotify_rm_watch(513, 2)",
        "inotify_add_watch(513, '/etc', 0x2000002)",
        "read(513, buffer[65536], 0x10000)",
        "fcntl(513, 4, 0)",
    ]


def test_queued_events_are_warned_of():
    warnings = []
    KIND.collect(view(queued=48), dump_context(warn=warnings.append))
    assert "48 bytes of queued events are lost" in warnings[0]


def test_limits():
    with pytest.raises(Refused) as error:
        KIND.collect(view(paths={}), dump_context())
    assert "inode 19" in error.value.cause
    far = "inotify wd:ffffff ino:13 sdev:0 mask:2 ignored_mask:0 "
    with pytest.raises(Refused):
        KIND.collect(view(info=(far,)), dump_context())


@pytest.mark.parametrize("numbers", [(0,), (2, 2)])
def test_wrong_numbers(numbers):
    images = RecordedImages()
    watches = tuple(Watch(wd=wd, target=Target(path="/a"), mask=2) for wd in numbers)
    KIND.encode({FileId(1): Inotify(flags=0, watches=watches)}, images)
    with pytest.raises(BadImage):
        KIND.decode(images)


def test_a_hostile_number_does_not_make_a_long_plan():
    images = RecordedImages()
    watch = Watch(wd=MAX_STEPS * 2, target=Target(path="/a"), mask=2)
    KIND.encode({FileId(1): Inotify(flags=0, watches=(watch,))}, images)
    with pytest.raises(Refused):
        KIND.decode(images)


def test_a_deleted_file_is_watched_by_a_descriptor_of_it():
    held = RecordedFd(link="/gone (deleted)", st_dev=0xFE00, st_ino=0x13, st_nlink=0)
    context = dump_context(views={FileId(7): held})
    state = KIND.collect(view(paths={0x98C08A: "/data"}), context)
    assert (state.watches[1].target.path, state.watches[1].target.file) == ("/gone", 7)
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {FileId(1): state}
    assert "inotify_add_watch(513, '/proc/self/fd/519', 2)" in described(
        KIND, back, plan_context(1, 7)
    )
