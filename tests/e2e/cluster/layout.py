# SPDX-License-Identifier: Apache-2.0
"""Where a cluster's things are: one directory, and control groups named after it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.image.process import BuildError
from tests.e2e.cluster.node import Node

DEFAULT_DIRECTORY = Path("/var/lib/torpor-cluster")
CONTROL_PLANE = "lan"
# An overlay's upper layer, which the nodes' disks are, cannot be on these.
UNFIT_FILESYSTEMS = ("overlay", "aufs", "nfs", "nfs4", "9p", "cifs", "vfat", "virtiofs")
LONGEST_NAME = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is written down of a cluster.

    Attributes:
        releases: node name to the Debian release that it runs, in the order of their indices.
        roots: release to the directory of its root.
        programs: directory of the compiled programs.
        controllers: cgroup controllers that were switched on for it (version 2 only).
        complete: whether `up` got to its end.
    """

    releases: dict[str, str] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    programs: str = ""
    controllers: list[str] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths and names of the cluster of one directory."""

    directory: Path

    @property
    def prefix(self) -> str:
        """What the names of its control groups begin with."""
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:6]
        return f"torpor-{digest}-"

    @property
    def state_file(self) -> Path:
        """The state; also the mark that the directory is a cluster's, and may be deleted."""
        return self.directory / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, good in the network of the control plane."""
        return self.directory / "admin.kubeconfig"

    @property
    def shared(self) -> Path:
        """The directory that every node sees as /cluster/shared."""
        return self.directory / "shared"

    @property
    def pki(self) -> Path:
        """All keys and certificates; no node sees this directory."""
        return self.directory / "pki"

    def etc(self, name: str) -> Path:
        """The directory that the node sees as /etc/kubernetes."""
        return self.directory / "etc" / name

    def log(self, name: str, unit: str) -> Path:
        """The log of a program on a node."""
        return self.directory / "log" / f"{name}-{unit}.log"

    def state(self) -> State | None:
        """What is written down, or None where no cluster is."""
        try:
            content: dict[str, object] = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return None
        except ValueError as broken:
            raise BuildError(f"{self.state_file} cannot be read", str(broken), "run down") from None
        return State(**content)  # type: ignore[arg-type]

    def write_state(self, state: State) -> None:
        """Writes it down, whole or not at all."""
        partial = self.state_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(state), indent=1) + "\n")
        partial.rename(self.state_file)

    def node(self, name: str, state: State) -> Node:
        """The node of that name; the control plane's runs the first release there is a root of."""
        release = state.releases.get(name) or next(iter(state.roots))
        if name != CONTROL_PLANE and name not in state.releases:
            known = ", ".join([CONTROL_PLANE, *state.releases])
            raise BuildError(f"no node {name}", "", f"the nodes are {known}")
        return Node(
            name=name,
            group=f"{self.prefix}{name}",
            state=self.directory / "nodes" / name,
            root=Path(state.roots[release]),
            etc=self.etc(name),
            shared=self.shared,
            programs=Path(state.programs),
            pidfile=self.directory / "run" / f"{name}.pid",
        )


def check_releases(releases: Mapping[str, str]) -> None:
    """Raises BuildError for names that cannot be nodes'."""
    for name in releases:
        fit = name.isascii() and name.isalnum() and name.islower() and len(name) <= LONGEST_NAME
        if not fit or name == CONTROL_PLANE:
            raise BuildError(
                f"{name!r} cannot be a node's name", "", "use a few lower-case letters or digits"
            )


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that the path is on, or would be.

    Args:
        path: absolute path; it need not exist.
        mounts: text of /proc/self/mounts, read if not given.
    """
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    best = ("/", "unknown")
    for line in text.splitlines():
        _, where, kind, *_ = line.split()
        if path.is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]


def check_directory(directory: Path) -> None:
    """Raises BuildError when nodes' disks cannot be there."""
    kind = filesystem_of(directory)
    if kind in UNFIT_FILESYSTEMS:
        raise BuildError(
            f"{directory} is on {kind}, on which a node's disk cannot be",
            "",
            "name a directory on ext4, xfs, btrfs or tmpfs with --dir",
        )
    is_cluster = (directory / "cluster.json").exists()
    if directory.exists() and not is_cluster and any(directory.iterdir()):
        raise BuildError(
            f"{directory} has other things in it", "", "name a new directory with --dir"
        )
