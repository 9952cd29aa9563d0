# SPDX-License-Identifier: Apache-2.0
"""Control groups that the tasks are in.

Facts:
- A task is in one group of each hierarchy (/proc/PID/cgroup): one a controller with version 1,
  named by its controllers or `name=systemd`, and one of version 2 with an empty name (cgroups(7)).
- CRIU numbers the sets of groups: 1 (`root_cg_set` of the inventory) is its own, and a restore
  leaves tasks of it where it is itself; others are in cgroup.img, with the directories and their
  settings. When all tasks are in its own set there is no cgroup.img.
- Groups below those that tasks are in are part of it, but not those below CRIU's own. Of
  cgroup.procs and tasks only mode and owner are kept.
- Settings are written to a group that the restore has made (mode `soft`), not to one that was
  there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.proctexts import parse_cgroup
from torpor.engine.kind import ImageSink, ImageSource

OWN_SET = 1

Places = tuple[tuple[str, str], ...]
"""(hierarchy, path in it), sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Mode and owner of a file or directory."""

    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A file of a group and its text."""

    name: str
    value: str
    rights: Rights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A directory of a hierarchy, with its settings."""

    hierarchy: str
    path: str
    rights: Rights | None
    settings: Sequence[Setting] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """All groups of a tree: sets by number, and the directories they name."""

    sets: Mapping[int, Places]
    groups: Sequence[Group] = ()
    own_set: int = OWN_SET
    """The set that the dumping program was in."""


def places(text: str) -> Places:
    """The groups of a task, from its /proc/PID/cgroup."""
    return tuple(sorted((",".join(one.controllers), one.path) for one in parse_cgroup(text)))


def number(found: Sequence[Places], own: Places) -> tuple[list[int], dict[int, Places]]:
    """Numbers of the sets that tasks are in, and what each is; our own has 1."""
    known = {own: OWN_SET}
    numbers = [known.setdefault(one, len(known) + OWN_SET) for one in found]
    return numbers, {n: one for one, n in known.items()}


def encode(cgroups: Cgroups, images: ImageSink) -> None:
    """Write cgroup.img, unless all tasks are in our own groups."""
    others = {n: one for n, one in cgroups.sets.items() if n != cgroups.own_set}
    if not others:
        return
    message = pb.cgroup_entry()
    for n, found in others.items():
        entry = message.sets.add(id=n)
        for name, path in found:
            entry.ctls.add(name=_raw(name), path=_raw(path))
    by_name: dict[str, pb.cg_controller_entry] = {}
    directories: dict[tuple[str, str], pb.cgroup_dir_entry] = {}
    for group in cgroups.groups:
        if group.hierarchy not in by_name:
            names = [_raw(name) for name in group.hierarchy.split(",")]
            by_name[group.hierarchy] = message.controllers.add(
                cnames=names, is_threaded=bool(group.hierarchy)
            )
        directory = _entry_of(group, by_name[group.hierarchy], directories)
        if group.rights is not None:
            directory.dir_perms.CopyFrom(_perms(group.rights))
        for one in group.settings:
            file = directory.properties.add(name=_raw(one.name), value=_raw(one.value))
            if one.rights is not None:
                file.perms.CopyFrom(_perms(one.rights))
    images.add("cgroup", message)


def _entry_of(
    group: Group,
    controller: pb.cg_controller_entry,
    known: dict[tuple[str, str], pb.cgroup_dir_entry],
) -> pb.cgroup_dir_entry:
    """A directory's entry, inside of that of the one above if that is there."""
    above, _, name = group.path.rpartition("/")
    inside = known.get((group.hierarchy, above)) if above else None
    entry = (
        controller.dirs.add(dir_name=_raw(group.path.lstrip("/")))
        if inside is None
        else inside.children.add(dir_name=_raw(name))
    )
    known[group.hierarchy, group.path] = entry
    return entry


def decode(images: ImageSource, own_set: int) -> Cgroups:
    """Read it back; no sets when there is no such image."""
    sets: dict[int, Places] = {}
    groups: list[Group] = []
    for message, _ in images.entries("cgroup"):
        for entry in message.sets:
            sets[entry.id] = tuple(
                sorted((_text(member.name), _text(member.path)) for member in entry.ctls)
            )
        for controller in message.controllers:
            name = ",".join(_text(one) for one in controller.cnames)
            for directory in controller.dirs:
                groups += _directory(name, "", directory)
    return Cgroups(sets=sets, groups=tuple(groups), own_set=own_set)


def _directory(hierarchy: str, above: str, entry: pb.cgroup_dir_entry) -> list[Group]:
    path = f"{above}/{_text(entry.dir_name).strip('/')}".rstrip("/") or "/"
    found = [
        Group(
            hierarchy=hierarchy,
            path=path,
            rights=_rights(entry.dir_perms) if entry.HasField("dir_perms") else None,
            settings=tuple(
                Setting(
                    name=_text(one.name),
                    value=_text(one.value),
                    rights=_rights(one.perms) if one.HasField("perms") else None,
                )
                for one in entry.properties
            ),
        )
    ]
    for child in entry.children:
        found += _directory(hierarchy, path, child)
    return found


def _perms(rights: Rights) -> pb.cgroup_perms:
    return pb.cgroup_perms(mode=rights.mode, uid=rights.uid, gid=rights.gid)


def _rights(perms: pb.cgroup_perms) -> Rights:
    return Rights(mode=perms.mode, uid=perms.uid, gid=perms.gid)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
