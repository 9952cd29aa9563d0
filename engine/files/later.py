# SPDX-License-Identifier: Apache-2.0
"""Descriptors that can only be made when their task exists: pidfds, files of /proc/PID.

The root, which creates everything before it forks, puts an eventfd in their place. Late, every
task that holds one opens it itself and puts it at its numbers; close-on-exec stays as it is.
Descriptions shared between tasks become one description in each.
"""

from torpor.engine.files.common import F
from torpor.engine.kind import FileId, LateOp, PlanContext
from torpor.engine.program.ops import Expect, Op, Slot, place


def placeholder(fd: int, what: str) -> list[Op]:
    """Something at service number ``fd``."""
    made = Op(call="eventfd2", args=(0, 0), subject=what, note="until its task is there",
              yields=Slot(f"later{fd}"))  # fmt: skip
    return place(made, fd)


def reopen(file_id: FileId, create: Op, context: PlanContext, pos: int = 0) -> list[LateOp]:
    """Run ``create`` in each holding task and put the result at the numbers it has there."""
    tasks: dict[int, list[int]] = {}
    for holder in context.holders.get(file_id, ()):
        tasks.setdefault(holder.task, []).append(holder.fd)
    if len(tasks) > 1:
        context.warn(f"{create.subject}: {len(tasks)} tasks shared it, each gets its own")
    late: list[LateOp] = []
    for task, numbers in tasks.items():
        late += [LateOp(task=task, op=op) for op in _in_task(file_id, create, numbers, pos)]
    return late


def _in_task(file_id: FileId, create: Op, numbers: list[int], pos: int) -> list[Op]:
    made, flags = Slot(f"late{file_id}"), Slot(f"flags{file_id}")
    what = create.subject
    ops = [Op(call=create.call, args=create.args, subject=what, note=create.note,
              remedy=create.remedy, yields=made)]  # fmt: skip
    if pos:
        ops.append(Op(call="lseek", args=(made, pos, 0), subject=what))
    for fd in numbers:
        ops += [
            Op(call="fcntl", args=(fd, F.GETFD), subject=what, yields=flags),
            Op(call="dup3", args=(made, fd, 0), subject=what, expect=Expect.EQUAL, want=fd),
            Op(call="fcntl", args=(fd, F.SETFD, flags), subject=what),
        ]
    ops.append(Op(call="close", args=(made,), subject=what))
    return ops
