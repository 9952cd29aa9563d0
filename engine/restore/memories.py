# SPDX-License-Identifier: Apache-2.0
"""The memory of each task: laid out after an exec or a fork, and filled."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from torpor.engine import native
from torpor.engine.errors import Error, Refused
from torpor.engine.kernel import maps, proc
from torpor.engine.memory import areas as area_kinds
from torpor.engine.memory import vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group
from torpor.engine.program.ops import Program
from torpor.engine.restore import backings, layout, lazily, spawn
from torpor.engine.restore.arena import Arena, find_hole, find_syscall
from torpor.engine.restore.batch import Batch
from torpor.engine.restore.spawn import Living
from torpor.engine.restore.staging import Staging
from torpor.engine.restore.work import Work, memory_of

SCRATCH_BELOW_STACK = 8192


def execute(work: Work, task: Living, stack: int) -> None:
    """Exec the old program and map the arena into its fresh address space."""
    memory = memory_of(task)
    scratch = (stack - SCRATCH_BELOW_STACK) & -64
    program = "/proc/self/exe" if memory.exe_file else memory.exe
    spawn.execute(task.pid, task.syscall_address, scratch, program, task.image.comm)
    fresh = maps.parse_maps(proc.read_text(task.pid, "maps"))
    current = special_areas(task.pid)
    task.syscall_address = find_syscall(task.pid, *current.code)
    used = [(v.start, v.end) for v in fresh]
    for other in work.tree.tasks:
        used += [(a.start, a.end) for a in (other.memory.areas if other.memory else ())]
    used = [(a, b) for a, b in used if a < area_kinds.TASK_SIZE]
    task.arena = Arena(base=find_hole(used, Arena(base=0).size_bytes))
    task.arena.map_into(task.pid, task.syscall_address, task.image.subject)


def lay_out_executed(work: Work, task: Living) -> None:
    """Everything that a task had, in place of what its exec has mapped."""
    memory, current = memory_of(task), special_areas(task.pid)
    old = vdso.group(memory.areas)
    code_area = next((a for a in memory.areas if a.backing is Backing.VDSO), None)
    code = work.contents.area_bytes(task.image.pid, code_area) if code_area else None
    now = native.read_memory(task.pid, current.code[0], current.code[1] - current.code[0])
    used = [(a.start, a.end) for a in memory.areas if a.backing is not Backing.VSYSCALL]
    spare = find_hole([*used, (task.arena.base, task.arena.end)], current.end - current.start)
    plan = vdso.plan(old, code, current, now, spare)
    filled = _filled(work, task)
    program = layout.after_exec(task.arena, memory.areas, current, plan, work.backings, filled)
    task.arena.run(task.pid, program, task.image.subject)
    if memory.exe_file:
        backings.set_program(task, work.backings.files[memory.exe_file])
    task.areas, task.opened, task.special = tuple(memory.areas), filled, old
    wanted = [a for a in memory.areas if a.backing not in area_kinds.SPECIAL or plan.keep_old_code]
    moved = next((m for m in plan.moves if m.source == current.code[0]), None)
    if moved is not None:
        task.syscall_address = find_syscall(task.pid, moved.target, moved.target + moved.size_bytes)
    task.lazy = work.lazy.choose(memory.areas, work.contents, task.image.pid)
    wanted = lazily.without(wanted, task.lazy)
    work.contents.fill(task.pid, task.image.pid, wanted, _staging(work, task))
    for address, content in plan.patches:
        native.write_memory(task.pid, address, content)
    if moved is None:
        task.syscall_address = own_syscall(task.pid, memory.areas, task.image.subject)


def give(work: Work, task: Living, maker: Living) -> Iterator[None]:
    """What a task that was forked by ``maker`` had: from its maker, or from its program.

    In steps: between them it runs a program of its own, and other tasks can be seen to.
    """
    before = maker.memory_of.memory
    assert before is not None
    if layout.forked_from(memory_of(task), before):
        yield from _lay_out_forked(work, task, maker)
    else:
        execute(work, task, task.arena.scratch + SCRATCH_BELOW_STACK)
        lay_out_executed(work, task)
    task.memory_of = task.image


def _lay_out_forked(work: Work, task: Living, parent: Living) -> Iterator[None]:
    memory = memory_of(task)
    filled = _filled(work, task)
    program, kept = layout.after_fork(
        memory.areas,
        parent.areas,
        vdso.group(parent.areas),
        vdso.group(memory.areas),
        work.backings,
        filled,
        keep_old_code=False,
    )
    with Batch() as batch:
        batch.start(task, task.pid, program, task.image.subject)
        yield
    starts = {a.start for a in kept}
    fresh = [
        a for a in memory.areas if a.start not in starts and a.backing not in area_kinds.SPECIAL
    ]
    chosen = work.lazy.choose(memory.areas, work.contents, task.image.pid)
    lacking = {a.start for a in memory.areas if work.contents.of(task.image.pid).lacks(a)}
    task.lazy = {s for s in chosen if s not in starts or s in parent.lazy or s in lacking}
    drops = work.contents.fill_forked(
        task.pid,
        task.image.pid,
        parent.memory_of.pid,
        lazily.without(kept, task.lazy),
        lazily.without(fresh, task.lazy),
        _staging(work, task),
    )
    with Batch() as batch:
        batch.start(task, task.pid, Program("drop pages", drops), task.image.subject)
        yield
    task.areas = tuple(memory.areas)
    task.opened = filled | (parent.opened & starts)
    task.special = parent.special


def _staging(work: Work, task: Living) -> Staging:
    filtered = proc.seccomp_mode(proc.read_bytes(task.pid, "status"))
    return Staging(task=task, unfiltered=work.suspend_seccomp or not filtered)


def _filled(work: Work, task: Living) -> set[int]:
    pages = work.contents.of(task.image.pid)
    return {
        area.start
        for area in memory_of(task).areas
        if not area.shared and area.backing is not Backing.VVAR and pages.within(area)
    }


def special_areas(pid: int) -> Group:
    """The kernel's own block in a live task."""
    parts = []
    for vma in maps.parse_maps(proc.read_text(pid, "maps")):
        if vma.name == "[vdso]":
            parts.append((Backing.VDSO.value, vma.start, vma.end))
        elif vma.name.startswith("[vvar"):
            parts.append((Backing.VVAR.value, vma.start, vma.end))
    if not parts:
        raise Refused("this kernel gives its tasks no vDSO", remedy="boot with vdso=1")
    parts.sort(key=lambda part: part[1])
    return Group(start=parts[0][1], end=parts[-1][2], parts=tuple(parts))


def own_syscall(pid: int, found: Sequence[Area], subject: str) -> int:
    """A system call instruction in the code of a task that has unmapped its vDSO."""
    for area in found:
        if area.prot & area_kinds.PROT_EXEC and area.backing not in area_kinds.SPECIAL:
            with suppress(Error):
                return find_syscall(pid, area.start, area.end)
    raise Refused(
        "has no vDSO, and no system call instruction of its own",
        subject=subject,
        remedy="leave the vDSO mapped",
    )
