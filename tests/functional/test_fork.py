# SPDX-License-Identifier: Apache-2.0
"""Copies of tasks by fork: what they hold, what they have of their memory, and how they go."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from torpor.engine import native
from torpor.engine.errors import Denied
from torpor.engine.kernel import fork, proc, ptrace
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import parse_maps

pytestmark = [pytest.mark.functional, pytest.mark.root]


@contextmanager
def copied(live):
    """A copy of a workload that runs on."""
    space = AddressSpace.find(live.pid, parse_maps(proc.read_text(live.pid, "maps")))
    assert fork.can_fork(space)
    stopped = ptrace.stop_process(live.pid)
    try:
        stack = stack_of(live.pid)
        made = fork.copy(live.pid, space)
        assert stack_of(made.pid) == stack == stack_of(live.pid)
    finally:
        ptrace.release_all(stopped)
    try:
        fork.leave_files(made)
        assert stack_of(made.pid) == stack
        yield made
    finally:
        fork.end(made)
        fork.forget(made.parent, made.pid, made.ns_pid, made.options)
        assert not Path(f"/proc/{made.pid}").exists()


def stack_of(pid):
    """All of it: also where calls were prepared."""
    (stack,) = (v for v in parse_maps(proc.read_text(pid, "maps")) if v.name == "[stack]")
    return stack.start, native.read_memory(pid, stack.start, stack.size)


def test_a_copy_holds_nothing_and_does_not_run(start):
    live = start("core_threads")
    live.await_ready()
    with copied(live) as made:
        assert not list(Path(f"/proc/{made.pid}/fd").iterdir())
        stat = proc.read_text(made.pid, "stat").rpartition(")")[2].split()
        assert stat[0] == "t"
        assert stat[35] == "0", "an exit signal"
        assert proc.parse_status(proc.read_text(made.pid, "status")).ns_pid[-1] == made.ns_pid
    assert live.verdict() == "ok"


@pytest.mark.parametrize("denied", [False, True])
def test_a_copy_is_the_first_to_die(start, monkeypatch, denied):
    def refuse(*_):
        raise Denied("not permitted")

    live = start("core_memory")
    live.await_ready()
    with copied(live) as made:
        if denied:
            monkeypatch.setattr(proc, "write_text", refuse)
        before = stack_of(made.pid)
        fork.offer(made)
        assert proc.read_text(made.pid, "oom_score_adj") == "1000\n"
        assert proc.read_text(live.pid, "oom_score_adj") != "1000\n"
        assert stack_of(made.pid) == before
        monkeypatch.undo()
    assert live.verdict() == "ok"
