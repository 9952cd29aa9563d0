# SPDX-License-Identifier: Apache-2.0
"""Workloads that never stand still, dumped at random instants; see `motion.py`."""

import os
import random
import time

import pytest

from tests.functional.motion import Mover, counts
from torpor.engine.errors import Error
from torpor.engine.options import After, MemoryWay, TcpPolicy

pytestmark = [pytest.mark.functional, pytest.mark.root]
ROUNDS = int(os.environ.get("TORPOR_MOTION_ROUNDS", "1"))
"""Of each workload, in two ways; for a soak raise it, then all ways are taken."""
WAYS = ("runs_on", "moves", "pauses", "in_rounds", "by_command")
MODES = {
    "motion_tasks": (
        "waits", "orphans", "vforks", "spawns", "execs", "joins", "bomb", "sessions", "handler",
        "kills",
    ),
    "motion_data": (
        "pipe", "stream", "packet", "datagram", "fifo", "tcp", "udp", "flood_pipe",
        "flood_stream", "flood_tcp", "rights", "rights_stream", "clients_tcp", "clients_unix",
        "splices",
    ),
    "motion_signals": (
        "queues", "turns", "timers", "eventfds", "polled", "waited", "watched",
    ),
    "motion_sync": (
        "mutex", "mutex_pi", "mutex_shared", "mutex_pi_shared", "condition", "condition_shared",
        "semaphore", "barrier", "robust", "robust_pi", "rseq", "vectors", "sysv_semaphores",
        "sysv_queue", "sysv_segments", "mails",
    ),
    "motion_files": (
        "names", "nameless", "descriptors", "locks", "directories", "areas", "requests", "ring",
    ),
    "motion_odd": ("exits", "leaders", "sandboxes", "clones", "traced", "identities"),
    "motion_shell": ("jobs",),
}  # fmt: skip
ALL = [(program, mode) for program, modes in MODES.items() for mode in modes]
TELLS_OF_STOPS = {("motion_tasks", "kills"), ("motion_shell", "jobs")}
"""Job control is what they do: another's SIGSTOP and SIGCONT are among their own."""
IN_PASSING = {
    ("motion_odd", "clones"),
    ("motion_odd", "sandboxes"),
    ("motion_data", "clients_unix"),
}
"""Mostly in a state that cannot be taken; all tries of one dump may meet it."""


@pytest.fixture
def move(start):
    """Start a workload in motion: program, mode."""

    def begin(program, mode, **options):
        live = start(program, mode)
        live.await_file("ready")
        return Mover(live=live, chance=random.Random(f"{program} {mode}"), options=options)

    return begin


def ways(program, mode):
    if ROUNDS > 1:
        chosen = WAYS * ROUNDS
    else:
        at = ALL.index((program, mode))
        chosen = [("runs_on", "pauses")[at % 2], ("moves", "in_rounds")[at // 2 % 2]]
        chosen += ["by_command"] * (at % 20 == 0)
    return [way for way in chosen if way != "pauses" or (program, mode) not in TELLS_OF_STOPS]


@pytest.mark.parametrize(("program", "mode"), ALL, ids=[" ".join(one) for one in ALL])
def test_goes_on_whenever_it_is_dumped(move, program, mode):
    mover = move(program, mode, tcp=TcpPolicy.KEEP)
    for way in ways(program, mode):
        mover.round(way)
    permitted = 1 + sum(mover.done.values()) // 20 if (program, mode) in IN_PASSING else 0
    assert len(mover.refused) <= permitted, mover.refused
    assert mover.live.verdict() == "ok"


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
