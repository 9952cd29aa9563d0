# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import trees
from torpor.engine.capture import PosixTimerCapture
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.proctexts import parse_timers
from torpor.engine.tasks import timers
from torpor.engine.tasks.timers import Itimer

TEXT = Path(__file__).resolve().parents[2] / "tests/fixtures/proc/timers-6.18-x86_64.txt"
NONE = Itimer(interval_s=0, interval_us=0, value_s=0, value_us=0)


def recorded():
    infos = parse_timers(TEXT.read_text())
    settings = [
        PosixTimerCapture(timer_id=i, setting=struct.pack("<4q", 1, 2, 3, 4 + i), overrun=i)
        for i in range(3)
    ]
    return timers.parse_posix(infos, settings, {25402: 41})


@given(st.lists(trees.itimers, min_size=3, max_size=3), trees.posix_timers())
def test_round_trip(plain, posix):
    entry = pb.task_timers_entry()
    timers.encode(plain, posix, entry)
    back = pb.task_timers_entry.FromString(entry.SerializeToString())
    assert timers.decode(back) == (tuple(plain), posix)


def test_proc_text_and_settings_together():
    by_id = {t.timer_id: t for t in recorded()}
    assert (by_id[2].clock, by_id[2].notify, by_id[2].thread) == (7, 4, 41)
    assert (by_id[1].notify, by_id[1].signal, by_id[1].thread) == (1, 0, None)
    assert (by_id[0].signal, by_id[0].value, by_id[0].value_ns) == (10, 0x1234, 4)
    assert by_id[2].overrun == 2


def test_plan():
    ops = timers.plan((NONE, NONE, NONE), recorded())
    assert [op.call for op in ops] == ["prctl", *["timer_create", "timer_settime"] * 3, "prctl"]
    event = ops[1].args[1].content
    assert struct.unpack_from("<QiiI", event) == (0, 34, 4, 41)
    assert len(event) == 64
    assert ops[1].args[2].content == struct.pack("<i", 2)
    assert "6.16" in ops[0].remedy
    assert timers.plan((NONE, NONE, NONE), ()) == []


def test_a_timer_that_has_just_fired():
    """setitimer with value 0 would disarm it."""
    fired = Itimer(interval_s=1, interval_us=5, value_s=0, value_us=0)
    (op,) = timers.plan((NONE, fired, NONE), ())
    assert op.describe() == "setitimer(1, <32 bytes>, 0)  # virt timer"
    assert struct.unpack("<4q", op.args[1].content) == (1, 5, 1, 5)


def test_an_overdue_posix_timer_fires_at_once():
    (late,) = [t for t in recorded() if t.timer_id == 0]
    late = type(late)(
        **{f: getattr(late, f) for f in late.__slots__} | {"value_s": 0, "value_ns": 0}
    )
    ops = timers.plan((NONE,) * 3, (late,))
    assert struct.unpack("<4q", ops[2].args[2].content) == (1, 2, 0, 1)


def test_a_periodic_timer_whose_signal_waits_expires_at_once():
    (first, *_) = recorded()
    ticking = replace(first, timer_id=5, interval_s=1)
    once = replace(first, timer_id=6, interval_s=0, interval_ns=0)
    info = struct.pack("<iiixxxxi", 34, 0, timers.SI_TIMER, 5).ljust(128, b"\0")
    assert timers.of_periodic(info, (ticking, once)) == 5
    assert timers.of_periodic(info.replace(b"\5", b"\6"), (ticking, once)) is None
    assert timers.of_periodic(info.replace(b"\xfe", b"\xff"), (ticking, once)) is None
    assert timers.of_periodic(b"short", (ticking,)) is None
    ops = timers.plan((NONE,) * 3, (ticking,), {5})
    assert timers.ITIMERSPEC.unpack(ops[2].args[2].content) == (1, 2, 0, 1)
