# SPDX-License-Identifier: Apache-2.0
"""Workloads of tasks and memory: dumped, ended, restored, twice; and dumped while they run on.

After each step the kernel must tell the same of every task as before (`describe`); at the end the
workload checks itself.
"""

import pytest

from tests.functional.conftest import WORKLOADS
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]

CALLS = (
    "read", "write", "poll", "poll_timed", "ppoll", "select", "epoll_wait", "epoll_wait_timed",
    "futex", "futex_timed", "nanosleep", "nanosleep_absolute", "recv", "recv_timed", "accept",
    "wait4", "sigwaitinfo", "sigtimedwait", "sigsuspend", "read_eventfd",
)  # fmt: skip
PLAIN = (
    "core_memory", "core_cow", "core_threads", "core_signals", "core_tree", "core_identity",
    "core_stopped", "core_sysv", "core_settings",
)  # fmt: skip
AS_ROOT = ("core_seccomp", "core_user")
NEVER_AT_REST = ("core_busy", "core_threaded", "core_shared")
QUIET = [(name,) for name in (*PLAIN, *AS_ROOT)] + [("core_blocked", call) for call in CALLS]


def test_every_blocked_call_is_listed():
    source = (WORKLOADS / "core_blocked.c").read_text()
    assert [f'{{ "{call}"' in source for call in CALLS] == [True] * source.count('\t{ "')


@pytest.mark.parametrize("case", QUIET, ids=" ".join)
def test_twice_and_back(start, case):
    live = start(*case)
    live.await_ready()
    before = live.look()
    live.dump("first")
    live.restore("first")
    live.same_as(before)
    live.dump("second")
    live.restore("second")
    live.same_as(before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", QUIET, ids=" ".join)
def test_runs_on_after_a_dump(start, case):
    live = start(*case)
    live.await_ready()
    before = live.look()
    live.dump("first", After.CONTINUE)
    live.same_as(before)
    live.dump("second", After.CONTINUE)
    live.same_as(before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("after", list(After), ids=lambda after: after.value)
@pytest.mark.parametrize("name", NEVER_AT_REST)
def test_busy(start, name, after, attempt):
    live = start(name)
    live.await_file("ready")
    for number in range(2):
        live.dump(f"images-{number}", after)
        if after is After.STOP:
            live.restore(f"images-{number}")
        live.unharmed()
    assert live.verdict() == "ok"
