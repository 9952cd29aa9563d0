# SPDX-License-Identifier: Apache-2.0
"""What the agent reads of the node: /proc and the cgroup trees, both at injectable places.

Facts: the agent shares the node's pid namespace, so /proc/1/root is the node's root and
pids are the node's. /proc/PID/cgroup shows paths relative to the reader's cgroup namespace:
from inside one of our own they may begin with ``/..`` and then say too little.
"""

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Denied, Vanished

ENDED = ("Z", "X")
_AGAIN = "ask again when the pod runs"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/PID/mountinfo."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    fstype: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """Value of a ``name=value`` option of the file system."""
        for option in self.super_options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A process, as /proc/PID/status says."""

    pid: int
    parent_pid: int
    ns_pids: tuple[int, ...]
    name: str
    state: str
    """Of its main thread, which may have ended while others live."""
    threads: int

    @property
    def has_ended(self) -> bool:
        """None of its threads lives."""
        return self.state in ENDED and self.threads <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Where the node is seen from here."""

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    host_root: Path = Path("/proc/1/root")

    def root_of(self, pid: int) -> Path:
        """A process's root directory."""
        return self.proc / str(self._face(pid)) / "root"

    def tasks_named(self, part: str) -> dict[int, dict[str, str]]:
        """Tasks with ``part`` in a cgroup path: pid -> controller (``""`` is v2) -> path."""
        found = {}
        for entry in self.proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                text = (entry / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if part in text:
                found[int(entry.name)] = parse_cgroup(text)
        return found

    def task(self, pid: int) -> Task:
        """One task.

        Raises:
            Vanished: it is gone.
        """
        fields = dict(line.partition(":")[::2] for line in self._read(pid, "status").splitlines())
        return Task(
            pid=pid,
            parent_pid=int(fields["PPid"]),
            ns_pids=tuple(int(word) for word in fields.get("NSpid", str(pid)).split()),
            name=fields["Name"].strip(),
            state=fields["State"].split()[0],
            threads=int(fields.get("Threads", "1")),
        )

    def tasks(self, pids: Iterable[int]) -> dict[int, Task]:
        """Those which still exist."""
        found = {}
        for pid in pids:
            try:
                found[pid] = self.task(pid)
            except Vanished:
                continue
        return found

    def mounts(self, pid: int) -> tuple[Mount, ...]:
        """Mounts in a process's mount namespace, in the kernel's order."""
        text = self._read(self._face(pid), "mountinfo")
        return tuple(parse_mount(line) for line in text.splitlines())

    def seccomp_filters(self, pid: int) -> int:
        """Number of seccomp filters in force (Linux 5.9); 0 for an unknown number."""
        return int(self._status(pid).get("Seccomp_filters", "0"))

    def command(self, pid: int) -> str:
        """Its arguments, for messages."""
        return self._read(pid, "cmdline").replace("\0", " ").strip()

    def exists(self, pid: int) -> bool:
        """Whether a thread of it lives."""
        try:
            return self.task(self._face(pid)).state not in ENDED
        except Vanished:
            return False

    def _face(self, pid: int) -> int:
        """A thread that shows what a process has, see `proc.face` of the engine."""
        try:
            if self.task(pid).state in ENDED:
                tids = sorted(int(entry.name) for entry in (self.proc / f"{pid}/task").iterdir())
                return next((tid for tid in tids if self.task(tid).state not in ENDED), pid)
        except (OSError, Vanished):
            pass
        return pid

    def _status(self, pid: int) -> dict[str, str]:
        return dict(line.partition(":")[::2] for line in self._read(pid, "status").splitlines())

    def _read(self, pid: int, name: str) -> str:
        path = self.proc / str(pid) / name
        try:
            return path.read_text(errors="surrogateescape")
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Vanished("the task is gone", subject=f"process {pid}", remedy=_AGAIN) from error
        except PermissionError as error:
            raise Denied(
                "may not look at the task",
                subject=str(path),
                cause=error.strerror or "",
                remedy="run the agent with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
            ) from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # of a task that is ending (fs/proc_namespace.c, mounts_open_common)
            raise Vanished("the task is ending", subject=f"process {pid}", remedy=_AGAIN) from error


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: controller -> path; ``""`` is the v2 hierarchy."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def parse_mount(line: str) -> Mount:
    """One line of mountinfo; see proc_pid_mountinfo(5)."""
    left, _, right = line.partition(" - ")
    first, last = left.split(" "), right.split(" ")
    return Mount(
        mount_id=int(first[0]),
        parent_id=int(first[1]),
        device=first[2],
        root=unescape(first[3]),
        mount_point=unescape(first[4]),
        fstype=last[0],
        source=unescape(last[1]),
        options=tuple(first[5].split(",")),
        super_options=tuple(unescape(option) for option in last[2].split(",")),
    )


def unescape(text: str) -> str:
    r"""``\040`` and kin."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def descendants(tasks: Mapping[int, Task], root: int) -> frozenset[int]:
    """The root and everything below it."""
    children: dict[int, list[int]] = {}
    for task in tasks.values():
        children.setdefault(task.parent_pid, []).append(task.pid)
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return frozenset(found)
