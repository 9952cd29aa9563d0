# SPDX-License-Identifier: Apache-2.0
"""Live descriptors of stopped tasks: the `FdView` that kinds read during a dump.

    with open_views([4711, 4712]) as views:
        for view in views.of(4711):
            ...

What /proc tells is read at once for a whole table; a copy of a descriptor (pidfd_getfd) is
made only when a kind asks for more than that, and is closed with the view. The copy shares
the task's open file description: see `fdcalls`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from stat import S_ISSOCK
from typing import NamedTuple

from torpor.engine import native
from torpor.engine.asking import Answers, Questions, option
from torpor.engine.closing import Closing
from torpor.engine.errors import Error
from torpor.engine.kernel import repair
from torpor.engine.kernel.abi import SO, SOL_SOCKET
from torpor.engine.kernel.fdtexts import descriptors, translated
from torpor.engine.kernel.livefd import LiveFd
from torpor.engine.kernel.taskfiles import NetnsSocket, TaskFiles
from torpor.engine.kind import End, FdView

DIRECTORIES = ("cwd", "root")
KINDS = Questions(*(option(SOL_SOCKET, each) for each in (SO.DOMAIN, SO.TYPE, SO.PROTOCOL)))
"""What tells the kinds of sockets apart."""


class Sighting(NamedTuple):
    """A descriptor before its task was stopped, and a socket's KINDS."""

    view: LiveFd
    kinds: Answers | None


class Sightings(NamedTuple):
    """Those of a task by number, and what /proc showed."""

    looks: native.Looks
    found: Mapping[int, Sighting]


Seen = Mapping[int, Sightings]
"""What was seen of each task."""


class LiveDirectory(LiveFd):
    """The working or root directory of a task, as if it were open with O_PATH."""

    __slots__ = ("name",)

    def __init__(self, task: TaskFiles, name: str) -> None:
        self.task, self.name = task, name
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, -1
        self._copy, self._magic, self.info, self._answers = -1, None, (), None
        self._rank = -1
        with translated(self.subject, self.path):
            self.link = os.readlink(self.path)
            self._take(os.stat(self.path))
        self.pos, self.flags, self.mnt_id = 0, os.O_PATH | os.O_DIRECTORY, -1

    @property
    def subject(self) -> str:
        """`task 41, cwd -> /tmp/x (deleted)`."""
        return f"task {self.ns_pid}, {self.name} -> {getattr(self, 'link', '')}"

    @property
    def path(self) -> str:
        """The link in /proc."""
        return f"/proc/{self.pid}/{self.name}"


class MappedFd(LiveFd):
    """A file that a task maps, or its program; no descriptor of the tree need lead to it.

    Opened by us, by a link in /proc/PID: `map_files/7f00-7f10`, `exe`.
    """

    __slots__ = ("_mapped",)

    def __init__(self, task: TaskFiles, name: str, *, writable: bool) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, -1
        self._magic, self._answers, self._rank = None, None, -1
        path = f"/proc/{task.pid}/{name}"
        self._copy = -1
        with translated(f"task {task.ns_pid}, {name}", path):
            self.link = os.readlink(path)
            access = os.O_RDWR if writable else os.O_RDONLY
            self._copy = os.open(path, access | os.O_CLOEXEC)
        self._take(os.fstat(self._copy))
        self.pos, self.flags, self.mnt_id, self.info = 0, access | os.O_LARGEFILE, -1, ()
        self._mapped = path

    @property
    def subject(self) -> str:
        """`task 41, mapped /memfd:x (deleted)`."""
        return f"task {self.ns_pid}, mapped {self.link}"

    @property
    def path(self) -> str:
        """The link in /proc that opens the same file anew."""
        return self._mapped


class Views(Closing):
    """The descriptors of several tasks. A context manager: all copies are closed at its end."""

    def __init__(
        self,
        pids: Mapping[int, int | None],
        netns_socket: NetnsSocket | None,
        guard: repair.Guard | None,
        seen: Seen,
    ) -> None:
        self.tasks: dict[int, TaskFiles] = {}
        self._views: dict[int, dict[int, LiveFd]] = {}
        self._mapped: list[MappedFd] = []
        try:
            for pid, ns_pid in pids.items():
                self.tasks[pid] = task = TaskFiles(pid, ns_pid, netns_socket, guard)
                self._views[pid] = mine = _table(task, seen.get(pid))
                ask_kinds(view for view in mine.values() if view.answers is None)
        except BaseException:
            self.close()
            raise

    def rank(self, alike: Iterable[Sequence[FdView]]) -> None:
        """Compare the descriptions of each group in one go."""
        for views in alike:
            mine = [view for view in views if type(view) is LiveFd]
            pids, fds = [view.pid for view in mine], [view.fd for view in mine]
            for view, rank in zip(mine, native.order_files(pids, fds), strict=True):
                view.ranked(rank)

    def of(self, pid: int) -> Sequence[LiveFd]:
        """All of a task, by number."""
        return tuple(self._views[pid].values())

    def removed_directories(self, pids: Iterable[int]) -> Iterator[LiveDirectory]:
        """Working and root directories of tasks that were removed."""
        for pid in pids:
            for name in DIRECTORIES:
                path = f"/proc/{pid}/{name}"
                with translated(f"pid {pid}, {name}", path):
                    is_gone = not os.stat(path).st_nlink
                if is_gone:
                    yield LiveDirectory(self._task(pid), name)

    def mapped(self, pid: int, name: str, *, writable: bool) -> MappedFd:
        """The file of a mapping, or the program, of any task."""
        view = MappedFd(self._task(pid), name, writable=writable)
        self._mapped.append(view)
        return view

    def _task(self, pid: int) -> TaskFiles:
        if pid not in self.tasks:
            self.tasks[pid] = TaskFiles(pid)
        return self.tasks[pid]

    def get(self, pid: int, fd: int) -> LiveFd:
        """One of them."""
        return self._views[pid][fd]

    def all(self) -> Mapping[int, Mapping[int, LiveFd]]:
        """Task → number → view."""
        return self._views

    def let_run(self) -> None:
        """The tasks run on: nothing is asked of them any more."""
        for task in self.tasks.values():
            task.runs_on = True

    def leave_connections(self) -> None:
        """Have no TCP connection be put into repair mode."""
        for task in self.tasks.values():
            task.guard = None

    def close(self) -> None:
        """Close every copy, pidfd and socket."""
        for views in self._views.values():
            for view in views.values():
                view.close()
        for mapped in self._mapped:
            mapped.close()
        for task in self.tasks.values():
            task.close()


def ask(asked: Sequence[tuple[FdView, Questions]]) -> list[Answers | None]:
    """Ask descriptors in one go a task; None for what is none of a task's."""
    told: list[Answers | None] = [None] * len(asked)
    by_task: dict[TaskFiles, list[tuple[int, LiveFd, Questions]]] = {}
    for i, (view, questions) in enumerate(asked):
        if type(view) is LiveFd:
            by_task.setdefault(view.task, []).append((i, view, questions))
    for task, rows in by_task.items():
        wanted = [(v.fd, q, v.absolute if q.has_place else b"") for _, v, q in rows]
        answers = native.ask_fds(task.pid, task.pidfd, task.directory("root"), wanted)
        for (i, view, _), one in zip(rows, answers, strict=True):
            told[i] = one
            view.told(one)
    return told


def ask_kinds(views: Iterable[LiveFd]) -> None:
    """Ask sockets of which kind they are; it stays the same."""
    ask([(view, KINDS) for view in views if S_ISSOCK(view.st_mode)])


def open_views(
    pids: Iterable[int] | Mapping[int, int],
    *,
    netns_socket: NetnsSocket | None = None,
    guard: repair.Guard | None = None,
    seen: Seen | None = None,
) -> Views:
    """Read the descriptor tables of tasks: pids as seen from here, or these → as they see them.

    With a ``guard``, TCP connections may be put into repair mode to be read: only when the tasks
    are stopped. Raises Vanished, or Denied when /proc/PID/fd may not be read.
    """
    known = pids if isinstance(pids, Mapping) else dict.fromkeys(pids)
    return Views(known, netns_socket, guard, seen or {})


def look_before(pid: int) -> Sightings:
    """Descriptors of a task that need not stand still, to be recognized when it does."""
    task = TaskFiles(pid)
    found: dict[int, LiveFd] = {}
    try:
        looks = native.look_fds(pid, descriptors(pid))
        for fd, look in zip(looks.numbers, looks.all(), strict=True):
            with suppress(Error):  # closed meanwhile
                found[fd] = LiveFd(task, fd, look)
        ask_kinds(found.values())
    except BaseException:
        for view in found.values():
            view.close()
        task.close()
        raise
    return Sightings(looks, {fd: Sighting(view, view.answers) for fd, view in found.items()})


def leave(seen: Seen) -> None:
    """Close what was opened to look at them."""
    for sightings in seen.values():
        for one in sightings.found.values():
            one.view.close()
        for one in [*sightings.found.values()][:1]:
            one.view.task.close()


def _table(task: TaskFiles, seen: Sightings | None) -> dict[int, LiveFd]:
    """Views of a task's descriptors: those that were seen, where nothing of them has changed."""
    found = {}
    known = seen.found if seen else {}
    looks = native.look_fds(task.pid, descriptors(task.pid), seen.looks if seen else None)
    for i, (fd, is_same) in enumerate(zip(looks.numbers, looks.same(), strict=True)):
        before = known.get(fd) if is_same else None
        if before is None:
            found[fd] = LiveFd(task, fd, looks.at(i))
            continue
        found[fd] = view = before.view
        view.told(before.kinds)
        view.task, view.ns_pid = task, task.ns_pid
    return found


def free_port(pid: int, fd: int, end: End, guard: repair.Guard) -> None:
    """`LiveFd.free_port` of one descriptor."""
    task = TaskFiles(pid, guard=guard)
    view = LiveFd(task, fd)
    try:
        view.free_port(end)
    finally:
        view.close()
        task.close()


def add_name(pid: int, fd: int, path: str) -> None:
    """Give a descriptor's file a further name in the task's root (linkat(2), AT_SYMLINK_FOLLOW)."""
    with translated(f"pid {pid}, fd {fd}", path):
        new = f"/proc/{pid}/root{path}"
        os.link(f"/proc/{pid}/fd/{fd}", new, src_dir_fd=-1, follow_symlinks=True)


def remove_name(pid: int, path: str) -> None:
    """Take such a name away."""
    with translated(f"pid {pid}", path):
        os.unlink(f"/proc/{pid}/root{path}")
