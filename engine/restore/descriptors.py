# SPDX-License-Identifier: Apache-2.0
"""How descriptors come back: numbers for the creating root, programs for every task.

Service numbers start above every number that any task uses. The root creates each description
once at its service number, children inherit them, and each task puts what it holds at its own
numbers and closes the service range (engine/kind.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.files import table
from torpor.engine.files.grouping import Placed
from torpor.engine.images.failures import readable
from torpor.engine.kind import PlanContext
from torpor.engine.kinds import in_order_of_plans
from torpor.engine.memory.areas import Backing
from torpor.engine.program.ops import Expect, Op, Program
from torpor.engine.restore import build
from torpor.engine.restore.load import Snapshot, directories_of
from torpor.engine.tasks.model import Tree

RLIMIT_NOFILE = 7
RESERVED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What the seed has at the start: ``stdio`` and ``inherit`` are numbers that it has open.

    ``limit`` is the number of descriptors that it may have, None when that is not known.
    """

    stdio: Sequence[int] = ()
    inherit: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None
    uid: int = 0
    terminal: int | None = None
    """That of ``stdio`` which takes the place of the tree's terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """The plan of all descriptors of a tree."""

    base: int
    highest: int
    """First number that is never used, neither by a task nor on the way."""
    context: PlanContext
    create: Program
    late: Mapping[int, Sequence[Op]]
    segments: Mapping[int, int]
    """Shared anonymous memory → service number through which every task maps it."""
    last: Mapping[int, Sequence[Op]]
    """When all threads are there: file locks, for closing any descriptor of a file drops a task's
    locks on it, and owners of signals."""


def plan(  # noqa: PLR0913 - what the kinds may know
    snapshot: Snapshot,
    seed: Seed,
    *,
    path_map: Mapping[str, str],
    address_map: Mapping[str, str],
    new_container: bool,
    warn: Callable[[str], None],
    tcp_repair: bool = False,
    tcp_close: bool = False,
    check_files: bool = False,
) -> Descriptors:
    """Number everything and let the kinds plan."""
    stdio, inherit = seed.stdio, seed.inherit
    holders = table.holders_of(snapshot.tables)
    ids = sorted({*holders, *directories_of(snapshot.tree), *snapshot.mapped})
    segments = shared_segments(snapshot.tree)
    needed = len(stdio) + len(inherit) + len(ids) + len(segments) + RESERVED
    least = max(64, max((*stdio, *inherit.values(), 2)) + 1)
    base = table.service_base(snapshot.tables, least, needed=needed, limit=seed.limit)
    moved = base + len(stdio) + len(inherit)
    context = PlanContext(
        fds={number: moved + i for i, number in enumerate(ids)},
        holders=holders,
        spare_fd=moved + len(ids) + len(segments),
        stdio={fd: base + i for i, fd in enumerate(stdio)},
        inherit={name: base + len(stdio) + i for i, name in enumerate(inherit)},
        path_map=dict(path_map),
        address_map=dict(address_map),
        new_container=new_container,
        check_files=check_files,
        uid=seed.uid,
        root=snapshot.tree.root.pid,
        tcp_repair=tcp_repair,
        tcp_close=tcp_close,
        terminal=None if seed.terminal is None else base + stdio.index(seed.terminal),
        leaders=frozenset(t.pid for t in snapshot.tree.tasks if t.pid == t.sid and not t.zombie),
        warn=warn,
    )
    program = Program("files")
    for fd, place in (*context.stdio.items(), *((inherit[n], context.inherit[n]) for n in inherit)):
        program.add(
            Op(
                call="dup3",
                args=(fd, place, 0),
                subject=f"fd {fd}",
                note="kept",
                expect=Expect.EQUAL,
                want=place,
            )
        )
    program.add(Op(call="close_range", args=(0, base - 1, 0), subject="descriptors of the seed"))
    late: dict[int, list[Op]] = {}
    last: dict[int, list[Op]] = {}
    for one in table.late_locks(snapshot.locks):
        last.setdefault(one.task, []).append(one.op)
    for kind, states in sorted(snapshot.states, key=lambda one: in_order_of_plans(one[0])):
        with readable(f"images of {kind.name}s"):
            program.extend(kind.plan(states, context))
    for kind, states in snapshot.states:
        with readable(f"images of {kind.name}s"):
            for one in kind.late(states, context):
                (last if one.last else late).setdefault(one.task, []).append(one.op)
    for task in snapshot.tree.tasks:
        ops = build.removed_directories(task, context.fds)
        if ops:
            late.setdefault(task.pid, []).extend(ops)
    used = max((h.fd for held in holders.values() for h in held), default=0)
    return Descriptors(
        base=base, highest=max(used + 1, context.spare_fd + RESERVED), context=context,
        create=program, late=late, last=last,
        segments={number: moved + len(ids) + i for i, number in enumerate(segments)},
    )  # fmt: skip


def shared_segments(tree: Tree) -> dict[int, int]:
    """Ids of shared anonymous memory, and how many bytes the tasks can see of each."""
    found: dict[int, int] = {}
    for task in tree.tasks:
        for area in task.memory.areas if task.memory else ():
            if area.backing is Backing.SHARED:
                end = area.offset + area.size_bytes
                found[area.shared_id] = max(found.get(area.shared_id, 0), end)
    return dict(sorted(found.items()))


def placement(placed: Sequence[Placed], descriptors: Descriptors) -> tuple[Program, Program]:
    """Two programs of a table's owner: put descriptors at their numbers; later, close others.

    Late operations come between: they may still use service numbers.
    """
    ops = table.placement(placed, descriptors.context)
    return (
        Program("descriptors", [op for op in ops if op.call == "dup3"]),
        Program("close descriptors", [op for op in ops if op.call != "dup3"]),
    )
