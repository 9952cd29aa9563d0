# SPDX-License-Identifier: Apache-2.0
"""A kind's round without the engine: a child makes sockets and is looked at by live views;
its states go through image entries to a plan, and that runs in another child.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.engine.errors import Refused
from torpor.engine.kernel.fdview import open_views
from torpor.engine.kernel.recorded import RecordedImages
from torpor.engine.kind import DumpContext, FileId, FileKind, Holder, PlanContext
from torpor.engine.options import TcpPolicy
from torpor.engine.program.ops import Op
from torpor.engine.sockets import inet, inet_state

from .run_ops import Runner, run_in_child

SERVICE_FD = 700


@dataclass(slots=True, kw_only=True)
class Round:
    """What came of a look at a child."""

    states: Mapping[FileId, Any]
    decoded: Mapping[FileId, Any]
    refusals: Sequence[Refused]
    warnings: list[str] = field(default_factory=list)
    ops: Sequence[Op] = ()
    numbers: Mapping[FileId, int] = field(default_factory=dict)


def look(
    kind: FileKind[Any],
    prepare: Callable[[], Sequence[int]],
    *,
    tcp: TcpPolicy = TcpPolicy.CLOSE,
    after_ready: Callable[[], None] = lambda: None,
    plan: Mapping[str, Any] | None = None,
) -> Round:
    """Run ``prepare`` in a child (it returns the descriptors to take) and look at them.

    The child is killed before the plan is made, so its names and ports are free again.
    """
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = prepare()
            os.write(tell, bytes(kept))
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        wanted = list(os.read(ready, 4096))
        assert wanted, "the child failed"
        after_ready()
        return _look(kind, pid, wanted, tcp, plan or {})
    finally:
        os.close(ready)
        try:
            os.kill(pid, signal.SIGKILL)
        finally:
            os.waitpid(pid, 0)


def _look(
    kind: FileKind[Any], pid: int, wanted: Sequence[int], tcp: TcpPolicy, plan: Mapping[str, Any]
) -> Round:
    warnings: list[str] = []
    with open_views([pid]) as views:
        ids = {FileId(i + 1): fd for i, fd in enumerate(wanted)}
        held = {i: [Holder(task=pid, fd=fd)] for i, fd in ids.items()}
        context = DumpContext(
            tcp=tcp, container=False, ghost_limit_bytes=1 << 20,
            views={i: views.get(pid, fd) for i, fd in ids.items()},
            holders=held, warn=warnings.append, tasks={pid: pid}, owners={pid: pid},
        )  # fmt: skip
        for view in context.views.values():
            assert kind.matches(view), view.subject
        states = {i: kind.collect(view, context) for i, view in context.views.items()}
        refusals = list(kind.check(states, context))
        if kind is inet.KIND:
            for file_id, end in inet_state.before_kill(states).items():
                views.get(pid, ids[file_id]).free_port(end)
    images = RecordedImages()
    kind.encode(states, images)
    decoded = kind.decode(images)
    ops: Sequence[Op] = ()
    if not refusals:
        planning = PlanContext(
            fds={i: SERVICE_FD + i for i in ids}, holders=held, spare_fd=SERVICE_FD + 500,
            warn=warnings.append, **plan,
        )  # fmt: skip
        ops = kind.plan(decoded, planning)
    return Round(
        states=states, decoded=decoded, refusals=refusals, warnings=warnings, ops=ops, numbers=ids
    )


def replay(done: Round, check: Callable[[], None]) -> None:
    """Run the plan in a child, put all at the old numbers and call ``check`` there."""
    assert not done.refusals, done.refusals

    def placed(_: Runner) -> None:
        for file_id, fd in done.numbers.items():
            os.dup2(SERVICE_FD + file_id, fd)
            os.close(SERVICE_FD + file_id)
        left = [int(n) for n in os.listdir("/proc/self/fd") if int(n) >= SERVICE_FD]
        assert not left, left
        check()

    run_in_child(done.ops, placed)
