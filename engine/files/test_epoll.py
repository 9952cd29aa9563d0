# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.epoll import KIND, Epoll, Watch
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder


def epoll_view(*targets, descriptions=None, **more):
    return RecordedFd(
        link="anon_inode:[eventpoll]", st_mode=0o600, flags=2, targets=targets,
        target_descriptions=descriptions or {}, **more,
    )  # fmt: skip


def pipe_view(fd, description):
    return RecordedFd(fd=fd, link="pipe:[7]", st_mode=0o10600, description=description)


def test_targets_are_found_at_their_number_or_elsewhere():
    view = epoll_view(
        (5, 1, 0xAA, 0), (5, 4, 0xBB, 1),
        descriptions={(5, 0): "moved", (5, 1): "here"},
    )  # fmt: skip
    context = dump_context(
        views={1: view, 2: pipe_view(5, "here"), 3: pipe_view(9, "moved")},
        holders={
            1: [Holder(task=41, fd=4)], 2: [Holder(task=41, fd=5)], 3: [Holder(task=41, fd=9)],
        },
    )  # fmt: skip
    state = KIND.collect(view, context)
    assert state == Epoll(flags=2, watches=(
        Watch(tfd=5, events=1, data=0xAA, file=3, here=9),
        Watch(tfd=5, events=4, data=0xBB, file=2, here=5),
    ))  # fmt: skip
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {1: state}


def test_a_target_at_its_number_is_that_of_the_same_task():
    """Another task has something else there; nothing is compared any more."""
    view = epoll_view((5, 1, 0xAA, 0), own_targets={(5, 0)}, ns_pid=42)
    context = dump_context(
        views={1: view, 2: pipe_view(5, "x"), 3: pipe_view(5, "y")},
        holders={
            1: [Holder(task=42, fd=4)], 2: [Holder(task=41, fd=5)], 3: [Holder(task=42, fd=5)],
        },
    )  # fmt: skip
    assert KIND.suffice(view, context)
    assert [watch.file for watch in KIND.collect(view, context).watches] == [3]
    assert not KIND.suffice(epoll_view((5, 1, 0, 0), (6, 1, 0, 0), own_targets={(5, 0)}), context)


def test_a_target_that_nobody_has_is_refused():
    view = epoll_view((5, 1, 0, 0), descriptions={(5, 0): "gone"})
    context = dump_context(views={1: view, 2: pipe_view(5, "x")}, holders={})
    with pytest.raises(Refused) as error:
        KIND.collect(view, context)
    assert error.value.cause == "it was added as fd 5"


def plan(watch, holders):
    context = plan_context(1, 2)
    context.holders = holders
    text = described(KIND, {FileId(1): Epoll(flags=2, watches=(watch,))}, context)
    lines = [line.split("  #")[0] for line in text.splitlines()]
    assert lines[:3] == [
        "epoll_create1(0) → epoll513", "dup3($epoll513, 513, 0)", "close($epoll513)",
    ]  # fmt: skip
    return lines[3:]


WATCH = Watch(tfd=5, events=0x19, data=0x1234, file=FileId(2), here=5)
EVENT = "events 0x19 data 0x1234"


def test_added_by_the_own_number():
    holders = {1: [Holder(task=41, fd=4), Holder(task=42, fd=4)], 2: [Holder(task=42, fd=5)]}
    assert plan(WATCH, holders) == [f"42: epoll_ctl(4, 1, 5, {EVENT})"]


def test_added_by_a_number_that_is_lent():
    holders = {1: [Holder(task=41, fd=4)], 2: [Holder(task=41, fd=8)]}
    assert plan(WATCH, holders) == [
        "41: dup3(8, 5, 0)", f"41: epoll_ctl(4, 1, 5, {EVENT})", "41: close(5)",
    ]  # fmt: skip


def test_added_by_a_number_that_is_in_use():
    holders = {
        1: [Holder(task=41, fd=4)], 2: [Holder(task=41, fd=8)], 3: [Holder(task=41, fd=5)],
    }  # fmt: skip
    assert plan(WATCH, holders) == [
        "41: fcntl(5, 0, 0) → saved5", "41: fcntl(5, 1) → flags5", "41: dup3(8, 5, 0)",
        f"41: epoll_ctl(4, 1, 5, {EVENT})", "41: dup3($saved5, 5, 0)",
        "41: fcntl(5, 2, $flags5)", "41: close($saved5)",
    ]  # fmt: skip


def test_added_by_the_root_when_no_task_has_both():
    holders = {1: [Holder(task=41, fd=4)], 2: [Holder(task=42, fd=5)]}
    assert plan(WATCH, holders) == [
        "fcntl(5, 0, 600) → saved5", "dup3(514, 5, 0)", f"epoll_ctl(513, 1, 5, {EVENT})",
        "close(5)", "dup3($saved5, 5, 0)", "close($saved5)",
    ]  # fmt: skip


def test_a_spent_one_shot_is_fired_by_the_root_before_others_are_added():
    spent = Watch(tfd=514, events=0xC0000000, data=7, file=FileId(2), here=514)
    armed = Watch(tfd=5, events=0x40000019, data=8, file=FileId(2), here=5)
    context = plan_context(1, 2)
    context.holders = {1: [Holder(task=41, fd=4)], 2: [Holder(task=41, fd=514)]}
    text = described(KIND, {FileId(1): Epoll(flags=2, watches=(armed, spent))}, context)
    assert [line.split("  #")[0] for line in text.splitlines()[3:]] == [
        "epoll_ctl(513, 1, 514, ready for anything)", "epoll_pwait(513, told, 1, 0, 0, 8)",
        "@load32(told, 0) → spent513.514",
        "epoll_ctl(513, $spent513.514, 514, events 0xc0000000 data 0x7)",
        "41: dup3(514, 5, 0)", "41: epoll_ctl(4, 1, 5, events 0x40000019 data 0x8)",
        "41: close(5)",
    ]  # fmt: skip


def test_images_of_criu_name_no_files():
    images = RecordedImages()
    KIND.encode({FileId(1): Epoll(flags=2, watches=(WATCH,))}, images)
    images.facts.clear()
    state = KIND.decode(images)[FileId(1)]
    assert state.watches[0].file is None
    context = plan_context(1, 2)
    context.holders = {1: [Holder(task=41, fd=4)], 2: [Holder(task=41, fd=5)]}
    assert f"41: epoll_ctl(4, 1, 5, {EVENT})" in described(KIND, {FileId(1): state}, context)


def test_images_that_disagree():
    images = RecordedImages()
    KIND.encode({FileId(1): Epoll(flags=2, watches=(WATCH,))}, images)
    images.extra("epoll", "1", [[2, 5], [3, 5]])
    with pytest.raises(BadImage):
        KIND.decode(images)


@pytest.mark.parametrize("known", [["1", 7], [1, "7"], [[], 7], [{}, 7], [1.5, 7]])
def test_facts_of_the_wrong_kind(known):
    images = RecordedImages()
    KIND.encode({FileId(1): Epoll(flags=2, watches=(WATCH,))}, images)
    images.extra("epoll", "1", [known])
    with pytest.raises(TypeError):  # `load` makes a BadImage of it
        KIND.decode(images)
