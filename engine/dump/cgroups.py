# SPDX-License-Identifier: Apache-2.0
"""Which control groups the tasks are in, and what is set there."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torpor.engine.dump.capture import Captured
from torpor.engine.kernel import cgroupfs
from torpor.engine.kernel.proc import read_text
from torpor.engine.tasks.cgroups import (
    OWN_SET,
    Cgroups,
    Group,
    Places,
    Rights,
    Setting,
    number,
    places,
)
from torpor.engine.tasks.model import Tree


def collect(
    captured: Sequence[Captured],
    tree: Tree,
    controllers: Sequence[str],
    settings: Mapping[str, Sequence[str]],
) -> tuple[Tree, Cgroups]:
    """The tree with the numbers of its sets, and the sets; only of ``controllers`` if given.

    ``settings`` are files of groups that are kept in place of the usual ones.
    """
    own = _only(places(read_text("self", "cgroup")), controllers)
    alive = [c for c in captured if not c.zombie]
    found = [_only(places(c.capture.texts["cgroup"]), controllers) or own for c in alive]
    numbers, sets = number(found, own)
    by_pid = {c.capture.ns_pid: n for c, n in zip(alive, numbers, strict=True)}
    tasks = tuple(replace(t, cgroup_set=by_pid.get(t.pid, OWN_SET)) for t in tree.tasks)
    used = sorted({place for n, one in sets.items() if n != OWN_SET for place in one})
    return replace(tree, tasks=tasks), Cgroups(
        sets=sets, groups=_groups(used, own, {**cgroupfs.SETTINGS, **settings})
    )


def _only(found: Places, controllers: Sequence[str]) -> Places:
    wanted = set(controllers)
    return tuple(
        one
        for one in found
        if not wanted or wanted & {*one[0].split(","), one[0].removeprefix("name=")}
    )


def _groups(
    used: Sequence[tuple[str, str]], own: Places, settings: Mapping[str, Sequence[str]]
) -> tuple[Group, ...]:
    """Those that are used, and all below them; but below ours there are others' as well."""
    here = cgroupfs.Hierarchies.here()
    found: dict[tuple[str, str], Group] = {}
    for name, path in used:
        directory = here.directory(name, path)
        if directory is None or not directory.is_dir():
            continue
        inner = cgroupfs.below(directory) if (name, path) not in own and path != "/" else ()
        for one in (directory, *inner):
            at = f"{path.rstrip('/')}/{one.relative_to(directory)}" if one != directory else path
            with suppress(FileNotFoundError):
                found[name, at] = _group(name, at, one, settings)
    return tuple(found[key] for key in sorted(found))


def _group(name: str, path: str, directory: Path, settings: Mapping[str, Sequence[str]]) -> Group:
    stat = directory.stat()
    return Group(
        hierarchy=name,
        path=path,
        rights=Rights(mode=stat.st_mode, uid=stat.st_uid, gid=stat.st_gid),
        settings=tuple(
            Setting(
                name=one.name,
                value=one.text,
                rights=Rights(mode=one.mode, uid=one.uid, gid=one.gid),
            )
            for one in cgroupfs.settings(directory, name, settings)
        ),
    )
