# SPDX-License-Identifier: Apache-2.0
"""The control groups of the nodes: made in every mounted hierarchy, and removed again.

Facts: with version 1 each controller has a hierarchy of its own, and a process is in one group of
each; cpuset groups take no process before they have cpus and mems. With version 2 there is one
hierarchy, a group gets the controllers that its parent lists in cgroup.subtree_control, and a
group that hands on controllers may hold no process itself; so a node's own processes are in a
group `system` below the node's, which is also where kubelet's pods do not go. A frozen task of
version 1 does not die of SIGKILL before it is thawed: cgroup-v1/freezer-subsystem.rst.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.image.process import BuildError

TOP = Path("/sys/fs/cgroup")
WANTED = ("cpuset", "cpu", "io", "memory", "pids")
VERSION_1 = (
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
    "net_cls", "net_prio", "perf_event", "pids", "rdma",
)  # fmt: skip
EMPTY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted hierarchy: its mount point, type and the options that name it."""

    where: Path
    kind: str
    options: str

    @property
    def unified(self) -> bool:
        """Whether it is version 2 with the controllers (not the empty half of a hybrid)."""
        return self.kind == "cgroup2" and self.where == TOP


def hierarchies(mounts: str | None = None) -> list[Hierarchy]:
    """The hierarchies mounted on this machine, each once.

    Args:
        mounts: text of /proc/self/mounts, read if not given.
    """
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    found: dict[Path, Hierarchy] = {}
    for line in text.splitlines():
        _, where, kind, options, *_ = line.split()
        path = Path(where)
        if kind in ("cgroup", "cgroup2") and path.is_relative_to(TOP):
            named = [o for o in options.split(",") if o in VERSION_1 or o.startswith("name=")]
            found[path] = Hierarchy(where=path, kind=kind, options=",".join(named))
    if not found:
        raise BuildError("no control groups below /sys/fs/cgroup", "", "mount them")
    return list(found.values())


def create(name: str) -> list[Path]:
    """Makes the node's group in each hierarchy; returns the groups that its processes join."""
    return [_create_in(hierarchy, name) for hierarchy in hierarchies()]


def joined(name: str) -> list[Path]:
    """The groups, one a hierarchy, that a process joins to be on the node."""
    return [_home(hierarchy, name) for hierarchy in hierarchies()]


def hand_out(name: str, outer: int, init: int) -> None:
    """Moves a fresh node's processes to where they do not stand in the way of its pods.

    Only version 2 needs it, and only after the node's cgroup namespace exists, whose root is the
    group that the processes were in.
    """
    for hierarchy in hierarchies():
        if hierarchy.unified:
            node = hierarchy.where / name
            for pid, group in ((outer, "outer"), (init, "node/system")):
                (node / group).mkdir(exist_ok=True)
                (node / group / "cgroup.procs").write_text(f"{pid}\n")
            _enable(node)
            _enable(node / "node")


def pids(name: str) -> set[int]:
    """The machine's pids of everything that runs in the node's groups."""
    found: set[int] = set()
    for procs in (p for top in _tops(name) for p in top.rglob("cgroup.procs")):
        with contextlib.suppress(OSError):  # the group has just gone
            found.update(int(line) for line in procs.read_text().split())
    return found - {0}


def destroy(name: str) -> None:
    """Ends all that is in the node's groups, and removes the groups.

    Raises:
        BuildError: something did not end in time.
    """
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while left := [top for top in _tops(name) if not _remove(top)]:
        thaw(name)
        alive = pids(name)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            groups = ", ".join(str(top) for top in left)
            raise BuildError(f"cannot remove {groups}", f"processes in them: {sorted(alive)}")
        time.sleep(0.02)


def thaw(name: str) -> None:
    """Thaws every frozen group of the node."""
    for top in _tops(name):
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            for path in top.rglob(file):
                with contextlib.suppress(OSError):
                    path.write_text(value)


def groups_named(prefix: str) -> list[str]:
    """The names of the top groups that start so, in any hierarchy."""
    return sorted({top.name for h in hierarchies() for top in h.where.glob(f"{prefix}*")})


def enable_wanted() -> list[str]:
    """Version 2: has the root hand on the controllers that kubelet needs; returns those added."""
    for hierarchy in hierarchies():
        if hierarchy.unified:
            there = (hierarchy.where / "cgroup.controllers").read_text().split()
            if missing := {"cpu", "memory", "pids"} - set(there):
                raise BuildError(
                    f"this machine has no cgroup controller {', '.join(sorted(missing))}",
                    f"{hierarchy.where}/cgroup.controllers says: {' '.join(there)}",
                    "boot with cgroup_enable=memory, or without systemd.unified_cgroup_hierarchy",
                )
            control = hierarchy.where / "cgroup.subtree_control"
            before = control.read_text().split()
            added = [c for c in WANTED if c in there and c not in before]
            for controller in added:
                control.write_text(f"+{controller}")
            return added
    return []


def disable(controllers: list[str]) -> None:
    """Takes back what enable_wanted added, unless somebody uses it by now."""
    for hierarchy in hierarchies():
        if hierarchy.unified:
            for controller in controllers:
                with contextlib.suppress(OSError):
                    (hierarchy.where / "cgroup.subtree_control").write_text(f"-{controller}")


def _create_in(hierarchy: Hierarchy, name: str) -> Path:
    home = _home(hierarchy, name)
    home.mkdir(parents=True, exist_ok=True)
    if hierarchy.kind == "cgroup" and (home / "cpuset.cpus").exists():
        for file in ("cpuset.cpus", "cpuset.mems"):
            (home / file).write_text((hierarchy.where / file).read_text())
        (home / "cgroup.clone_children").write_text("1")
    return home


def _home(hierarchy: Hierarchy, name: str) -> Path:
    if not hierarchy.unified:
        return hierarchy.where / name
    node = hierarchy.where / name / "node"
    return node / "system" if (node / "system").exists() else node


def _tops(name: str) -> list[Path]:
    return [top for h in hierarchies() if (top := h.where / name).exists()]


def _enable(group: Path) -> None:
    there = (group / "cgroup.controllers").read_text().split()
    for controller in there:
        (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove(top: Path) -> bool:
    """Removes a group and those below it, as far as they are empty; says whether all are gone."""
    for folder, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not top.exists()
