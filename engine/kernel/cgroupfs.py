# SPDX-License-Identifier: Apache-2.0
"""Control group hierarchies as they are mounted here: reading, making and entering groups.

Facts (cgroups(7)): a mount shows the part of its hierarchy below `root` of mountinfo. With
version 1 a thread may be in another group than its leader (`tasks`), with version 2 the whole
process moves (`cgroup.procs`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import KernelError, Refused
from torpor.engine.kernel.proc import read_text
from torpor.engine.kernel.proctexts import Mount, parse_mountinfo

COMMON_V1 = ("cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks")
MEMBERS = ("cgroup.procs", "tasks")
"""Files that list tasks: only who may write to them is a setting."""
COMMON_V2 = (
    "cgroup.type", "cgroup.max.descendants", "cgroup.max.depth", "cgroup.subtree_control",
    "cgroup.freeze", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "io.weight",
    "memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "pids.max",
)  # fmt: skip
SETTINGS: Mapping[str, Sequence[str]] = {
    "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us",
            "cpu.rt_runtime_us"),
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness",
               "memory.soft_limit_in_bytes", "memory.move_charge_at_immigrate",
               "memory.oom_control", "memory.use_hierarchy", "memory.kmem.limit_in_bytes",
               "memory.kmem.tcp.limit_in_bytes"),
    "cpuset": ("cpuset.cpus", "cpuset.mems", "cpuset.memory_migrate", "cpuset.cpu_exclusive",
               "cpuset.mem_exclusive", "cpuset.mem_hardwall", "cpuset.memory_spread_page",
               "cpuset.memory_spread_slab", "cpuset.sched_load_balance",
               "cpuset.sched_relax_domain_level"),
    "blkio": ("blkio.weight",),
    "net_cls": ("net_cls.classid",),
    "net_prio": ("net_prio.ifpriomap",),
    "pids": ("pids.max",),
    "devices": ("devices.list",),
}  # fmt: skip
"""Controller of version 1 → files that are settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a group: its text, mode and owner."""

    name: str
    text: str
    mode: int
    uid: int
    gid: int


class Hierarchies:
    """Where the hierarchies are mounted, by name (controllers, `name=systemd`, "" version 2)."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._mounts = {name: mount for mount in mounts for name in _names(mount)}

    @classmethod
    def here(cls) -> "Hierarchies":
        """Those of our own mount namespace."""
        return cls(parse_mountinfo(read_text("self", "mountinfo")))

    def directory(self, name: str, path: str) -> Path | None:
        """Where a group is; None when its hierarchy is not mounted or does not show it."""
        mount = self._mounts.get(name)
        if mount is None:
            return None
        root = mount.root.rstrip("/")
        if path != root and not path.startswith(f"{root}/"):
            return None
        return Path(mount.mount_point) / path[len(root) :].lstrip("/")


def below(directory: Path) -> list[Path]:
    """All groups below one, those above first."""
    found = []
    with suppress(OSError):
        for path in sorted(path for path in directory.iterdir() if path.is_dir()):
            found += [path, *below(path)]
    return found


def settings(
    directory: Path, name: str, wanted: Mapping[str, Sequence[str]] = SETTINGS
) -> Iterator[File]:
    """The settings of a group that can be read; ``wanted`` are files of each controller."""
    files = [file for one in name.split(",") for file in wanted.get(one, ())]
    for file in (*files, *COMMON_V1) if name else (*files, *COMMON_V2):
        with suppress(OSError):
            text = ""
            if file not in MEMBERS:
                text = (directory / file).read_text(encoding="utf-8", errors="surrogateescape")
            stat = (directory / file).stat()
            yield File(name=file, text=text.rstrip("\n"), mode=stat.st_mode, uid=stat.st_uid,
                       gid=stat.st_gid)  # fmt: skip


def make(directory: Path) -> list[Path]:
    """Make a group and those above it; what was made, the outermost first."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        with _telling("make the group", one):
            one.mkdir()
    return missing[::-1]


def write(directory: Path, name: str, text: str) -> None:
    """Write a setting as it was read. Raises KernelError."""
    if name == "cgroup.subtree_control":
        text = " ".join(f"+{controller}" for controller in text.split())
    with _telling("set", directory / name):
        fd = os.open(directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)


def enter(directory: Path, pid: int) -> None:
    """Move a process, all its threads, into a group."""
    if not directory.is_dir():
        raise Refused("a control group is not there", subject=str(directory),
                      remedy="make it, or restore with --manage-cgroups=soft")  # fmt: skip
    write(directory, "cgroup.procs", str(pid))


class _telling:
    """OSError as KernelError."""

    def __init__(self, verb: str, path: Path) -> None:
        self.verb, self.path = verb, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise KernelError(f"cannot {self.verb}", errno=error.errno or 5, subject=str(self.path),
                              remedy="see --manage-cgroups in criu(8)") from error  # fmt: skip


def _names(mount: Mount) -> list[str]:
    if mount.fs_type == "cgroup2":
        return [""]
    if mount.fs_type != "cgroup":
        return []
    named = [one for one in mount.super_options if one.startswith("name=")]
    known = {"rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "noprefix"}
    controllers = [one for one in mount.super_options
                   if one not in known and "=" not in one]  # fmt: skip
    return [",".join(controllers)] if controllers else named
