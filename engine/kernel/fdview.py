# SPDX-License-Identifier: Apache-2.0
"""Live descriptors of stopped tasks: the `FdView` that kinds read during a dump.

    with open_views([4711, 4712]) as views:
        for view in views.of(4711):
            ...

What /proc tells is read at once for a whole table; a copy of a descriptor (pidfd_getfd) is
made only when a kind asks for more than that, and is closed with the view. The copy shares
the task's open file description: see `fdcalls`.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from torpor.engine import native
from torpor.engine.errors import Denied, Error, KernelError, Refused, Vanished
from torpor.engine.kernel import bpf, fdcalls, netlink, repair, ttyqueue, watches
from torpor.engine.kernel.filefacts import FileFacts
from torpor.engine.kind import BpfContent, End, FdView, Message, TcpRepair, TerminalQueue

NetnsSocket = Callable[[int, int], int]
"""(pid, netlink protocol) → a raw netlink socket in that task's network namespace, ours to
close. The dump makes it by an injected socket(2) and pidfd_getfd."""

CONTENT_STEP = 1 << 20
READ_SIZE = 1 << 16
DIRECTORIES = ("cwd", "root")
HEADER_LINES = ("pos", "flags", "mnt_id", "ino")


class TaskFiles:
    """What the views of one task have in common: pidfd, root, working directory, namespace."""

    def __init__(
        self,
        pid: int,
        ns_pid: int | None = None,
        netns_socket: NetnsSocket | None = None,
        guard: repair.Guard | None = None,
    ) -> None:
        self.pid = pid
        self.ns_pid = _ns_pid(pid) if ns_pid is None else ns_pid
        self.netns_socket, self.guard = netns_socket, guard
        self._opened: dict[str, int] = {}
        self._netlink: dict[int, int] = {}
        self.magics: dict[int, int] = {}
        """Mount → its file system."""
        self.in_flight: list[InFlightFd] = []

    @property
    def pidfd(self) -> int:
        """A pidfd of the task."""
        if "pidfd" not in self._opened:
            self._opened["pidfd"] = native.pidfd_open(self.pid)
        return self._opened["pidfd"]

    def directory(self, name: str) -> int:
        """O_PATH descriptor of /proc/PID/cwd, or of the root that its paths start from.

        That is the root of its mount namespace, for a chroot does not change what /proc tells.
        """
        if name not in self._opened:
            path = f"/proc/{self.pid}/{name}"
            with _translated(f"task {self.ns_pid}", path):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
                if name == "root" and os.readlink(path) != "/":
                    fd = _topmost(fd)
            self._opened[name] = fd
        return self._opened[name]

    def netlink_socket(self, protocol: int) -> int:
        """A netlink socket in the task's network namespace; kept until `close`."""
        if protocol not in self._netlink:
            subject = f"task {self.ns_pid}"
            if same_netns(self.pid):
                self._netlink[protocol] = netlink.open_socket(protocol)
            elif self.netns_socket is not None:
                self._netlink[protocol] = self.netns_socket(self.pid, protocol)
            else:
                raise Refused(
                    "the task is in another network namespace and no socket there is at hand",
                    subject=subject,
                    remedy="stop the task first, so that one can be made in it",
                )
        return self._netlink[protocol]

    def close(self) -> None:
        """Close what was opened."""
        for view in self.in_flight:
            view.close()
        for fd in (*self._opened.values(), *self._netlink.values()):
            with suppress(OSError):
                os.close(fd)
        self._opened.clear()
        self._netlink.clear()


class LiveFd(FileFacts):
    """One descriptor. Attributes are those of `FdView`."""

    __slots__ = (
        "_copy", "_magic", "_messages", "fd", "flags", "info", "link", "mnt_id", "ns_pid",
        "pid", "pos", "st_dev", "st_gid", "st_ino", "st_mode", "st_nlink", "st_rdev", "st_size",
        "st_uid", "task",
    )  # fmt: skip

    def __init__(self, task: TaskFiles, fd: int, fdinfo: bytes | None = None) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, fd
        self._copy = -1
        self._messages: Sequence[Message] | None = None
        self._magic: int | None = None
        self._look(task.pid, fdinfo)

    def _look(self, pid: int, fdinfo: bytes | None = None) -> None:
        """Read what /proc tells of it in a task (it may be ours)."""
        path = f"/proc/{pid}/fd/{self.fd}"
        with _translated(f"task {self.ns_pid}, fd {self.fd}", path):
            self.link = os.readlink(path)
            self._take(_status(path, self.link))
            where = f"/proc/{pid}/fdinfo/{self.fd}"
            text = _read(where) if fdinfo is None else _text(fdinfo)
        head, self.info = _parse_fdinfo(text)
        self.pos = int(head.get("pos", "0"))
        self.flags = int(head.get("flags", "0"), 8)
        self.mnt_id = int(head.get("mnt_id", "-1"))

    def _take(self, status: os.stat_result) -> None:
        self.st_mode, self.st_dev, self.st_ino = status.st_mode, status.st_dev, status.st_ino
        self.st_rdev, self.st_size, self.st_nlink = status.st_rdev, status.st_size, status.st_nlink
        self.st_uid, self.st_gid = status.st_uid, status.st_gid

    @property
    def subject(self) -> str:
        """`task 41, fd 7 -> pipe:[9123]`."""
        return f"task {self.ns_pid}, fd {self.fd} -> {self.link}"

    @property
    def path(self) -> str:
        """The link in /proc that opens the same file anew."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def fs_magic(self) -> int:
        """f_type of the file system."""
        if self._magic is None:
            known = self.task.magics
            self._magic = known.get(self.mnt_id) or fdcalls.statfs_magic(self.path.encode())
            if self.mnt_id >= 0:
                known[self.mnt_id] = self._magic
        return self._magic

    @property
    def cwd(self) -> str:
        """Text of /proc/PID/cwd, to find what a relative name means."""
        with _translated(self.subject, f"/proc/{self.pid}/cwd"):
            return os.readlink(f"/proc/{self.pid}/cwd")

    @property
    def copy(self) -> int:
        """A descriptor of ours for the same open file description."""
        if self._copy < 0:
            try:
                self._copy = native.pidfd_getfd(self.task.pidfd, self.fd)
            except Error as error:
                raise _about(error, self.subject) from error
        return self._copy

    def close(self) -> None:
        """Close the copy."""
        if self._copy >= 0:
            os.close(self._copy)
            self._copy = -1

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes | None:
        """None when the socket does not know the option."""
        return fdcalls.getsockopt(self.copy, level, option, size_bytes, self.subject)

    def int_options(self, wanted: Sequence[tuple[int, int]]) -> list[int | None]:
        """Values of int options, given as (level, option), in one go."""
        return native.int_options(self.copy, wanted, self.subject)

    def sockname(self) -> bytes:
        """Raw sockaddr."""
        return fdcalls.sockname(self.copy, self.subject)

    def peername(self) -> bytes | None:
        """Raw sockaddr, None when not connected."""
        return fdcalls.peername(self.copy)

    def ioctl(self, request: int, buffer: bytes) -> bytes:
        """The buffer after the call. Raises KernelError."""
        return fdcalls.ioctl(self.copy, request, buffer, self.subject)

    def fcntl(self, command: int, argument: int = 0) -> int:
        """Raises KernelError."""
        return fdcalls.fcntl_value(self.copy, command, argument, self.subject)

    def fcntl_bytes(self, command: int, buffer: bytes) -> bytes | None:
        """As ioctl; None when the command is unknown."""
        return fdcalls.fcntl_buffer(self.copy, command, buffer, self.subject)

    def poll_events(self) -> int:
        """Revents of poll(2) right now."""
        return fdcalls.poll_events(self.copy)

    def watch_path(self, device: int, inode: int, handle_type: int, handle: bytes) -> str | None:
        """Path inside the task's root of an inotify watch; ``device`` as fdinfo has it."""
        watch = watches.Watch(device=device, inode=inode, handle_type=handle_type, handle=handle)
        return watches.find(self.pid, watch)

    def queue_attributes(self) -> tuple[int, int, int]:
        """Of a message queue: most messages, bytes of one, messages that are there."""
        return fdcalls.queue_attributes(self.copy, self.subject)

    def namespaces(self) -> Mapping[str, str]:
        """Links of /proc/PID/ns of the task."""
        folder = f"/proc/{self.pid}/ns"
        with _translated(self.subject, folder):
            return {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}

    def mount_point(self, mount_id: int | None, device: int) -> str | None:
        """Path in the task's root of a mount, by its id, or else of any mount of a device."""
        return watches.mount_point(self.pid, mount_id, device)

    def settle_timer(self) -> None:
        """Have the kernel count ticks that are due, and read ``info`` again."""
        fdcalls.timerfd_gettime(self.copy, self.subject)
        self.info = _parse_fdinfo(_read(f"/proc/{self.pid}/fdinfo/{self.fd}"))[1]

    def pipe_pieces(self) -> Sequence[bytes]:
        """What is queued in a pipe, not consumed: a stream at once, each packet apart."""
        with _translated(self.subject, self.path):
            reader = self._reader(os.O_RDONLY | os.O_NONBLOCK)
        try:
            return fdcalls.tee_pipe(reader, self.subject)
        finally:
            if reader != self._copy:
                os.close(reader)

    def bpf_content(self) -> BpfContent:
        """Name and content of a BPF map that is a hash or an array."""
        return bpf.content(self.copy, self.subject)

    def terminal_queue(self) -> TerminalQueue:
        """What is queued in the pseudo terminal of this master; it stays queued."""
        return ttyqueue.take(self.copy, self.subject)

    def peek_messages(self) -> Sequence[Message]:
        """Queued messages (or one chunk of a stream) of a socket, not consumed."""
        if self._messages is None:
            return fdcalls.peek_messages(self.copy, self.subject)
        return self._messages

    def net_table(self, name: str) -> str:
        """Text of a file in /proc/PID/net of the holder, empty when there is none."""
        try:
            return _read(f"/proc/{self.task.pid}/net/{name}")
        except FileNotFoundError:
            return ""

    def in_flight(self) -> Sequence[Sequence[FdView]]:
        """The descriptors of each queued message that has some."""
        rights: list[list[int]] = []
        # An empty message can be peeked at once only.
        self._messages = fdcalls.peek_messages(self.copy, self.subject, rights)
        found = [[InFlightFd(self.task, fd) for fd in fds] for fds in rights]
        self.task.in_flight += [view for views in found for view in views]
        return found

    def tcp_repair(self, *, connected: bool) -> TcpRepair | None:
        """What TCP_REPAIR tells; None without the right to it, or when the task may run."""
        if self.task.guard is None:
            return None
        return repair.read(self.copy, self.task.guard, self.subject, connected=connected)

    def file_content(self, limit_bytes: int) -> bytes:
        """Whole content by pread; Refused above the limit."""
        if self.st_size > limit_bytes:
            raise Refused(
                f"the file has {self.st_size:,} bytes and only open descriptors lead to it",
                subject=self.subject,
                cause=f"the limit is {limit_bytes:,} bytes",
                remedy="raise --ghost-limit",
            )
        content = bytearray()
        with _translated(self.subject, self.path):
            reader = self._reader(os.O_RDONLY)
            try:
                while len(content) <= limit_bytes:
                    step = os.pread(reader, CONTENT_STEP, len(content))
                    if not step:
                        break
                    content += step
            finally:
                if reader != self._copy:
                    os.close(reader)
        return bytes(content)

    def path_stat(self, path: str) -> tuple[int, int] | None:
        """(st_dev, st_ino) of a path inside the task's root, None when there is nothing.

        A relative one is taken from the task's working directory.
        """
        status = self._path_status(path)
        return None if status is None else (status.st_dev, status.st_ino)

    def path_perms(self, path: str) -> tuple[int, int, int] | None:
        """Mode (permission bits), uid and gid of a path, as `path_stat` finds it."""
        status = self._path_status(path)
        return None if status is None else (status.st_mode & 0o7777, status.st_uid, status.st_gid)

    def _path_status(self, path: str) -> os.stat_result | None:
        try:
            fd = self.open_path(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise _from_os(error, self.subject, path) from error
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def open_path(self, path: str, flags: int) -> int:
        """A descriptor of ours for a path inside the task's root. Raises OSError."""
        base = self.task.directory("root" if path.startswith("/") else "cwd")
        return fdcalls.open_beneath(base, path, flags)

    def netlink(self, family: int, protocol: int, request: bytes) -> bytes:
        """A netlink reply (all parts) from a socket in the task's network namespace."""
        if family != netlink.AF_NETLINK:
            raise Refused(f"a request to address family {family}", subject=self.subject)
        return netlink.ask(self.task.netlink_socket(protocol), request)

    def free_port(self, end: End) -> None:
        """Make a TCP socket leave nothing that keeps its port; its holders are killed next."""
        if end is End.SILENT and self.task.guard is not None:
            repair.keep_silent(self.copy, self.task.guard, self.subject)
            return
        fdcalls.set_reusable(self.copy, self.subject)
        if end is End.RESET:
            fdcalls.set_linger_zero(self.copy, self.subject)

    def epoll_targets(self) -> Sequence[tuple[int, int, int, int]]:
        """(tfd, events, data, index of the same tfd) of an epoll descriptor."""
        return _epoll_targets(self.info)

    def file_order(self, other: FdView) -> int:
        """0 for one open file description; -1 and 1 are an order of all there are."""
        found = native.kcmp(self.pid, other.pid, native.KCMP_FILE, self.fd, other.fd)
        return -1 if found == native.KCMP_LESS else found and 1

    def epoll_target_is(self, tfd: int, index: int, other: FdView) -> bool:
        """Whether the target registered under ``tfd`` is other's file."""
        slot = fdcalls.EpollSlot(self.fd, tfd, index)
        address = fdcalls.address_of(slot)
        try:
            kind = native.KCMP_EPOLL_TFD
            return native.kcmp(other.pid, self.pid, kind, other.fd, address) == 0
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise

    def _reader(self, flags: int) -> int:
        """The copy when it can be read, else a new open of the same file."""
        if self.flags & os.O_ACCMODE != os.O_WRONLY and not self.flags & os.O_PATH:
            return self.copy
        return os.open(self.path, flags | os.O_CLOEXEC)


class LiveDirectory(LiveFd):
    """The working or root directory of a task, as if it were open with O_PATH."""

    __slots__ = ("name",)

    def __init__(self, task: TaskFiles, name: str) -> None:
        self.task, self.name = task, name
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, -1
        self._copy, self._magic, self.info = -1, None, ()
        with _translated(self.subject, self.path):
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

    @property
    def is_gone(self) -> bool:
        """It was removed."""
        return not self.st_nlink


class MappedFd(LiveFd):
    """A file that a task maps, or its program; no descriptor of the tree need lead to it.

    Opened by us, by a link in /proc/PID: `map_files/7f00-7f10`, `exe`.
    """

    __slots__ = ("_mapped",)

    def __init__(self, task: TaskFiles, name: str, *, writable: bool) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, -1
        self._magic = None
        path = f"/proc/{task.pid}/{name}"
        self._copy = -1
        with _translated(f"task {task.ns_pid}, {name}", path):
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


class InFlightFd(LiveFd):
    """A descriptor that waits in a socket of a task; ``fd`` is our copy of it."""

    __slots__ = ()

    def __init__(self, task: TaskFiles, fd: int) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = os.getpid(), task.ns_pid, fd
        self._copy, self._messages, self._magic = fd, None, None
        self._look(self.pid)

    @property
    def subject(self) -> str:
        """`task 41, in flight -> pipe:[9123]`."""
        return f"task {self.ns_pid}, in flight -> {self.link}"

    @property
    def cwd(self) -> str:
        """That of the task which holds the socket."""
        with _translated(self.subject, f"/proc/{self.task.pid}/cwd"):
            return os.readlink(f"/proc/{self.task.pid}/cwd")


class Views:
    """The descriptors of several tasks. A context manager: all copies are closed at its end."""

    def __init__(
        self, pids: Iterable[int], netns_socket: NetnsSocket | None, guard: repair.Guard | None
    ) -> None:
        self.tasks: dict[int, TaskFiles] = {}
        self._views: dict[int, dict[int, LiveFd]] = {}
        self._mapped: list[MappedFd] = []
        for pid in pids:
            self.tasks[pid] = task = TaskFiles(pid, netns_socket=netns_socket, guard=guard)
            self._views[pid] = {fd: LiveFd(task, fd, info) for fd, info in _infos(pid)}

    def of(self, pid: int) -> Sequence[LiveFd]:
        """All of a task, by number."""
        return tuple(self._views[pid].values())

    def removed_directories(self, pids: Iterable[int]) -> Iterator[LiveDirectory]:
        """Working and root directories of tasks that were removed."""
        for pid in pids:
            task = self.tasks.setdefault(pid, TaskFiles(pid))
            for name in DIRECTORIES:
                view = LiveDirectory(task, name)
                if view.is_gone:
                    yield view

    def mapped(self, pid: int, name: str, *, writable: bool) -> MappedFd:
        """The file of a mapping, or the program, of any task."""
        if pid not in self.tasks:
            self.tasks[pid] = TaskFiles(pid)
        view = MappedFd(self.tasks[pid], name, writable=writable)
        self._mapped.append(view)
        return view

    def get(self, pid: int, fd: int) -> LiveFd:
        """One of them."""
        return self._views[pid][fd]

    def all(self) -> Mapping[int, Mapping[int, LiveFd]]:
        """Task → number → view."""
        return self._views

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_views(
    pids: Iterable[int],
    *,
    netns_socket: NetnsSocket | None = None,
    guard: repair.Guard | None = None,
) -> Views:
    """Read the descriptor tables of tasks (pids as seen from here).

    With a ``guard``, TCP connections may be put into repair mode to be read: only when the tasks
    are stopped. Raises Vanished, or Denied when /proc/PID/fd may not be read.
    """
    return Views(pids, netns_socket, guard)


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
    with _translated(f"pid {pid}, fd {fd}", path):
        new = f"/proc/{pid}/root{path}"
        os.link(f"/proc/{pid}/fd/{fd}", new, src_dir_fd=-1, follow_symlinks=True)


def remove_name(pid: int, path: str) -> None:
    """Take such a name away."""
    with _translated(f"pid {pid}", path):
        os.unlink(f"/proc/{pid}/root{path}")


def descriptors(pid: int) -> list[int]:
    """Numbers of a task's descriptors, sorted."""
    with _translated(f"task {pid}", f"/proc/{pid}/fd"):
        return sorted(map(int, os.listdir(f"/proc/{pid}/fd")))


def _status(path: str, link: str) -> os.stat_result:
    """stat(2); zeros for a directory of /proc whose task has ended, which has none any more."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        if not link.startswith("/proc/"):
            raise
        return os.stat_result([0] * 10)


def _topmost(fd: int) -> int:
    """The root of a directory's mount namespace: what has itself as its parent."""
    while True:
        above = os.open("..", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=fd)
        is_top = os.path.samestat(os.fstat(above), os.fstat(fd))
        os.close(fd)
        fd = above
        if is_top:
            return fd


def netns(pid: int) -> str:
    """A task's network namespace: `net:[4026531840]`."""
    with _translated(f"task {pid}", f"/proc/{pid}/ns/net"):
        return os.readlink(f"/proc/{pid}/ns/net")


def _infos(pid: int) -> list[tuple[int, bytes | None]]:
    """Numbers of a task's descriptors, each with its text of fdinfo when that could be read."""
    numbers = descriptors(pid)
    texts = native.read_texts([f"/proc/{pid}/fdinfo/{fd}" for fd in numbers])
    return [
        (fd, text if isinstance(text, bytes) else None)
        for fd, text in zip(numbers, texts, strict=True)
    ]


def same_netns(pid: int) -> bool:
    """Whether a task is in our network namespace."""
    return netns(pid) == netns(os.getpid())


def _parse_fdinfo(text: str) -> tuple[dict[str, str], Sequence[str]]:
    """The four values that every descriptor has, and the lines after them."""
    head: dict[str, str] = {}
    rest: list[str] = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not rest and name in HEADER_LINES and name not in head:
            head[name] = value.strip()
        else:
            rest.append(line)
    return head, tuple(rest)


def _epoll_targets(info: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """From lines `tfd: 5 events: 19 data: 5  pos:0 ino:61 sdev:7` (ep_show_fdinfo, v6.8)."""
    seen: dict[int, int] = {}
    found: list[tuple[int, int, int, int]] = []
    for line in info:
        words = line.replace(":", " ").split()
        if len(words) < 6 or words[0] != "tfd":
            continue
        tfd = int(words[1])
        index = seen.get(tfd, 0)
        seen[tfd] = index + 1
        found.append((tfd, int(words[3], 16), int(words[5], 16), index))
    return found


def _read(path: str) -> str:
    """A text of /proc; open(2) by hand takes a third of the time of a text file object."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = step = os.read(fd, READ_SIZE)
        while step:
            step = os.read(fd, READ_SIZE)
            text += step
    finally:
        os.close(fd)
    return _text(text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _ns_pid(pid: int) -> int:
    with _translated(f"task {pid}", f"/proc/{pid}/status"):
        status = _read(f"/proc/{pid}/status")
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def _about(error: Error, subject: str) -> Error:
    """The same error with the descriptor for its subject."""
    if isinstance(error, KernelError) and error.errno == errno.EBADF:
        return Vanished("the descriptor was closed while it was looked at", subject=subject)
    error.subject = subject
    return error


def _from_os(error: OSError, subject: str, path: str) -> Error:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return Vanished("gone while it was looked at", subject=subject, cause=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(
            f"{path} may not be read",
            subject=subject,
            cause=f"{os.strerror(error.errno)}; files of /proc/PID belong to the task's user",
            remedy="run as the owner of the task, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        )
    return KernelError(f"{path} cannot be read", errno=error.errno or 0, subject=subject)


@contextmanager
def _translated(subject: str, path: str) -> Iterator[None]:
    """OSError of a file in /proc to an error of ours."""
    try:
        yield
    except OSError as error:
        raise _from_os(error, subject, path) from error
