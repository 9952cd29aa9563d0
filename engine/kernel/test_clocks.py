# SPDX-License-Identifier: Apache-2.0
import time

from torpor.engine.kernel import clocks, proc
from torpor.engine.kernel.clocks import SECOND_NS, Clocks


def test_text_has_whole_seconds_and_what_is_above_them():
    assert (
        clocks.as_text(Clocks(3 * SECOND_NS + 7, -1)) == b"monotonic 3 7\nboottime -1 999999999\n"
    )


def test_offsets_are_read_as_they_are_told(monkeypatch):
    text = "monotonic          -4 815072187\nboottime            7         0\n"
    monkeypatch.setattr(proc, "read_text", lambda *_: text)
    assert clocks.offsets(41) == Clocks(-4 * SECOND_NS + 815072187, 7 * SECOND_NS)


def test_a_kernel_without_time_namespaces():
    assert clocks.offsets("not a task") == clocks.NONE


def test_now_is_what_a_task_reads():
    before = time.monotonic_ns()
    told = clocks.now()
    assert before <= told.monotonic_ns <= time.monotonic_ns()


def test_offsets_that_lead_back():
    wanted = Clocks(5 * SECOND_NS, 6 * SECOND_NS)
    offset, ours = clocks.to_go_on(wanted), clocks.offsets("self")
    by = Clocks(offset.monotonic_ns - ours.monotonic_ns, offset.boottime_ns - ours.boottime_ns)
    then = clocks.now(by)
    assert 0 <= then.monotonic_ns - wanted.monotonic_ns < 60 * SECOND_NS
    assert 0 <= then.boottime_ns - wanted.boottime_ns < 60 * SECOND_NS
