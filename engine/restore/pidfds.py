# SPDX-License-Identifier: Apache-2.0
"""Pidfds of tasks that have ended, which no list of operations can make."""

from collections.abc import Mapping

from torpor.engine import native
from torpor.engine.errors import KernelError
from torpor.engine.files import pidfd
from torpor.engine.files.common import created
from torpor.engine.files.pidfd import Pidfd
from torpor.engine.kind import FileId
from torpor.engine.restore import spawn
from torpor.engine.restore.spawn import HELD_SIGNALS, Living
from torpor.engine.restore.work import Work


def of_ended(work: Work, root: Living) -> None:
    """By a short-lived child of the root, which ends as the task had ended."""
    for states in pidfd.reaped(_states(work)).values():
        helper = spawn.fork(
            root.pid, root.syscall_address, root.arena.scratch, 0, spawn.FORK_FLAGS, work.choose
        )
        native.set_sigmask(helper, HELD_SIGNALS)
        with spawn.passing(root, helper, next(iter(states.values())).status):
            number = root.arena.call(helper, "getpid")
            for file_id, state in states.items():
                fd = _call(root, "pidfd_open", number, state.flags)
                _call(root, "dup3", fd, work.plan.context.fd(file_id), 0)
                _call(root, "close", fd)


def _states(work: Work) -> Mapping[FileId, Pidfd]:
    states = (found for kind, found in work.snapshot.states if kind is pidfd.KIND)
    return created(next(states, {}), work.plan.context)


def _call(root: Living, name: str, *args: int) -> int:
    result = root.arena.call(root.pid, name, *args)
    if result < 0:
        raise KernelError(f"{name} failed", errno=-result, subject="pidfd of an ended task")
    return result
