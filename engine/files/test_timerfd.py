# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import Bug
from torpor.engine.files.timerfd import KIND, SECOND_NS, Timerfd
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def view(clock=1, ticks=0, flags="00", value=(0, 0), interval=(0, 0)):
    return RecordedFd(
        link="anon_inode:[timerfd]", flags=2,
        info=(f"clockid: {clock}", f"ticks: {ticks}", f"settime flags: {flags}",
              f"it_value: {value}", f"it_interval: {interval}"),
    )  # fmt: skip


def settime(state):
    text = described(KIND, {FileId(1): state}, plan_context(1))
    return [
        line.split("  #")[0].partition("(513, ")[2] for line in text.splitlines()
        if line.startswith(("timerfd_settime", "ioctl"))
    ]  # fmt: skip


def test_collect():
    state = KIND.collect(view(ticks=3, value=(1, 5), interval=(0, 7)), dump_context())
    assert state == Timerfd(
        clock=1, left_ns=SECOND_NS + 5, interval_ns=7, ticks=3, settime_flags=0, flags=2
    )
    with pytest.raises(Bug):
        KIND.collect(RecordedFd(link="anon_inode:[timerfd]", info=("clockid: 1",)), dump_context())


def test_images():
    context = dump_context(realtime_ns=100 * SECOND_NS)
    states = {
        FileId(1): KIND.collect(view(ticks=3, value=(1, 5), interval=(0, 7)), context),
        FileId(2): KIND.collect(view(clock=0, flags="03", value=(9, 1)), context),
    }
    assert states[FileId(2)].deadline_ns == 109 * SECOND_NS + 1
    back, _ = through_images(KIND, states)
    assert back == states


def test_time_left_goes_on():
    state = KIND.collect(view(value=(1, 5), interval=(0, 7)), dump_context())
    assert settime(state) == ["0, in 1000000005 ns, every 7 ns, 0)"]


def test_a_periodic_timer_that_was_not_read_is_armed():
    state = KIND.collect(view(ticks=2, interval=(5, 0)), dump_context())
    assert settime(state) == [
        "0, in 5000000000 ns, every 5000000000 ns, 0)", "0x40085400, 2 ticks)",
    ]  # fmt: skip


def test_a_timer_that_is_off_stays_off():
    assert settime(KIND.collect(view(), dump_context())) == []


def test_wall_clock_deadlines_are_kept():
    context = dump_context(realtime_ns=100 * SECOND_NS)
    state = KIND.collect(view(clock=0, flags="03", value=(9, 1)), context)
    assert settime(state) == ["3, at 109000000001 ns, every 0 ns, 0)"]


def test_warning_when_the_wall_clock_is_not_known():
    warnings = []
    KIND.collect(view(clock=0, flags="03", value=(9, 1)), dump_context(warn=warnings.append))
    assert len(warnings) == 1
