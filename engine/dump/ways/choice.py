# SPDX-License-Identifier: Apache-2.0
"""Which way the memory of a tree is taken, and why: decided before the stop, from /proc."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torpor.engine.dump import injected
from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.permits import Permits
from torpor.engine.dump.ways import obstacles, scan
from torpor.engine.dump.ways.filing import Filing
from torpor.engine.dump.ways.frozen import Frozen
from torpor.engine.dump.ways.generations import Generations
from torpor.engine.dump.ways.held import Held
from torpor.engine.dump.ways.precopy import PreCopy
from torpor.engine.dump.ways.rounds import SMALLEST_TASK, Rounds
from torpor.engine.dump.ways.snapshot import Snapshot
from torpor.engine.dump.ways.way import Way
from torpor.engine.errors import Error, Vanished
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.kernel import proc
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import parse_smaps
from torpor.engine.kernel.proc import parse_status
from torpor.engine.memory import areas
from torpor.engine.options import DumpOptions, MemoryWay, ProgressFn
from torpor.engine.text import size

FEWEST_BYTES, FEWEST_OF_TASK = 16 << 20, 4 << 20
"""Below, of a tree and of a task, a copy is quicker than a fork and its end."""
HELD = "the tasks stand still until the images are whole, and are read straight into them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Memory of a task, in bytes."""

    own: int = 0
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A way and the reason for it."""

    way: MemoryWay
    reason: str
    held: bool = False
    """The tasks stand still until the images are whole."""
    copied_bytes: int = 0
    spaces: Mapping[int, AddressSpace] = field(default_factory=dict)
    """Of tasks that are to fork themselves."""
    trace: int = 0
    given: Sequence[Path] = ()

    @property
    def text(self) -> str:
        """As a plan says it."""
        return f"{self.way.value}: {self.reason}"


def choose(options: DumpOptions, permits: Permits, *, held: bool) -> Choice:
    """Look at a tree that runs, or at one that will be stopped."""
    if held and options.memory is not MemoryWay.PRECOPY:
        return Choice(way=MemoryWay.FROZEN, reason=HELD, held=True)
    sizes = {task.pid: _sizes(task.pid) for task in list_tasks(options.pid) if task.tids}
    total = sum(one.own + one.shared for one in sizes.values())
    if options.memory is not MemoryWay.PRECOPY:
        return _running(options, permits, sizes)
    against = _against_watching(permits, sizes)
    if not against:
        return Choice(way=MemoryWay.PRECOPY, reason="asked for", copied_bytes=total, held=held)
    if held:
        reason = f"no pre-copy, because {against}; {HELD}"
        return Choice(way=MemoryWay.FROZEN, reason=reason, held=True)
    found = _running(replace(options, memory=MemoryWay.AUTO), permits, sizes)
    return replace(found, reason=f"no pre-copy, because {against}; {found.reason}")


def _running(options: DumpOptions, permits: Permits, sizes: Mapping[int, Sizes]) -> Choice:
    """For a tree that runs on, in one step."""
    total = sum(one.own + one.shared for one in sizes.values())
    if options.memory is MemoryWay.FROZEN:
        return Choice(way=MemoryWay.FROZEN, reason="asked for", copied_bytes=total)
    asked = options.memory is MemoryWay.SNAPSHOT
    own = sum(one.own for one in sizes.values())
    if own < FEWEST_BYTES and not asked:
        reason = f"{size(own)} are copied sooner than forked"
        return Choice(way=MemoryWay.FROZEN, reason=reason, copied_bytes=total)
    found = _Forks(asked=asked, permits=permits, obstacles=[])
    found.look(options, sizes)
    if found.obstacles:
        reason = f"no snapshot, because {'; '.join(found.obstacles)}"
        return Choice(way=MemoryWay.FROZEN, reason=reason, copied_bytes=total)
    return Choice(
        way=MemoryWay.SNAPSHOT,
        reason="asked for" if asked else f"the tasks run on, and {size(own)} are forked quickly",
        copied_bytes=total - sum(sizes[pid].own for pid in found.spaces) + found.left_out_bytes,
        spaces=found.spaces,
        trace=permits.trace,
        given=options.freezer_cgroups,
    )


def _against_watching(permits: Permits, sizes: Mapping[int, Sizes]) -> str:
    """Why nothing of a tree can be watched; empty when something can."""
    worth = [pid for pid, one in sizes.items() if one.own >= SMALLEST_TASK]
    found = [permits.against(pid, injected.of_watching(), "userfaultfd") for pid in worth]
    return "; ".join(found) if all(found) else ""


@dataclass(slots=True, kw_only=True)
class _Forks:
    """Tasks that could fork themselves, and what stands against it."""

    asked: bool
    permits: Permits
    obstacles: list[str]
    spaces: dict[int, AddressSpace] = field(default_factory=dict)
    left_out_bytes: int = 0
    """Of them, memory that a fork does not carry."""

    def look(self, options: DumpOptions, sizes: Mapping[int, Sizes]) -> None:
        least = 1 if self.asked else FEWEST_OF_TASK
        large = [pid for pid, one in sizes.items() if one.own >= least]
        for pid in large:
            try:
                self._look_at(pid)
            except Vanished:
                continue
            except Error as error:
                self.obstacles.append(f"task {pid}: {error.what}")
        need = sum(sizes[pid].own for pid in large)
        self.obstacles += obstacles.of_tree(
            options.pid, len(large), need, options.freezer_cgroups, asked=self.asked
        )

    def _look_at(self, pid: int) -> None:
        vmas = parse_smaps(proc.read_text(pid, "smaps"))
        space = AddressSpace.find(pid, vmas)
        self.obstacles += obstacles.of_task(pid, vmas, space, self.permits)
        kept, _ = areas.collect(vmas, f"pid {pid}")
        left_out = {area.start for area in scan.wanted(kept) if not scan.is_carried(area)}
        self.left_out_bytes += sum(
            vma.sizes_kb.get("Rss", 0) << 10 for vma in vmas if vma.start in left_out
        )
        self.spaces[pid] = space


def ready(
    options: DumpOptions,
    images: NewImageDirectory,
    progress: ProgressFn,
    held: bool,
    permits: Permits,
) -> Way:
    """The way that was chosen, prepared for the stop."""
    choice = choose(options, permits, held=held)
    if choice.way is MemoryWay.PRECOPY:
        way = _precopy(options, images, progress, choice, permits)
    else:
        way = _way_of(choice)
    try:
        way.prepare()
    except BaseException:
        way.close()
        raise
    return way


def _precopy(
    options: DumpOptions,
    images: NewImageDirectory,
    progress: ProgressFn,
    choice: Choice,
    permits: Permits,
) -> Way:
    def rest(size_bytes: int) -> Way:
        return _way_of(replace(choice, way=MemoryWay.FROZEN, copied_bytes=size_bytes))

    whole = options.parent or options.replace or options.page_server
    inside = choice.held and not whole
    followed = inside and options.follower is not None
    copies = Generations(images) if followed else Filing(images, bases=inside)
    rounds = Rounds(
        root=options.pid,
        copies=copies,
        seize=permits.trace,
        against=lambda pid: permits.against(pid, injected.of_watching(), "userfaultfd"),
    )
    return PreCopy(rounds, options.precopy, rest, choice.copied_bytes, progress, held=choice.held)


def _way_of(choice: Choice) -> Way:
    if choice.held:
        return Held(choice.reason)
    if choice.way is MemoryWay.SNAPSHOT:
        return Snapshot(
            choice.spaces,
            copied_bytes=choice.copied_bytes,
            trace=choice.trace,
            reason=choice.reason,
            given=choice.given,
        )
    return Frozen(choice.copied_bytes, choice.reason)


def _sizes(pid: int) -> Sizes:
    def kept(*names: str) -> int:
        return sum(int(raw.get(name, "0").split()[0]) << 10 for name in names)

    with suppress(Vanished):
        raw = parse_status(proc.read_text(pid, "status")).raw
        return Sizes(own=kept("RssAnon", "VmSwap"), shared=kept("RssShmem"))
    return Sizes()
