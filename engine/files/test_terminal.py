# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.terminal import KIND, TCGETS
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder

SETTINGS = bytes(range(36))


def view(fd, rdev=0x8801):
    return RecordedFd(
        fd=fd, link="/dev/pts/1", st_mode=0o20620, st_rdev=rdev, st_dev=0x18, flags=2,
        ioctls={TCGETS: SETTINGS},
    )  # fmt: skip


def collect(*views, container=True):
    context = dump_context(
        container=container,
        views={FileId(i): v for i, v in enumerate(views, 1)},
        holders={FileId(i): [Holder(task=1, fd=v.fd)] for i, v in enumerate(views, 1)},
    )
    return {i: KIND.collect(v, context) for i, v in context.views.items()}


def test_stdio_of_a_container():
    assert KIND.matches(view(0))
    states = collect(view(1), view(7))
    assert [s.stdio for s in states.values()] == [1, 1]
    assert states[1].key == "tty[8801:18]"
    back, images = through_images(KIND, states)
    assert back == states
    context = plan_context(1, 2, stdio={0: 700, 1: 701, 2: 702})
    context.holders = {1: [Holder(task=1, fd=1)], 2: [Holder(task=1, fd=7)]}
    assert [line.split("  #")[0] for line in described(KIND, back, context).splitlines()] == [
        "dup3(701, 513, 0)", "ioctl(513, 0x5402, termios)",
        "dup3(701, 514, 0)", "ioctl(514, 0x5402, termios)",
    ]  # fmt: skip
    with pytest.raises(Refused):
        KIND.plan(back, plan_context(1, 2))
    inherited = plan_context(1, 2, inherit={"tty[8801:18]": 9})
    assert described(KIND, back, inherited).startswith("dup3(9, 513, 0)")
    images.extra("terminal", "1", {"rdev": 1, "dev": 1, "stdio": 1, "flags": 1, "termios": "00"})
    with pytest.raises(BadImage):
        KIND.decode(images)


def test_other_terminals_are_refused():
    for views, container in (((view(7),), True), ((view(1),), False)):
        with pytest.raises(Refused):
            collect(*views, container=container)
    assert not KIND.matches(view(0, rdev=0x500))
    assert not KIND.matches(view(0, rdev=0x502))
