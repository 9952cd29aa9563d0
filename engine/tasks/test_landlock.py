# SPDX-License-Identifier: Apache-2.0
"""A landlock domain is seen by what its task may not do."""

import pytest

from torpor.engine.kernel.proc import parse_status
from torpor.engine.tasks import landlock


def status(caps=1 << 19, pids="41"):
    return parse_status(f"Name:\tx\nCapEff:\t{caps:016x}\nNSpid:\t{pids}\n")


def test_it_is_asked_about_us_alone():
    assert landlock.question(7) == ("kcmp", (7, 7, 3, 0, 0))


def test_a_task_that_may_not_look_at_us():
    found = landlock.refusal(-1, status(), 1, "task 41")
    assert (found.what, found.subject) == ("a landlock domain", "task 41")


@pytest.mark.parametrize(
    ("result", "told"),
    [(0, status()), (-3, status()), (-1, status(caps=0)), (-1, status(pids="41\t1"))],
)
def test_other_reasons_for_the_same_answer(result, told):
    assert landlock.refusal(result, told, 1, "task 41") is None
