# SPDX-License-Identifier: Apache-2.0
"""Tasks go back to the control groups that they were in.

The root moves before it does anything, so that its memory is counted there and children are born
there; a task of another set moves once it exists. Groups that are missing are made, as the mode
says, and taken away again when the restore fails.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torpor.engine.errors import KernelError, Refused
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.inventory import read_inventory
from torpor.engine.images.source import Source
from torpor.engine.kernel import cgroupfs
from torpor.engine.kernel.proc import read_text
from torpor.engine.options import CgroupMode
from torpor.engine.tasks import cgroups
from torpor.engine.tasks.cgroups import Group, Places, Rights
from torpor.engine.tasks.model import TaskImage, Tree

MUST_EXIST = (CgroupMode.NONE, CgroupMode.PROPS)
SET_IN_ANY = (CgroupMode.PROPS, CgroupMode.FULL)
NO_SETTINGS = ("cgroup.procs", "tasks", "devices.list", "cgroup.freeze", "memory.oom_control")
"""Files of a group that are no settings, or are not written as they are read."""


@dataclass(slots=True)
class Groups:
    """Where the tasks of each set go, and what was made for them."""

    moves: dict[int, list[Path]] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)
    now: int = 0
    """The set that the restored root is in."""

    def enter(self, task: TaskImage, pid: int) -> None:
        """Move a task into the groups of its set, if it was not born there."""
        if task.cgroup_set != self.now:
            for directory in self.moves.get(task.cgroup_set, ()):
                cgroupfs.enter(directory, pid)

    def take_away(self) -> None:
        """Remove what was made: the restore failed."""
        for directory in reversed(self.made):
            with suppress(OSError):
                directory.rmdir()
        self.made.clear()


def prepare(
    images: ImageDirectory,
    source: Source,
    tree: Tree,
    mode: CgroupMode,
    roots: Mapping[str, str],
    warnings: list[str],
) -> Groups:
    """Have all groups that the tree needs.

    Raises:
        Refused: a group is missing, or there although it must not be.
        KernelError: it cannot be made.
    """
    found = Groups()
    wanted = {task.cgroup_set for task in tree.tasks if not task.zombie}
    own = read_inventory(images).root_cg_set or cgroups.OWN_SET
    found.now = own
    if mode is CgroupMode.IGNORE or wanted <= {own}:
        return found
    held = cgroups.decode(source, own)
    here = cgroupfs.Hierarchies.here()
    ours = cgroups.places(read_text("self", "cgroup"))
    moved = _Moved(held.sets.get(tree.root.cgroup_set, ()), roots)
    try:
        for number in sorted(wanted):
            places = ours if number == own else held.sets.get(number, ())
            found.moves[number] = [
                directory
                for name, path in places
                if (directory := here.directory(name, moved.to(name, path, number != own)))
                and _have(directory, (name, path) in ours, mode, found)
            ]
        for group in held.groups:
            directory = here.directory(group.hierarchy, moved.to(group.hierarchy, group.path))
            if directory is not None:
                if mode not in MUST_EXIST and not directory.is_dir():  # one without tasks
                    found.made += cgroupfs.make(directory)
                _set(directory, group, mode, found.made, warnings)
    except BaseException:
        found.take_away()
        raise
    return found


@dataclass(frozen=True, slots=True)
class _Moved:
    """--cgroup-root: groups at and below the root task's go below another."""

    of_root: Places
    roots: Mapping[str, str]

    def to(self, name: str, path: str, can_move: bool = True) -> str:
        """Where a group is now."""
        root = self.roots.get(name, self.roots.get(""))
        if root is None or not can_move:
            return path
        base = dict(self.of_root).get(name, "/").rstrip("/")
        below = path[len(base) :] if path == base or path.startswith(f"{base}/") else ""
        return (root.rstrip("/") + below) or "/"


def _have(directory: Path, is_ours: bool, mode: CgroupMode, found: Groups) -> bool:
    exists = directory.is_dir()
    if mode is CgroupMode.STRICT and exists and not is_ours and directory not in found.made:
        raise Refused("a control group is there already", subject=str(directory),
                      remedy="remove it, or restore with --manage-cgroups=soft")  # fmt: skip
    if not exists and mode in MUST_EXIST:
        raise Refused("a control group is not there", subject=str(directory),
                      remedy="make it, or restore with --manage-cgroups=soft")  # fmt: skip
    found.made += cgroupfs.make(directory)
    return True


def _give(path: Path, rights: Rights | None) -> None:
    """Owner and mode, as far as that is permitted."""
    with suppress(OSError):
        if rights is not None:
            os.chown(path, rights.uid, rights.gid)
            path.chmod(rights.mode & 0o7777)


def _set(
    directory: Path, group: Group, mode: CgroupMode, made: Sequence[Path], warnings: list[str]
) -> None:
    """Write the settings of a group, as far as the mode wants."""
    is_new = directory in made
    if mode is CgroupMode.NONE or not (is_new or mode in SET_IN_ANY):
        return
    if mode is not CgroupMode.PROPS:
        _give(directory, group.rights)
        for one in group.settings:
            _give(directory / one.name, one.rights)
    files = {group.hierarchy.partition(",")[0]: [one.name for one in group.settings]}
    now = {one.name: one.text for one in cgroupfs.settings(directory, group.hierarchy, files)}
    for one in group.settings:
        if one.name in NO_SETTINGS or now.get(one.name, one.value) == one.value:
            continue
        try:
            cgroupfs.write(directory, one.name, one.value)
        except KernelError as error:
            warnings.append(f"{directory}: {one.name} stays {now[one.name]}: {error.cause}")
