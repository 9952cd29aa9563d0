# SPDX-License-Identifier: Apache-2.0
"""What a dump tells of its pause: every step in it, none before or after, and all of its time."""

import pytest

from torpor.engine.dump import report
from torpor.engine.dump.report import REST, Phases


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    one = Clock()
    monkeypatch.setattr(report, "time", one)
    return one


def spend(clock, phase, name, seconds):
    with phase(name):
        clock.now += seconds


def test_the_steps_of_the_pause_add_up_to_it(clock):
    phase = Phases(lambda progress: None, 60)
    spend(clock, phase, "look", 2)
    phase.pause_begins()
    clock.now += 1
    phase.all_stand()
    spend(clock, phase, "threads", 3)
    clock.now += 0.5
    spend(clock, phase, "threads", 4)
    frozen_s = phase.pause_ends()
    spend(clock, phase, "write", 5)
    assert frozen_s == 8.5
    assert phase.pause == {"stop": 1, "threads": 7, REST: 0.5}
    assert phase.seconds == {"look": 2, "stop": 1, "threads": 7, "write": 5}


def test_a_step_that_fails_is_told_of_too(clock):
    phase = Phases(lambda progress: None, 60)
    phase.pause_begins()

    def fails():
        clock.now += 1
        raise OSError("no")

    with pytest.raises(OSError, match="no"), phase("memory"):
        fails()
    assert phase.pause == {"memory": 1}
