# SPDX-License-Identifier: Apache-2.0
"""How operations are told."""

import pytest

from torpor.engine.program.ops import Data, Expect, Made, Op, Slot


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Op(call="getpid"), "getpid()"),
        (Op(call="close", args=(Slot("x"),)), "close($x)"),
        (Op(call="mmap", args=(0x400000, 4096, 3, 0x22, (1 << 64) - 1, 0)),
         "mmap(0x400000, 0x1000, 3, 34, -1, 0)"),
        (Op(call="chdir", args=(Data.path("/a b"),)), "chdir('/a b')"),
        (Op(call="chdir", args=(Data.path(b"/\xff\n"),)), "chdir('/\ufffd\\n')"),
        (Op(call="chdir", args=(Data.path("/\udcff"),)), "chdir('/\ufffd')"),
        (Op(call="read", args=(3, Data.room(16), 16)), "read(3, buffer[16], 16)"),
        (Op(call="write", args=(3, Data(b"xyz"), 3)), "write(3, <3 bytes>, 3)"),
        (Op(call="dup", args=(3,), yields=Slot("d"), subject="fd 3"), "dup(3) → d  # fd 3"),
        (Op(call="dup", args=(3,), note="kept"), "dup(3)  # kept"),
        (Op(call="dup", args=(3,), subject="fd 3", note="kept"), "dup(3)  # fd 3: kept"),
    ],
)  # fmt: skip
def test_describe(op, text):
    assert op.describe() == text


def test_paths_keep_their_bytes():
    assert Data.path("/\udcff").content == b"/\xff\0"
    assert Data.path(b"/\xff").content == b"/\xff\0"


def named(call, *, undo="", settles=False, expect=Expect.OK, into="", subject="a"):
    return Op(
        call=call, subject=subject, expect=expect, settles=settles,
        yields=Slot(into) if into else None, undo=(Op(call=undo),) if undo else (),
    )  # fmt: skip


def undone(*done, **values):
    made = Made()
    made.note(done, {name: value & (1 << 64) - 1 for name, value in values.items()})
    return [[op.call for op in ops] for ops, _ in made.undo()]


def test_what_was_made_last_is_undone_first():
    done = named("mkdirat", undo="rmdir"), named("write"), named("linkat", undo="unlinkat")
    assert undone(*done) == [["unlinkat"], ["rmdir"]]


def test_what_was_settled_is_not_undone():
    one = named("linkat", undo="unlinkat"), named("unlinkat", settles=True)
    other = named("mkdirat", undo="rmdir", subject="b")
    assert undone(*one, other) == [["rmdir"]]
    assert undone(*one, named("linkat", undo="again")) == [["again"]]


def test_what_may_have_failed_is_undone_only_if_its_slot_says_no():
    attempt = named("mkdirat", undo="rmdir", expect=Expect.ANY, into="x")
    assert undone(attempt, x=0) == [["rmdir"]]
    assert undone(attempt, x=-17) == []
    assert undone(named("mkdirat", undo="rmdir", expect=Expect.ANY)) == []
