# SPDX-License-Identifier: Apache-2.0
"""From an image directory to everything a restore has to make, checked on the way."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torpor.engine import native
from torpor.engine.errors import BadImage
from torpor.engine.files import table
from torpor.engine.files.grouping import Placed
from torpor.engine.files.locks import Lock
from torpor.engine.images import manifest, references
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.failures import readable
from torpor.engine.images.inventory import LOCK_IPTABLES, LOCK_NFTABLES, read_inventory
from torpor.engine.images.kinds import file_name
from torpor.engine.images.parents import Chain
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import Source
from torpor.engine.kernel import nftables
from torpor.engine.kind import FileId
from torpor.engine.kinds import FILE_KINDS
from torpor.engine.memory import semaphores, sysv
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.semaphores import Kept
from torpor.engine.memory.sysv import Segment
from torpor.engine.restore import owntime
from torpor.engine.restore.contents import Contents, subtract
from torpor.engine.sockets import inet
from torpor.engine.sockets.inet_state import InetState
from torpor.engine.tasks.decode import decode_tree
from torpor.engine.tasks.model import Tree
from torpor.engine.tasks.registers import Component

SCM_RIGHTS = 1

DecodedT = TypeVar("DecodedT")


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """An image directory, read. ``states`` are per kind, in the order of FILE_KINDS."""

    images: ImageDirectory
    source: Source
    tree: Tree
    tables: Mapping[int, Sequence[Placed]]
    """Pid of a task → its descriptors; tasks that share a table have it once, at the owner."""
    locks: Sequence[Lock]
    mapped: Set[FileId]
    """Files that tasks map and no path leads to, or that wait in sockets; nobody need hold them."""
    segments: Sequence[Segment]
    semaphores: Sequence[Kept]
    states: Sequence[tuple[Any, Mapping[FileId, Any]]]
    contents: Contents
    lock_table: str = ""
    """The table of nftables that holds the packets of its connections back."""
    has_rules: bool = False
    """Rules of iptables do so, which criu has made."""

    recorded: owntime.Recorded | None = None
    """What its clocks said."""

    @property
    def connections(self) -> Mapping[FileId, InetState]:
        """TCP and UDP sockets."""
        return next((states for kind, states in self.states if kind is inet.KIND), {})

    def close(self) -> None:
        """Close everything that was opened."""
        self.contents.close()
        self.images.close()


def open_contents(
    images: ImageDirectory, *, later: bool = False, links: bool = True, spare: bool = False
) -> Contents:
    """Pages of a directory, of rounds inside of it, and of earlier dumps that links lead to."""
    chain = Chain(images, links=links, later=later, spare=spare)
    return Contents(images, parents=chain, later=later)


def load(
    path: Path,
    *,
    verify: Verify = Verify.ALL,
    with_parents: bool = False,
    later: bool = False,
    spare: bool = False,
) -> Snapshot:
    """Read and check a directory; nothing of the machine is touched.

    With ``verify`` WITHOUT_PAGES, `Contents.verify` has to follow before anything runs.
    ``with_parents`` takes pages from the directories of earlier dumps; with ``later`` pages may
    be missing that are still where it was dumped. ``spare`` images may be changed.

    Raises:
        BadImage: something is missing, damaged or does not fit.
    """
    images = ImageDirectory.open(path, verify=verify)
    contents = open_contents(images, later=later, links=with_parents, spare=spare)
    try:
        inventory = read_inventory(images)
        source = Source(images)
        references.check(images, source)
        tree, numbers = decode_tree(source, processor_components(), native.xstate_template())
        for number in {*numbers.values()}:
            _expect(images, f"fdinfo-{number}")
        tables = table.decode_tables(source, numbers)
        mapped = mapped_files(tree) | in_flight(source)
        snapshot = Snapshot(
            images=images,
            source=source,
            tree=tree,
            tables=tables,
            mapped=mapped,
            states=_states(source, tables, numbers, mapped | directories_of(tree)),
            locks=_decoded("filelocks.img", table.decode_locks, source),
            segments=_decoded(f"{manifest.NAME}, sysv", sysv.decode, source),
            semaphores=_decoded(f"{manifest.NAME}, sysv", semaphores.decode, source),
            contents=contents,
            lock_table=_lock_table(inventory),
            has_rules=inventory.network_lock_method == LOCK_IPTABLES,
            recorded=owntime.read(images, source),
        )
        _check_backings(snapshot)
    except BaseException:
        contents.close()
        images.close()
        raise
    return snapshot


def in_flight(source: Source) -> Set[FileId]:
    """Ids of the files whose descriptors wait in unix sockets."""
    return {
        FileId(number)
        for entry, _ in source.entries("sk-queues")
        for control in entry.scm
        if control.type == SCM_RIGHTS
        for number in control.rights
    }


def mapped_files(tree: Tree) -> Set[FileId]:
    """Ids of the files that areas map by a descriptor, and of programs without a name."""
    memories = [task.memory for task in tree.tasks if task.memory]
    numbers = {area.file_id for memory in memories for area in memory.areas}
    numbers |= {memory.exe_file for memory in memories}
    return {FileId(number) for number in numbers if number}


def _lock_table(inventory: pb.inventory_entry) -> str:
    if inventory.network_lock_method != LOCK_NFTABLES:
        return ""
    return nftables.table_name(inventory.dump_criu_run_id)


def processor_components() -> tuple[Component, ...]:
    """Where this processor keeps its XSAVE components."""
    return tuple(
        Component(number=n, offset=offset, size_bytes=size)
        for n, offset, size in native.xstate_components()
    )


def directories_of(tree: Tree) -> set[FileId]:
    """Files that stand for removed working and root directories."""
    both = {number for t in tree.tasks for number in (t.cwd_file, t.root_file)}
    return {FileId(number) for number in both if number is not None}


def _decoded(subject: str, decode: Callable[[Source], DecodedT], source: Source) -> DecodedT:
    with readable(subject):
        return decode(source)


def _states(
    source: Source,
    tables: Mapping[int, Sequence[Placed]],
    numbers: Mapping[int, int],
    unheld: Set[FileId],
) -> list[tuple[Any, Mapping[FileId, Any]]]:
    wanted = {one.file_id for placed in tables.values() for one in placed} | unheld
    states: list[tuple[Any, Mapping[FileId, Any]]] = []
    found: set[FileId] = set()
    for kind in FILE_KINDS:
        decoded = _decoded(f"files of kind {kind.name}", kind.decode, source)
        mine = {number: s for number, s in decoded.items() if number in wanted}
        if mine:
            states.append((kind, mine))
            found.update(mine)
    missing = sorted(wanted - found)
    if missing:
        raise BadImage(
            "a descriptor's file is not in the images, or of a kind that torpor does not restore",
            subject=_named_by(missing[0], tables, numbers),
            cause=f"there are {', '.join(source.file_types())}",
            remedy="see docs/limits.md",
        )
    return states


def _named_by(
    file_id: FileId, tables: Mapping[int, Sequence[Placed]], numbers: Mapping[int, int]
) -> str:
    """Which table has it, at which descriptor."""
    for pid, placed in tables.items():
        for one in placed:
            if one.file_id == file_id:
                return f"fdinfo-{numbers[pid]}.img, fd {one.fd}, id {file_id}"
    return f"file {file_id}"


def _check_backings(snapshot: Snapshot) -> None:
    for task in snapshot.tree.tasks:
        for area in task.memory.areas if task.memory else ():
            if area.backing is Backing.SHARED and not area.shared_id:
                raise BadImage("shared memory without an id", subject=area.subject)
        if task.memory:
            _check_pages(snapshot, task.pid, task.memory.areas)
    for number in _shared_memory(snapshot):
        _expect(snapshot.images, f"pagemap-shmem-{number}")
        snapshot.contents.of_shared(number)


def _shared_memory(snapshot: Snapshot) -> set[int]:
    """Numbers of all that tasks share and that has pages."""
    areas = (area for t in snapshot.tree.tasks if t.memory for area in t.memory.areas)
    segments = {area.pages_id for area in areas if area.backing in (Backing.SHARED, Backing.SYSV)}
    states = (found for kind, found in snapshot.states if kind.name == "memfd")
    return segments | {s.inode_id for found in states for s in found.values() if s.size}


def _check_pages(snapshot: Snapshot, pid: int, areas: Sequence[Area]) -> None:
    """Every page that is stored has a place in the task's memory."""
    name = f"pagemap-{pid}"
    _expect(snapshot.images, name)
    runs = [(one.run.vaddr, one.run.end) for one in snapshot.contents.of(pid).runs]
    nowhere = subtract(runs, [(area.start, area.end) for area in areas])
    if nowhere:
        start, end = nowhere[0]
        raise BadImage(
            "has pages outside of all memory areas",
            subject=file_name(name),
            cause=f"{start:x}-{end:x} is in no area of mm-{pid}.img",
        )


def _expect(images: ImageDirectory, name: str) -> None:
    if name not in images:
        raise BadImage("is missing", subject=file_name(name))
