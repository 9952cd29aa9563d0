# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from torpor.engine.tasks import attributes
from torpor.engine.tasks.attributes import RLIM_INFINITY, Scheduling

PLAIN = Scheduling(policy=0, priority=0, nice=0)


def test_limits_set_only_what_differs():
    warnings = []
    wanted = [(1, 2), (5, 6), (3, 9), (4, 9)]
    have = [(1, 2), (5, 7), (3, 8), (1, 8)]
    ops = attributes.plan_rlimits(wanted, have, warnings.append, "task 41")
    assert [op.describe() for op in ops] == [
        "prlimit64(0, 1, <16 bytes>, 0)  # RLIMIT_FSIZE",
        "prlimit64(0, 3, <16 bytes>, 0)  # RLIMIT_STACK",
    ]
    assert warnings == [
        "task 41: hard limit RLIMIT_DATA stays 8 instead of 9",
        "task 41: hard limit RLIMIT_STACK stays 8 instead of 9",
    ]


def test_unlimited_is_a_word():
    warnings = []
    attributes.plan_rlimits([(0, RLIM_INFINITY)], [(0, 5)], warnings.append, "t")
    assert warnings == ["t: hard limit RLIMIT_CPU stays 5 instead of unlimited"]


@pytest.mark.parametrize(
    ("wanted", "calls"),
    [
        (PLAIN, []),
        (replace(PLAIN, nice=5), ["setpriority(0, 0, 5)  # nice value"]),
        (replace(PLAIN, policy=1, priority=3),
         ["sched_setscheduler(0, 1, <4 bytes>)  # scheduling policy"]),
        (replace(PLAIN, affinity=b"\1" + bytes(7)),
         ["sched_setaffinity(0, 8, <8 bytes>)  # affinity"]),
        (replace(PLAIN, ioprio=0x4006), ["ioprio_set(1, 0, 0x4006)  # io priority"]),
        (replace(PLAIN, timerslack_ns=70_000),
         ["prctl(29, 0x11170, 0, 0, 0)  # timer slack"]),
        (replace(PLAIN, timerslack_ns=0), []),
    ],
)  # fmt: skip
def test_scheduling(wanted, calls):
    assert [op.describe() for op in attributes.plan_scheduling(wanted, PLAIN)] == calls


def test_prctl():
    warnings = []

    def planned(**more):
        values = {"dumpable": 1, "subreaper": False, "thp_disabled": False} | more
        ops = attributes.plan_prctl(**values, warn=warnings.append, subject="task 41")
        return [(op.args[:2], op.subject) for op in ops]

    assert planned() == [((4, 1), "dumpable")]
    assert planned(dumpable=0, subreaper=True, thp_disabled=True) == [
        ((4, 0), "dumpable"), ((36, 1), "child subreaper"), ((41, 1), "transparent huge pages off"),
    ]  # fmt: skip
    assert warnings == []
    assert planned(dumpable=2) == [((4, 0), "dumpable")]
    assert warnings == ["task 41: dumpable 2 comes back as 0"]


def test_names_and_parent_death():
    (op,) = attributes.plan_name(b"redis-\xff")
    assert op.args[1].content == b"redis-\xff\0"
    assert op.note == "redis-\ufffd"
    assert attributes.plan_pdeathsig(0) == []
    assert attributes.plan_pdeathsig(15)[0].args[:2] == (1, 15)


def test_deadline_replaces_policy():
    raw = attributes.SCHED_ATTR.pack(48, 6, 1, 0, 0, 10, 20, 30)
    assert attributes.deadline_of(raw) == (1, 10, 20, 30)
    assert attributes.deadline_of(b"") is None
    wanted = replace(PLAIN, policy=6, deadline=(1, 10, 20, 30))
    (op,) = attributes.plan_scheduling(wanted, PLAIN)
    assert (op.call, op.args[1].content) == ("sched_setattr", raw)


def test_what_the_restorer_has_otherwise_is_set_back():
    narrow = replace(PLAIN, affinity=b"\1" + bytes(7), ioprio=0x4000, timerslack_ns=1)
    ops = attributes.plan_scheduling(PLAIN, narrow)
    assert [op.call for op in ops] == ["sched_setaffinity", "prctl", "ioprio_set"]
    assert set(ops[0].args[2].content) == {0xFF}


def test_niceness_of_a_session():
    assert attributes.parse_autogroup("/autogroup-66 nice -5\n") == -5
    assert attributes.parse_autogroup("") == 0
