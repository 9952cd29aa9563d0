# SPDX-License-Identifier: Apache-2.0
"""Workloads that never stand still, dumped at random instants; see `motion.py`."""

import random
import time

import pytest

from tests.functional.motion import Mover, counts
from torpor.engine.errors import Error
from torpor.engine.options import After, MemoryWay

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.fixture
def move(start):
    """Start a workload in motion: program, mode."""

    def begin(program, mode, **options):
        live = start(program, mode)
        live.await_file("ready")
        return Mover(live=live, chance=random.Random(f"{program} {mode}"), options=options)

    return begin


def test_a_parent_that_waits_in_vfork_comes_to_a_stop(move):
    mover = move("motion_tasks", "slow_vforks")
    for way in ("runs_on", "runs_on", "moves", "in_rounds"):
        mover.round(way)
    assert not mover.refused
    assert mover.live.verdict() == "ok"


def test_a_child_of_vfork_that_goes_on_for_long_is_refused_and_unharmed(move, monkeypatch):
    for early in ("vforks", "spaces"):  # what would refuse it before
        monkeypatch.setattr(f"torpor.engine.dump.sharing.{early}", lambda _: [])
    monkeypatch.setattr("torpor.engine.kernel.vfork.LONGEST_S", 0.1)
    mover = move("motion_tasks", "long_vforks", stop_timeout_s=0.2)
    with pytest.raises(Error, match="did not finish in time"):
        mover.dump(After.CONTINUE, MemoryWay.FROZEN)
    before = counts(mover.live)
    time.sleep(0.2)
    mover.goes_on()
    assert all(now > was for now, was in zip(counts(mover.live), before, strict=True))
    assert mover.live.verdict() == "ok"
