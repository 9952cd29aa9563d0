# SPDX-License-Identifier: Apache-2.0
"""One live descriptor of a stopped task.

The copy that is made of it (pidfd_getfd) shares the task's open file description: see `fdcalls`.
"""

import errno
import os
from collections.abc import Mapping, Sequence

from torpor.engine import native
from torpor.engine.asking import Answers, Call, pieces_of
from torpor.engine.errors import Error, KernelError, Refused
from torpor.engine.kernel import boundfile, bpf, fdcalls, netlink, repair, ttyqueue, watches
from torpor.engine.kernel.answered import Answered
from torpor.engine.kernel.fdtexts import (
    about,
    epoll_targets_of,
    from_os,
    parse_fdinfo,
    read,
    text_of,
    translated,
)
from torpor.engine.kernel.taskfiles import TaskFiles
from torpor.engine.kind import BoundFile, BpfContent, End, FdView, Message, TcpRepair, TerminalQueue

CONTENT_STEP = 1 << 20


class LiveFd(Answered):
    """One descriptor. Attributes are those of `FdView`."""

    __slots__ = (
        "_copy", "_magic", "_messages", "fd", "flags", "info", "link", "mnt_id", "ns_pid", "pid",
        "pos", "st_blksize", "st_dev", "st_gid", "st_ino", "st_mode", "st_nlink", "st_rdev",
        "st_size", "st_uid", "task",
    )  # fmt: skip

    def __init__(self, task: TaskFiles, fd: int, look: native.FdLook | None = None) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = task.pid, task.ns_pid, fd
        self._answers: Answers | None = None
        self._rank = -1
        self._copy = -1
        self._messages: Sequence[Message] | None = None
        self._magic: int | None = None
        self._look(task.pid, look)

    def _look(self, pid: int, look: native.FdLook | None = None) -> None:
        """Take what /proc tells of it in a task (it may be ours)."""
        subject, path = f"task {self.ns_pid}, fd {self.fd}", f"/proc/{pid}/fd/{self.fd}"
        (found,) = (look,) if look else native.look_fds(pid, [self.fd]).all()
        self.link = text_of(_told(found.link, subject, path))
        # a directory of /proc whose task has ended has no status any more
        if found.error and not (found.error == -errno.ENOENT and self.link.startswith("/proc/")):
            raise from_os(OSError(-found.error, ""), subject, path)
        self._take(found)
        head, self.info = parse_fdinfo(text_of(_told(found.info, subject, path)))
        self.pos = int(head.get("pos", "0"))
        self.flags = int(head.get("flags", "0"), 8)
        self.mnt_id = int(head.get("mnt_id", "-1"))

    def _take(self, status: os.stat_result | native.FdLook) -> None:
        self.st_mode, self.st_dev, self.st_ino = status.st_mode, status.st_dev, status.st_ino
        self.st_rdev, self.st_size, self.st_nlink = status.st_rdev, status.st_size, status.st_nlink
        self.st_uid, self.st_gid, self.st_blksize = status.st_uid, status.st_gid, status.st_blksize

    @property
    def subject(self) -> str:
        """`task 41, fd 7 -> pipe:[9123]`."""
        return f"task {self.ns_pid}, fd {self.fd} -> {self.link}"

    @property
    def path(self) -> str:
        """The link in /proc that opens the same file anew."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def absolute(self) -> bytes:
        """Its link where that is a path, as the kernel takes it."""
        return os.fsencode(self.link) if self.link.startswith("/") else b""

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
        with translated(self.subject, f"/proc/{self.pid}/cwd"):
            return os.readlink(f"/proc/{self.pid}/cwd")

    @property
    def copy(self) -> int:
        """A descriptor of ours for the same open file description."""
        if self._copy < 0:
            self.task.must_stand(self.subject)
            try:
                self._copy = native.pidfd_getfd(self.task.pidfd, self.fd)
            except Error as error:
                raise about(error, self.subject) from error
        return self._copy

    def close(self) -> None:
        """Close the copy."""
        if self._copy >= 0:
            os.close(self._copy)
            self._copy = -1

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes | None:
        """None when the socket does not know the option."""
        found = self._told(Call.OPTION, level, option)
        if found is not None and not self._may_be_cut(level, option, size_bytes):
            return None if found[0] < 0 else found[1]
        return fdcalls.getsockopt(self.copy, level, option, size_bytes, self.subject)

    def int_options(self, wanted: Sequence[tuple[int, int]]) -> list[int | None]:
        """Values of int options, given as (level, option), in one go."""
        found = self._told_options(wanted)
        return native.int_options(self.copy, wanted, self.subject) if found is None else found

    def sockname(self) -> bytes:
        """Raw sockaddr."""
        found = self._told(Call.SOCKNAME)
        return found[1] if found is not None else fdcalls.sockname(self.copy, self.subject)

    def peername(self) -> bytes | None:
        """Raw sockaddr, None when not connected."""
        found = self._told(Call.PEERNAME)
        if found is not None:
            return None if found[0] < 0 else found[1]
        return fdcalls.peername(self.copy)

    def ioctl(self, request: int, buffer: bytes) -> bytes:
        """The buffer after the call. Raises KernelError."""
        found = self._told(Call.IOCTL, request)
        return (
            found[1]
            if found is not None
            else fdcalls.ioctl(self.copy, request, buffer, self.subject)
        )

    def fcntl(self, command: int, argument: int = 0) -> int:
        """Raises KernelError."""
        found = None if argument else self._told(Call.FCNTL, command)
        return (
            found[0]
            if found is not None
            else fdcalls.fcntl_value(self.copy, command, argument, self.subject)
        )

    def fcntl_bytes(self, command: int, buffer: bytes) -> bytes | None:
        """As ioctl; None when the command is unknown."""
        found = self._told(Call.FCNTL_BYTES, command)
        if found is not None:
            return None if found[0] < 0 else found[1]
        return fdcalls.fcntl_buffer(self.copy, command, buffer, self.subject)

    def poll_events(self) -> int:
        """Revents of poll(2) right now."""
        found = self._told(Call.POLL)
        return found[0] if found is not None else fdcalls.poll_events(self.copy)

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
        with translated(self.subject, folder):
            return {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}

    def mount_point(self, mount_id: int | None, device: int) -> str | None:
        """Path in the task's root of a mount, by its id, or else of any mount of a device."""
        return watches.mount_point(self.pid, mount_id, device)

    def settle_timer(self) -> None:
        """Have the kernel count ticks that are due, and read ``info`` again."""
        fdcalls.timerfd_gettime(self.copy, self.subject)
        self.info = parse_fdinfo(read(f"/proc/{self.pid}/fdinfo/{self.fd}"))[1]

    def pipe_pieces(self) -> Sequence[bytes]:
        """What is queued in a pipe, not consumed: a stream at once, each packet apart."""
        if self.is_quiet:
            return []
        told = self._told(Call.PIPE)
        if told is not None and told[0] > 0:
            return pieces_of(told[1])
        with translated(self.subject, self.path):
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
        if self._messages is None and self.is_quiet:
            return []
        if self._messages is None:
            return fdcalls.peek_messages(self.copy, self.subject)
        return self._messages

    def bound_file(self) -> BoundFile | None:
        """The file of a unix socket's name; None without one, or without the right to ask."""
        return boundfile.find(self.copy, self.task.directory("root"))

    def is_of_own_network(self) -> bool:
        """Whether a socket is of the network namespace that its task is in."""
        found = self._told(Call.OPTION, fdcalls.SOL_SOCKET, fdcalls.SO_NETNS_COOKIE)
        cookie = fdcalls.netns_cookie(self.copy) if found is None else found[1] or None
        return cookie == self.task.netns_cookie

    def source_filter(
        self, level: int, interface: int, group: bytes
    ) -> tuple[bool, tuple[bytes, ...]] | None:
        """Whether the sources are excluded, and these; None when it is no member."""
        return fdcalls.source_filter(self.copy, level, interface, group)

    def net_table(self, name: str) -> str:
        """Text of a file in /proc/PID/net of the holder, empty when there is none."""
        try:
            return read(f"/proc/{self.task.pid}/net/{name}")
        except FileNotFoundError:
            return ""

    def in_flight(self) -> Sequence[Sequence[FdView]]:
        """The descriptors of each queued message that has some."""
        rights: list[list[int]] = []
        # An empty message can be peeked at once only.
        self._messages = fdcalls.peek_messages(self.copy, self.subject, rights)
        found = [[InFlightFd(self.task, fd) for fd in fds] for fds in rights]
        for view in (view for views in found for view in views):
            self.task.closing.callback(view.close)
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
        with translated(self.subject, self.path):
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
        place = self._told_place() if path == self.link else None
        if place is not None:
            return place
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
            raise from_os(error, self.subject, path) from error
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def open_path(self, path: str, flags: int) -> int:
        """A descriptor of ours for a path inside the task's root. Raises OSError."""
        self.task.must_stand(self.subject)
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
        return epoll_targets_of(self.info)

    def file_order(self, other: FdView) -> int:
        """0 for one open file description; -1 and 1 are an order of all there are."""
        if isinstance(other, LiveFd) and self._rank >= 0 and other._rank >= 0:
            return (self._rank > other._rank) - (self._rank < other._rank)
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


class InFlightFd(LiveFd):
    """A descriptor that waits in a socket of a task; ``fd`` is our copy of it."""

    __slots__ = ()

    def __init__(self, task: TaskFiles, fd: int) -> None:
        self.task = task
        self.pid, self.ns_pid, self.fd = os.getpid(), task.ns_pid, fd
        self._copy, self._messages, self._magic = fd, None, None
        self._answers, self._rank = None, -1
        self._look(self.pid)

    @property
    def subject(self) -> str:
        """`task 41, in flight -> pipe:[9123]`."""
        return f"task {self.ns_pid}, in flight -> {self.link}"

    @property
    def cwd(self) -> str:
        """That of the task which holds the socket."""
        with translated(self.subject, f"/proc/{self.task.pid}/cwd"):
            return os.readlink(f"/proc/{self.task.pid}/cwd")


def _told(found: bytes | int, subject: str, path: str) -> bytes:
    if isinstance(found, int):
        raise from_os(OSError(-found, ""), subject, path)
    return found
