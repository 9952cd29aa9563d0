# SPDX-License-Identifier: Apache-2.0
"""Trees that a dump has left stopped, with TCP connections: killed and restored, or continued."""

import os
import signal

import pytest

from tests.functional.catalogue.every import CASES
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]
BY_NAME = {case.name: case for case in CASES}
OUTSIDE = ("v4", "v6", "fin_wait1", "full", "closing", "syn_sent")
INSIDE = ("self_connected", "inside_full", "inside_half_shut")


def left_stopped(start, name):
    case = BY_NAME[f"sockets_tcp {name}"]
    live = start(case.program, *case.arguments)
    live.await_ready()
    live.mark()
    for pid in live.pids:
        live.at_rest[pid] = "T"
    return live, case


@pytest.mark.parametrize("name", OUTSIDE + INSIDE)
def test_killed_and_restored(start, name):
    live, case = left_stopped(start, name)
    live.dump(after=After.PAUSE, words=case.options)
    for pid in live.pids:
        os.kill(pid, signal.SIGKILL)
    live.reap(live.pids)
    live.at_rest = {}
    live.restore(words=case.restore_options)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("name", INSIDE)
def test_continued(start, name):
    live, case = left_stopped(start, name)
    live.dump(after=After.PAUSE, words=case.options)
    for pid in live.pids:
        os.kill(pid, signal.SIGCONT)
    assert live.verdict() == "ok"
