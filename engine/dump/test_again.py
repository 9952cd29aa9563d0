# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from torpor.engine.dump import again
from torpor.engine.errors import Findings, Refused, Vanished
from torpor.engine.kind import Limit, refuse
from torpor.engine.options import DumpOptions, no_progress

HERE = [DumpOptions(pid=os.getpid(), images_dir=Path("/nowhere"))]
GONE = [DumpOptions(pid=1 << 22, images_dir=Path("/nowhere"))]
PASSING = refuse(Limit(case="a", what="waits", remedy="r", is_passing=True), "task 1")
LASTING = refuse(Limit(case="b", what="is", remedy="r"), "task 1")


@pytest.fixture(autouse=True)
def breaks(monkeypatch):
    monkeypatch.setattr(again, "BREAKS_S", (0.0, 0.0))


def failing(*errors, final=False):
    left = list(errors)

    def once(no_way_back):
        if final:
            no_way_back()
        if left:
            raise left.pop(0)
        return "done"

    return once, left


@pytest.mark.parametrize("error", [PASSING, Findings((PASSING, PASSING)), Vanished("x")])
def test_what_passes_is_waited_for(error):
    once, _ = failing(error, error)
    told = []
    assert again.until_clear(once, HERE, told.append) == "done"
    assert [(one.phase, one.text) for one in told] == [("again", str(error))] * 2


@pytest.mark.parametrize(
    ("error", "trees"),
    [
        (LASTING, HERE),
        (Findings((PASSING, LASTING)), HERE),
        (Vanished("is gone"), GONE),
    ],
)
def test_what_lasts_is_told_at_once(error, trees):
    once, left = failing(error, error)
    with pytest.raises((Refused, Vanished)) as caught:
        again.until_clear(once, trees, no_progress)
    assert caught.value is error
    assert len(left) == 1


def test_it_is_given_up_after_some_tries():
    once, left = failing(*[PASSING] * 9)
    with pytest.raises(Refused):
        again.until_clear(once, HERE, no_progress)
    assert len(left) == 6


def test_what_is_another_each_time_is_tried_more_often():
    limit = Limit(case="a", what="waits", remedy="r", is_passing=True)
    once, left = failing(*[refuse(limit, f"task {number}") for number in range(30)])
    with pytest.raises(Refused):
        again.until_clear(once, HERE, no_progress)
    assert len(left) == 30 - again.MOST_TRIES


def test_there_is_no_way_back_from_a_commitment():
    once, left = failing(PASSING, PASSING, final=True)
    with pytest.raises(Refused):
        again.until_clear(once, HERE, no_progress)
    assert len(left) == 1
