# SPDX-License-Identifier: Apache-2.0
"""The contract of a kind of kernel object that is reached by a descriptor.

A kind is one module with both its sides; `engine/kinds.py` lists them. In a module, in this
order: the *Facts* comment, the frozen dataclass of its state, `collect`, `check`, `encode`,
`decode`, `plan`, `late`, LIMITS, and at the end one `KIND = ...` object that satisfies
`FileKind`. Kinds read through the view they are given and touch nothing themselves.

How descriptors come back: the root of the tree creates every open file description once,
each at a service number (`PlanContext.fd`), before it forks; children inherit the whole
table, every task then puts what it holds at its own numbers and closes the service range.
So sharing by fork, dup and CLONE_FILES needs no mechanism of its own. What must be done with
the final numbers in place (epoll registrations) is returned by `late`.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, NamedTuple, NewType, Protocol, TypeVar

from torpor.engine.asking import Answers, Questions
from torpor.engine.errors import Refused
from torpor.engine.options import TcpPolicy
from torpor.engine.program.ops import Op

FileId = NewType("FileId", int)
State = TypeVar("State")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A case that a kind refuses: a stable word, what it is, what to do about it."""

    case: str
    what: str
    remedy: str
    is_passing: bool = False
    """A running workload comes out of it by itself, mostly within moments."""


def refuse(limit: Limit, subject: str, cause: str = "") -> Refused:
    """The error for a limit met at ``subject``."""
    error = Refused(limit.what, subject=subject, cause=cause, remedy=limit.remedy)
    error.is_passing = limit.is_passing
    return error


class FdView(Protocol):
    """One descriptor of a task, as it can be read from outside.

    All strings are decoded with surrogateescape. Live implementation: `kernel/livefd.py`;
    tests: `kernel/recorded.py`.
    """

    pid: int
    """Of the task, as seen from here."""
    ns_pid: int
    """Of the task, as it sees itself."""
    fd: int
    link: str
    """Text of /proc/PID/fd/N."""
    flags: int
    """File status flags incl. access mode, from fdinfo (octal there); O_CLOEXEC is included."""
    pos: int
    mnt_id: int
    info: Sequence[str]
    """Lines of fdinfo after pos, flags, mnt_id, ino."""
    st_mode: int
    st_dev: int
    st_ino: int
    st_rdev: int
    st_size: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_blksize: int

    @property
    def fs_magic(self) -> int:
        """f_type of fstatfs(2)."""

    @property
    def subject(self) -> str:
        """`task 41, fd 7 -> pipe:[9123]`."""

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes | None:
        """None when the socket does not know the option."""

    def int_options(self, wanted: "Sequence[tuple[int, int]]") -> "list[int | None]":
        """Values of int options, given as (level, option); None when the socket knows it not."""

    def sockname(self) -> bytes:
        """Raw sockaddr."""

    def peername(self) -> bytes | None:
        """Raw sockaddr, None when not connected."""

    def ioctl(self, request: int, buffer: bytes) -> bytes:
        """The buffer after the call. Raises KernelError."""

    def fcntl(self, command: int, argument: int = 0) -> int:
        """Raises KernelError."""

    def fcntl_bytes(self, command: int, buffer: bytes) -> bytes | None:
        """As ioctl; None when the command is unknown."""

    def poll_events(self) -> int:
        """Revents of poll(2) right now, asked for POLLIN, POLLPRI, POLLOUT and POLLRDHUP."""

    def watch_path(self, device: int, inode: int, handle_type: int, handle: bytes) -> str | None:
        """Path inside the task's root of an inotify watch, None when it cannot be found.

        The arguments are s_dev, ino and the file handle of fdinfo (open_by_handle_at(2)).
        """

    def queue_attributes(self) -> tuple[int, int, int]:
        """Of a message queue: most messages, bytes of one, messages that are there."""

    def namespaces(self) -> Mapping[str, str]:
        """Links of /proc/PID/ns of the task: `net` → `net:[4026531833]`."""

    def mount_point(self, mount_id: int | None, device: int) -> str | None:
        """Path in the task's root of a mount, by its id, or else of any mount of a device."""

    def pipe_pieces(self) -> "Sequence[bytes]":
        """What is queued in a pipe, not consumed (tee): a stream at once, each packet apart."""

    @property
    def is_queue_told(self) -> bool:
        """Whether `pipe_pieces` knows already."""

    def settle_timer(self) -> None:
        """Have timerfd_gettime(2) count the ticks that are due, and read ``info`` again."""

    def bpf_content(self) -> "BpfContent":
        """Name and content of a BPF map that is a hash or an array."""

    def terminal_queue(self) -> "TerminalQueue":
        """What is queued in the pseudo terminal of this master; it stays queued."""

    def peek_messages(self) -> "Sequence[Message]":
        """Queued messages (or one chunk of a stream) of a socket, not consumed."""

    def bound_file(self) -> "BoundFile | None":
        """The file of a unix socket's name; None without one, or without the right to ask."""

    def is_of_own_network(self) -> bool:
        """Whether a socket is of the network namespace that its task is in."""

    def source_filter(
        self, level: int, interface: int, group: bytes
    ) -> "tuple[bool, tuple[bytes, ...]] | None":
        """Of a member of a multicast group: whether the sources are excluded, and these.

        None when it is none.
        """

    def net_table(self, name: str) -> str:
        """Text of a file in /proc/PID/net, empty when there is none."""

    def in_flight(self) -> "Sequence[Sequence[FdView]]":
        """The descriptors of each queued message that has some (SCM_RIGHTS), not consumed."""

    def tcp_repair(self, *, connected: bool) -> "TcpRepair | None":
        """What TCP_REPAIR tells of a connection; None without the right to it.

        ``connected`` is false when only the SYN is sent.
        """

    def file_content(self, limit_bytes: int) -> bytes:
        """Whole content by pread, for memfds and unlinked files; Refused above the limit."""

    def data_ranges(self) -> "Sequence[tuple[int, int]]":
        """(start, end) of what is data in a regular file, by lseek(SEEK_DATA)."""

    def read_range(self, offset: int, size_bytes: int) -> bytes:
        """Content by pread, shorter at the end of the file."""

    def times_ns(self) -> tuple[int, int]:
        """atime and mtime."""

    def xattrs(self) -> Mapping[str, bytes]:
        """Extended attributes that can be read; none of what is open with O_PATH."""

    def symlink_target(self) -> str:
        """What a symbolic link (O_PATH, O_NOFOLLOW) leads to."""

    def other_name(self, folder: str) -> str | None:
        """Another path of the same inode inside the task's root, looked for around ``folder``."""

    def path_stat(self, path: str) -> "tuple[int, int] | None":
        """(st_dev, st_ino) of a path inside the task's root, not following a last symlink."""

    def netlink(self, family: int, protocol: int, request: bytes) -> bytes:
        """A netlink reply (all parts) from a socket in the task's network namespace."""

    def epoll_targets(self) -> "Sequence[tuple[int, int, int, int]]":
        """(tfd, events, data, index of the same tfd) of an epoll descriptor."""

    def is_own_epoll_target(self, tfd: int, index: int) -> bool:
        """Whether it was answered that the target is what its task has as ``tfd``."""

    def file_order(self, other: "FdView") -> int:
        """kcmp(KCMP_FILE): 0 for one description, else which one the kernel puts first."""

    def epoll_target_is(self, tfd: int, index: int, other: "FdView") -> bool:
        """kcmp(KCMP_EPOLL_TFD): the target registered under tfd is other's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A queued message; ``address`` is a raw sockaddr.

    ``fds`` > 0 counts descriptors in flight, and ``rights`` are their descriptions.
    """

    data: bytes
    address: bytes = b""
    fds: int = 0
    rights: tuple[FileId, ...] = ()
    creds: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundFile:
    """What bind(2) has made for a unix socket.

    ``paths`` are its names by now, inside the task's root, as far as they were found of ``links``;
    the one that it was made by, or moved to, is the first. When that is gone, ``was`` is what it
    was last; ``folder`` is the closest directory of that which is there.
    """

    paths: tuple[str, ...]
    was: str
    folder: str
    mode: int = 0o777
    uid: int = 0
    gid: int = 0
    links: int = 1


class Stopped(Enum):
    """What has stopped the output of a terminal."""

    NO = ""
    BY_CHARACTER = "by character"
    BY_CALL = "by call"


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalQueue:
    """``output`` is for the master. ``lines`` and then ``rest`` (raw, or not ended) are input.

    A line is what one read(2) gives; without a line end it was ended by an end-of-file.
    """

    output: bytes = b""
    lines: tuple[bytes, ...] = ()
    rest: bytes = b""
    stopped: Stopped = Stopped.NO


NOTHING_QUEUED = TerminalQueue()


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfContent:
    """What a BPF map holds, one key and value behind the other."""

    name: bytes
    ifindex: int = 0
    count: int = 0
    keys: bytes = b""
    values: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpRepair:
    """What only TCP_REPAIR tells of a connection (`kernel/repair.py`).

    ``sent`` is the send queue: not acknowledged bytes, the last ``unsent`` of them (a FIN counts)
    never sent. The sequence numbers are those after the last byte of each queue. ``window`` is
    struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    """

    received: bytes
    sent: bytes
    in_sequence: int
    out_sequence: int
    unsent: int = 0
    mss: int = 0
    timestamp: int = 0
    window: tuple[int, ...] = ()


class End(Enum):
    """How a TCP connection ends when its tasks are killed."""

    FIN = "fin"
    """As the kernel closes it; SO_REUSEADDR lets the port be bound again in TIME_WAIT."""
    RESET = "reset"
    """By a RST, without TIME_WAIT."""
    SILENT = "silent"
    """No packet is sent: it will go on."""


class Holder(NamedTuple):
    """One use of an open file description: a task (its pid inside) and its number.

    No frozen dataclass: one is made for each descriptor of a stopped tree.
    """

    task: int
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who has a terminal as the controlling one: pids inside; ``pgrp`` 0 is none of the tree.

    ``without`` are members of the session that have given it up (TIOCNOTTY).
    """

    sid: int
    pgrp: int = 0
    without: tuple[int, ...] = ()


Ask = Callable[[Sequence[tuple[FdView, Questions]]], Sequence[Answers | None]]


class Foresight(NamedTuple):
    """What is known of a view before its task is stopped."""

    kind: "FileKind[Any] | None"
    looks: Hashable
    """What all descriptors of its description have in common."""
    answers: Answers | None = None
    """Those that its kind's `collect` would do with."""
    questions: Questions | None = None
    """What its kind asks."""


@dataclass(slots=True, kw_only=True)
class DumpContext:
    """What kinds may know of a dump. ``views`` has one view for each description."""

    tcp: TcpPolicy
    container: bool
    ghost_limit_bytes: int
    views: Mapping[FileId, FdView] = field(default_factory=dict)
    holders: Mapping[FileId, Sequence[Holder]] = field(default_factory=dict)
    mapped: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """Inode number of a memfd → ranges of it that the tasks map: memory takes these."""
    loose: dict[int, Sequence[tuple[int, bytes]]] = field(default_factory=dict)
    """Inode number of a memfd → (offset, bytes) of what nobody maps."""
    warn: Callable[[str], None] = lambda _: None
    tasks: Mapping[int, int] = field(default_factory=dict)
    """Every task of the tree: its pid as seen from here → its pid inside."""
    owners: Mapping[int, int] = field(default_factory=dict)
    """Every task, thread and process group of the tree: as seen from here → inside."""
    threads: Mapping[int, int] = field(default_factory=dict)
    """The same of every thread."""
    realtime_ns: int = 0
    """CLOCK_REALTIME when the tree was frozen; 0 when not known."""
    in_flight: Mapping[int, Sequence[tuple[FileId, ...]]] = field(default_factory=dict)
    """Inode of a unix socket → what each queued message with descriptors carries."""
    skip_in_flight: bool = False
    """Connections that are not accepted yet may be lost."""
    same_netns: bool = True
    """The tree is in our own network namespace."""
    half_pipes: bool = False
    """A pipe whose other end is outside may come back with one end only, as with CRIU."""
    link_remap: bool = False
    """Files without the name that they were opened by may be given another."""
    links: "list[tuple[FdView, str]]" = field(default_factory=list)
    """Names to make while the tree is frozen: a kind asks, the dump does it."""
    is_stopped: bool = True
    """The tasks stand still: what cannot be looked at without touching may be looked at."""
    shell_job: bool = False
    """The caller's terminal will take the place of the tree's."""
    external: frozenset[str] = frozenset()
    """Names of what the caller will replace: `tty[8800:1a]`."""
    terminals: Mapping[int, Session] = field(default_factory=dict)
    """Device number of each controlling terminal of the tree → its session."""
    foreseen: "Mapping[FdView, Foresight]" = field(default_factory=dict)
    """What was known of views before their tasks were stopped (`files/grouping.py`)."""
    rank: "Callable[[Iterable[Sequence[FdView]]], None] | None" = None
    """Compares the descriptions of views that look alike in one go."""
    ask: "Ask | None" = None
    """Asks many views in one go; what each has answered."""
    cache: dict[str, Any] = field(default_factory=dict)
    """For what a kind reads once for all its objects (a sock_diag dump)."""

    def is_stdio(self, file_id: FileId) -> bool:
        """Whether the root of the tree has it as 0, 1 or 2."""
        root = min((h.task for held in self.holders.values() for h in held), default=0)
        return any(h.task == root and h.fd <= 2 for h in self.holders.get(file_id, ()))


class ImageSink(Protocol):
    """Where `encode` puts image entries. ``name`` is the image file without `.img`."""

    def add(self, name: str, message: Any, payload: bytes = b"") -> None:  # noqa: ANN401
        """Append an entry (a protobuf message of torpor.engine.images.proto)."""

    def begin(self, name: str) -> None:
        """Have the image there, also when it gets no entry."""

    def extra(self, section: str, key: str, value: Any) -> None:  # noqa: ANN401
        """Something CRIU's format cannot say, JSON-able, for our own file torpor.json."""


class ImageSource(Protocol):
    """Where `decode` takes image entries from."""

    def files(self, type_name: str) -> Iterable[tuple[FileId, Any]]:
        """(id, message) of every FileEntry of a type, e.g. "PIPE" → PipeEntry."""

    def entries(self, name: str) -> Iterable[tuple[Any, bytes]]:
        """(message, payload) of an image file; nothing when it does not exist."""

    def extra(self, section: str, key: str) -> Any:  # noqa: ANN401
        """What `ImageSink.extra` kept, or None."""


@dataclass(slots=True, kw_only=True)
class PlanContext:
    """What kinds may know while a restore is planned."""

    fds: Mapping[FileId, int]
    """Service number at which each description is to be created."""
    holders: Mapping[FileId, Sequence[Holder]]
    spare_fd: int
    """First service number that no description uses."""
    stdio: Mapping[int, int] = field(default_factory=dict)
    """Of a takeover: 0, 1, 2 → service number that holds the new container's stdio."""
    inherit: Mapping[str, int] = field(default_factory=dict)
    """External name (`pipe:[123]`) → service number that holds its replacement."""
    path_map: Mapping[str, str] = field(default_factory=dict)
    address_map: Mapping[str, str] = field(default_factory=dict)
    """Old IP address → new one, for sockets bound to an address that is not there any more."""
    new_container: bool = False
    check_files: bool = False
    """Files must have the mode and size that they had."""
    uid: int = 0
    """User id with which the operations run."""
    root: int = 0
    """Pid inside of the task that creates everything, before it forks the others."""
    helpers: set[int] = field(default_factory=set)
    """Pids that must be taken while descriptors are created, of tasks that have ended or are not
    there yet; `Op.by` names one. A kind adds to it."""
    tcp_repair: bool = False
    """The root has the rights to restore TCP connections by TCP_REPAIR."""
    tcp_close: bool = False
    """Every TCP connection comes back as a closed socket (CRIU's --tcp-close)."""
    terminal: int | None = None
    """Service number of the caller's terminal, where it takes the place of the tree's."""
    leaders: frozenset[int] = frozenset()
    """Pids of the tree's living session leaders."""
    warn: Callable[[str], None] = lambda _: None

    def fd(self, file_id: FileId) -> int:
        """Service number of a description."""
        return self.fds[file_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class LateOp:
    """An operation that a holder runs once its descriptors have their final numbers.

    ``last`` ones run when its threads are there, only the descriptors that stay, and packets pass.
    """

    task: int
    op: Op
    last: bool = False


class FileKind(Protocol, Generic[State]):
    """A kind of open file description."""

    @property
    def name(self) -> str:
        """A stable word."""

    @property
    def types(self) -> Sequence[str]:
        """Names of CRIU's fd_types it reads and writes: ("PIPE",)."""

    @property
    def limits(self) -> Sequence[Limit]:
        """The cases it refuses."""

    def matches(self, view: FdView) -> bool:
        """Whether a descriptor is of this kind. Exactly one kind must say yes."""

    def questions(self, view: FdView) -> Questions | None:
        """What `collect` will ask of it, to be asked of all descriptors in one go; None: nothing.

        A call that is not among them is made when `collect` makes it.
        """

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Whether `collect` makes no other call: it waits until after the pause then.

        This is told by what was answered. What is in `DumpContext.cache` by now is not asked again.
        """

    def collect(self, view: FdView, context: DumpContext) -> State:
        """Read the state. Raises Refused for a case in `limits`."""

    def check(self, states: Mapping[FileId, State], context: DumpContext) -> Iterable[Refused]:
        """Refusals that need all descriptions of the kind to be known."""

    def encode(self, states: Mapping[FileId, State], images: ImageSink) -> None:
        """Write CRIU's messages: a FileEntry in `files` each, and whatever goes with them."""

    def decode(self, images: ImageSource) -> Mapping[FileId, State]:
        """Read them back."""

    def plan(self, states: Mapping[FileId, State], context: PlanContext) -> Sequence[Op]:
        """Operations of the root that create every description at `context.fd(id)`."""

    def late(self, states: Mapping[FileId, State], context: PlanContext) -> Sequence[LateOp]:
        """Operations of holders after all descriptors have their final numbers."""
