# SPDX-License-Identifier: Apache-2.0
"""Takes a cluster down, whatever state it is in, and checks that nothing is left of it.

Nothing here relies on what `up` wrote down: processes are found by their control groups, whose
names follow from the directory's. Mounts and links are in the nodes' namespaces and end with them.
"""

import contextlib
from pathlib import Path

from deploy.image import cache
from deploy.image.process import BuildError, require_root
from deploy.image.progress import Progress
from tests.e2e.cluster import cgroups
from tests.e2e.cluster.layout import Layout


def down(layout: Layout, progress: Progress) -> None:
    """Ends every process of the cluster, and removes its groups and its directory."""
    require_root("taking a cluster down")
    with cache.locked(layout.prefix + "lock"):
        remove(layout)
        left = leftovers(layout)
        if left:
            raise BuildError("something of the cluster is left", "\n  ".join(left))
    progress.say("down: no process, control group, mount or file of the cluster is left")


def remove(layout: Layout) -> None:
    """Removes all that is there; the caller holds the cluster's lock."""
    names = cgroups.groups_named(layout.prefix)
    for name in names:
        cgroups.destroy(name)
    state = None
    with contextlib.suppress(BuildError):
        state = layout.state()
    if state:
        cgroups.disable(state.controllers)
    if not layout.directory.exists():
        return
    if mounted := _mounts_below(layout.directory):
        raise BuildError(f"mounts below {layout.directory}", "\n  ".join(mounted), "unmount them")
    is_ours = layout.state_file.exists() or not any(layout.directory.iterdir())
    if not is_ours:
        raise BuildError(f"{layout.directory} is not a cluster's directory")
    for entry in layout.directory.iterdir():
        # The mark goes last, so that a `down` that was killed can be repeated.
        if entry != layout.state_file:
            cache.remove(entry)
    cache.remove(layout.directory)


def leftovers(layout: Layout) -> list[str]:
    """What is still there of the cluster, a line each."""
    found = [f"control group {name}" for name in cgroups.groups_named(layout.prefix)]
    found += [f"mount {where}" for where in _mounts_below(layout.directory)]
    found += [f"process {pid}" for pid in _processes_of(layout)]
    if layout.directory.exists():
        found.append(f"directory {layout.directory}")
    return found


def _mounts_below(directory: Path) -> list[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [where for line in mounts if Path(where := line.split()[1]).is_relative_to(directory)]


def _processes_of(layout: Layout) -> list[int]:
    """Processes whose control group or mounts say that they are of the cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            groups = (process / "cgroup").read_text()
            mounts = (process / "mountinfo").read_text()
            if layout.prefix in groups or f"upperdir={layout.directory}/" in mounts:
                found.append(int(process.name))
    return found
