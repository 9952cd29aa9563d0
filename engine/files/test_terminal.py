# SPDX-License-Identifier: Apache-2.0
import errno
import struct

import pytest

from torpor.engine.errors import BadImage, KernelError, Refused
from torpor.engine.files import regular, ttyplan
from torpor.engine.files.terminal import KIND
from torpor.engine.files.tty import (
    TCGETS2,
    TIOCGDEV,
    TIOCGETD,
    TIOCGEXCL,
    TIOCGLCKTRMIOS,
    TIOCGPKT,
    TIOCGPTLCK,
    TIOCGPTN,
    TIOCGWINSZ,
    Role,
    role_of,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder, Session, Stopped, TerminalQueue

SETTINGS = struct.pack("<4IB19sII", 0x500, 5, 0xBF, 0x8A3B, 0, bytes(range(19)), 38400, 38400)
QUEUE = TerminalQueue(output=b"out", lines=(b"one\n", b""), rest=b"r", stopped=Stopped.BY_CALL)
SLAVE, MASTER, CURRENT = 0x8805, 0x502, 0x500


def u32(value):
    return struct.pack("<I", value)


ALIVE = {
    TIOCGETD: bytes(4), TCGETS2: SETTINGS, TIOCGLCKTRMIOS: bytes(36), TIOCGPTN: u32(5),
    TIOCGWINSZ: struct.pack("<4H", 24, 80, 0, 0), TIOCGDEV: u32(SLAVE), TIOCGPTLCK: u32(0),
    TIOCGPKT: u32(0), TIOCGEXCL: u32(0),
}  # fmt: skip
LINKS = {SLAVE: "/dev/pts/5", MASTER: "/dev/ptmx", CURRENT: "/dev/tty"}


class HungUp(dict):
    def __getitem__(self, request):
        raise KernelError("ioctl failed", errno=errno.EIO, subject="it")


def view(fd, rdev=SLAVE, **more):
    values = {"ioctls": ALIVE, "link": LINKS[rdev]} | more
    return RecordedFd(fd=fd, st_mode=0o20620, st_rdev=rdev, st_dev=0x18, flags=2, **values)


def collect(*views, **more):
    context = dump_context(
        views={FileId(i): v for i, v in enumerate(views, 1)},
        holders={FileId(i): [Holder(task=41, fd=v.fd)] for i, v in enumerate(views, 1)}, **more,
    )  # fmt: skip
    return {i: KIND.collect(v, context) for i, v in context.views.items()}


def lines(text):
    return [line.split("  #")[0] for line in text.splitlines()]


def test_devices():
    roles = {role_of(major << 8 | minor) for major, minor in ((5, 1), (4, 1), (4, 64), (136, 3))}
    assert roles == {Role.CONSOLE, Role.VT, Role.SERIAL, Role.SLAVE}
    assert role_of(0x503) is None
    assert not KIND.matches(RecordedFd(st_rdev=SLAVE))
    gone = view(4, link="/dev/pts/5 (deleted)", st_nlink=0)
    assert KIND.matches(gone)
    assert not regular.KIND.matches(gone)


def test_a_pair_with_its_session_and_queues():
    states = collect(
        view(3, MASTER, typed=QUEUE), view(4), view(5, CURRENT),
        terminals={SLAVE: Session(sid=41, pgrp=42)},
    )  # fmt: skip
    back, images = through_images(KIND, states)
    assert back == states
    assert {e.tty_id: e.data for e, _ in images.entries("tty-data")} == {11: b"out", 10: b"one\nr"}
    info = {e.id: e for e, _ in images.entries("tty-info")}
    assert {i: pb.TtyType.Name(e.type) for i, e in info.items()} == {
        10: "PTY", 11: "PTY", 2012: "CTTY",
    }  # fmt: skip
    assert info[10].termios.c_cc[0] == 0x03020100
    context = plan_context(1, 2, 3, leaders=frozenset({41}))
    assert lines(described(KIND, back, context)) == [
        "openat(-100, '/dev/pts/5', 258, 0) → new514", "dup3($new514, 514, 0)", "close($new514)",
        "eventfd2(0, 0) → later515", "dup3($later515, 515, 0)", "close($later515)",
        "ioctl(513, 0x402c542b, termios)", "ioctl(513, 0x5414, 80x24)",
        "fchown(514, 0, 0)", "fchmod(514, 400)",
        "41: ioctl(514, 0x5410, group 42)",
    ]  # fmt: skip
    (pair,) = ttyplan.pairs(back, context)
    assert (pair.index, pair.path, pair.fd, pair.queue) == (5, "/dev/ptmx", 513, QUEUE)
    leading = [op.describe().split("  #")[0] for op in ttyplan.lead(41, back, context)]
    assert leading[0] == "ioctl(514, 0x540e, 0)"
    assert leading[1].startswith("openat(-100, '/dev/tty'")
    assert not ttyplan.lead(42, back, context)


def test_members_of_a_session_without_its_terminal():
    session = Session(sid=41, pgrp=41, without=(43, 44))
    states = collect(view(3, MASTER), view(4), terminals={SLAVE: session})
    back, _ = through_images(KIND, states)
    assert back == states
    late = KIND.late(back, plan_context(1, 2, leaders=frozenset({41})))
    given_up = [one.task for one in late if 0x5422 in one.op.args]
    assert given_up == [43, 44]


def test_a_preview_leaves_the_queues_alone():
    states = collect(view(3, MASTER, typed=QUEUE), view(4), is_stopped=False)
    assert states[1].queue == TerminalQueue()


def test_what_forbids_more_comes_last():
    shut = ALIVE | {TIOCGEXCL: u32(1), TIOCGPTLCK: u32(1), TIOCGPKT: u32(1)}
    states = collect(view(3, MASTER, ioctls=shut), view(4, ioctls=shut))
    back, _ = through_images(KIND, states)
    assert back == states
    assert lines(described(KIND, back, plan_context(1, 2)))[-4:] == [
        "ioctl(513, 0x540c)", "ioctl(513, 0x5420, 1)", "ioctl(513, 0x40045431, 1)",
        "ioctl(514, 0x540c)",
    ]  # fmt: skip


def test_slaves_that_are_hung_up():
    gone = view(4, link="/dev/pts/5 (deleted)", ioctls=HungUp())
    back, _ = through_images(KIND, collect(gone))
    (pair,) = ttyplan.pairs(back, plan_context(1))
    assert (pair.index, pair.fd) == (5, 600)
    assert [op.call for op in pair.ops] == ["ioctl", "openat", "dup3", "close", "close"]
    states = collect(view(3, MASTER, poll=0x10), view(4, ioctls=HungUp()))
    back, _ = through_images(KIND, states)
    assert back == states
    (pair,) = ttyplan.pairs(back, plan_context(1, 2))
    assert "vhangup" in [op.call for op in pair.ops]
    assert "ioctl(513, 0x5441, 258)" in described(KIND, back, plan_context(1, 2))
    with pytest.raises(Refused):
        collect(view(3, CURRENT, ioctls=HungUp()))


def test_a_terminal_of_the_outside():
    with pytest.raises(Refused) as error:
        collect(view(0))
    assert "tty[8805:18]" in str(error.value)
    job, _ = through_images(KIND, collect(view(0), shell_job=True))
    assert job[1].tty.role is Role.SLAVE
    with pytest.raises(Refused):
        KIND.plan(job, plan_context(1))
    text = described(KIND, job, plan_context(1, terminal=9))
    assert text.startswith("openat(-100, '/proc/self/fd/9', 258, 0)")
    named, _ = through_images(KIND, collect(view(0), external=frozenset({"tty[8805:18]"})))
    assert named[1].tty.role is Role.OUTSIDE
    context = plan_context(1, inherit={"tty[8805:18]": 8})
    assert described(KIND, named, context).startswith("openat(-100, '/proc/self/fd/8', 258, 0)")


def test_stdio_of_a_container():
    states = collect(view(1), view(7), container=True)
    assert [s.stdio for s in states.values()] == [1, 1]
    back, _ = through_images(KIND, states)
    assert back == states
    context = plan_context(1, 2, stdio={0: 700, 1: 701, 2: 702}, new_container=True)
    context.holders = {1: [Holder(task=41, fd=1)], 2: [Holder(task=41, fd=7)]}
    assert lines(described(KIND, back, context)) == [
        "dup3(701, 513, 0)", "ioctl(513, 0x402c542b, termios)",
        "dup3(701, 514, 0)", "ioctl(514, 0x402c542b, termios)",
    ]  # fmt: skip
    with pytest.raises(Refused):
        collect(view(7), container=True)


def test_current_terminal_of_no_session():
    with pytest.raises(Refused):
        collect(view(3, CURRENT))


def test_bad_images():
    states = collect(view(3, MASTER, typed=QUEUE), view(4))
    for change in (
        lambda e: setattr(e.pty, "index", 1 << 25),
        lambda e: e.termios.ClearField("c_cc"),
        lambda e: setattr(e, "id", 77),
    ):
        _, images = through_images(KIND, states)
        entries = images.images["tty-info"]
        kind, raw, payload = entries[0]
        entry = kind.FromString(raw)
        change(entry)
        entries[0] = (kind, entry.SerializeToString(), payload)
        with pytest.raises(BadImage):
            KIND.decode(images)
    _, images = through_images(KIND, states)
    images.extra("terminal", "1", {"lines": ["zz"], "rest": ""})
    with pytest.raises(BadImage):
        KIND.decode(images)
