# SPDX-License-Identifier: Apache-2.0
"""Views and images made of plain data, for tests without a live task: RecordedFd, RecordedImages.

Whatever a test does not give answers as an ordinary file would; what a file would not answer
at all raises KeyError, so that a test cannot pass on an answer that nobody recorded.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torpor.engine.errors import KernelError, Refused
from torpor.engine.kind import (
    NOTHING_QUEUED,
    BoundFile,
    BpfContent,
    DumpContext,
    FdView,
    FileId,
    FileKind,
    Holder,
    Message,
    PlanContext,
    State,
    TcpRepair,
    TerminalQueue,
)
from torpor.engine.options import TcpPolicy


@dataclass(slots=True, kw_only=True, eq=False)
class RecordedFd:
    """Satisfies FdView. ``description`` tells open file descriptions apart (kcmp)."""

    pid: int = 1041
    ns_pid: int = 41
    fd: int = 3
    link: str = "/data/file"
    flags: int = 0
    pos: int = 0
    mnt_id: int = 27
    info: Sequence[str] = ()
    st_mode: int = 0o100644
    st_dev: int = 0xFE00
    st_ino: int = 1234
    st_rdev: int = 0
    st_size: int = 0
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_blksize: int = 4096
    fs_magic: int = 0xEF53

    description: object = None
    sockopts: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    socket_name: bytes = b""
    socket_peer: bytes | None = None
    ioctls: Mapping[int, bytes] = field(default_factory=dict)
    fcntls: Mapping[int, int] = field(default_factory=dict)
    fcntl_buffers: Mapping[int, bytes] = field(default_factory=dict)
    poll: int = 0
    watches: Mapping[int, str] = field(default_factory=dict)
    """Inode number → path."""
    pipe: bytes = b""
    is_queue_told: bool = True
    packets: Sequence[bytes] = ()
    mounts: Mapping[int, str] = field(default_factory=dict)
    """Mount id, or device, → mount point."""
    settled: Sequence[str] = ()
    queue: tuple[int, int, int] = (0, 0, 0)
    own_namespaces: Mapping[str, str] = field(default_factory=dict)
    typed: TerminalQueue = NOTHING_QUEUED
    bpf: BpfContent | None = None
    messages: Sequence[Message] = ()
    bound: BoundFile | None = None
    own_network: bool = True
    filters: Mapping[tuple[int, int, bytes], tuple[bool, tuple[bytes, ...]]] = field(
        default_factory=dict
    )
    """(level, interface, group) → filter of a multicast membership."""
    net_tables: Mapping[str, str] = field(default_factory=dict)
    flights: Sequence[Sequence[FdView]] = ()
    repair: TcpRepair | None = None
    content: bytes = b""
    paths: Mapping[str, tuple[int, int]] | None = None
    """None: the link itself is there, and nothing else."""
    ranges: Sequence[tuple[int, int]] | None = None
    """None: all of the content is data."""
    times: tuple[int, int] = (0, 0)
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    target: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    """Folder → another name of the file."""
    netlinks: Mapping[tuple[int, int, bytes], bytes] = field(default_factory=dict)
    targets: Sequence[tuple[int, int, int, int]] = ()
    own_targets: Collection[tuple[int, int]] = ()
    """(tfd, index) of what an epoll was found to watch at the same number of its task."""
    target_descriptions: Mapping[tuple[int, int], object] = field(default_factory=dict)
    """(tfd, index) → description that an epoll watches under that number."""

    @property
    def subject(self) -> str:
        """`task 41, fd 7 -> pipe:[9123]`."""
        return f"task {self.ns_pid}, fd {self.fd} -> {self.link}"

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes | None:
        """As recorded, None otherwise."""
        value = self.sockopts.get((level, option))
        return None if value is None else value[:size_bytes]

    def int_options(self, wanted: Sequence[tuple[int, int]]) -> list[int | None]:
        """As recorded, None otherwise."""
        found = [self.getsockopt(level, option, 4) for level, option in wanted]
        return [
            None if raw is None else int.from_bytes(raw, "little", signed=len(raw) == 4)
            for raw in found
        ]

    def sockname(self) -> bytes:
        """As recorded."""
        return self.socket_name

    def peername(self) -> bytes | None:
        """As recorded."""
        return self.socket_peer

    def ioctl(self, request: int, buffer: bytes) -> bytes:
        """As recorded."""
        del buffer
        return self.ioctls[request]

    def fcntl(self, command: int, argument: int = 0) -> int:
        """As recorded; the signal (F_GETSIG, 11) is none by default."""
        del argument
        if command == 11:
            return self.fcntls.get(command, 0)
        result = self.fcntls[command]
        if result < 0:
            raise KernelError("fcntl failed", errno=-result, subject=self.subject)
        return result

    def fcntl_bytes(self, command: int, buffer: bytes) -> bytes | None:
        """As recorded; zeros by default."""
        return self.fcntl_buffers.get(command, bytes(len(buffer)))

    def poll_events(self) -> int:
        """As recorded."""
        return self.poll

    def watch_path(self, device: int, inode: int, handle_type: int, handle: bytes) -> str | None:
        """As recorded."""
        del device, handle_type, handle
        return self.watches.get(inode)

    def queue_attributes(self) -> tuple[int, int, int]:
        """As recorded."""
        return self.queue

    def namespaces(self) -> Mapping[str, str]:
        """As recorded."""
        return self.own_namespaces

    def mount_point(self, mount_id: int | None, device: int) -> str | None:
        """As recorded."""
        return self.mounts.get(device if mount_id is None else mount_id)

    def pipe_pieces(self) -> Sequence[bytes]:
        """As recorded."""
        return self.packets or ([self.pipe] if self.pipe else [])

    def settle_timer(self) -> None:
        """As recorded, when something is."""
        self.info = self.settled or self.info

    def bpf_content(self) -> BpfContent:
        """As recorded."""
        assert self.bpf is not None
        return self.bpf

    def terminal_queue(self) -> TerminalQueue:
        """As recorded."""
        return self.typed

    def peek_messages(self) -> Sequence[Message]:
        """As recorded."""
        return self.messages

    def bound_file(self) -> BoundFile | None:
        """As recorded."""
        return self.bound

    def is_of_own_network(self) -> bool:
        """As recorded."""
        return self.own_network

    def source_filter(
        self, level: int, interface: int, group: bytes
    ) -> tuple[bool, tuple[bytes, ...]] | None:
        """As recorded."""
        return self.filters.get((level, interface, group))

    def net_table(self, name: str) -> str:
        """As recorded."""
        return self.net_tables.get(name, "")

    def in_flight(self) -> Sequence[Sequence[FdView]]:
        """As recorded."""
        return self.flights

    def tcp_repair(self, *, connected: bool) -> TcpRepair | None:
        """As recorded."""
        del connected
        return self.repair

    def file_content(self, limit_bytes: int) -> bytes:
        """As recorded; refused above the limit."""
        if len(self.content) > limit_bytes:
            raise Refused("file is too large", subject=self.subject)
        return self.content

    def data_ranges(self) -> Sequence[tuple[int, int]]:
        """As recorded; see ``ranges``."""
        if self.ranges is not None:
            return self.ranges
        return [(0, len(self.content))] if self.content else []

    def read_range(self, offset: int, size_bytes: int) -> bytes:
        """As recorded."""
        return self.content[offset : offset + size_bytes]

    def times_ns(self) -> tuple[int, int]:
        """As recorded."""
        return self.times

    def xattrs(self) -> Mapping[str, bytes]:
        """As recorded."""
        return self.attributes

    def symlink_target(self) -> str:
        """As recorded."""
        return self.target

    def other_name(self, folder: str) -> str | None:
        """As recorded."""
        return self.others.get(folder)

    def path_stat(self, path: str) -> tuple[int, int] | None:
        """As recorded; see ``paths``."""
        if self.paths is None:
            return (self.st_dev, self.st_ino) if path == self.link else None
        return self.paths.get(path)

    def netlink(self, family: int, protocol: int, request: bytes) -> bytes:
        """As recorded."""
        return self.netlinks[family, protocol, request]

    def epoll_targets(self) -> Sequence[tuple[int, int, int, int]]:
        """As recorded."""
        return self.targets

    def is_own_epoll_target(self, tfd: int, index: int) -> bool:
        """As recorded."""
        return (tfd, index) in self.own_targets

    def file_order(self, other: FdView) -> int:
        """0 when both have the same description; otherwise by their names."""
        mine, theirs = (
            repr(id(view)) if view.description is None else repr(view.description)
            for view in (self, cast("RecordedFd", other))
        )
        return (mine > theirs) - (mine < theirs)

    def epoll_target_is(self, tfd: int, index: int, other: FdView) -> bool:
        """Whether the target has the description of ``other``."""
        return self.target_descriptions[tfd, index] == getattr(other, "description", None)


@dataclass(slots=True)
class RecordedImages:
    """An ImageSink and ImageSource in memory; messages and facts go through their bytes."""

    images: dict[str, list[tuple[type[Any], bytes, bytes]]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, name: str, message: Any, payload: bytes = b"") -> None:  # noqa: ANN401
        """Append an entry."""
        entry = (type(message), message.SerializeToString(), bytes(payload))
        self.images.setdefault(name, []).append(entry)

    def begin(self, name: str) -> None:
        """Nothing to do: entries of an image that has none are none."""

    def extra(self, section: str, key: str, *value: Any) -> Any:  # noqa: ANN401
        """With a value: keep it. Without: give it back, or None."""
        if value:
            self.facts.setdefault(section, {})[key] = json.dumps(value[0])
            return None
        kept = self.facts.get(section, {}).get(key)
        return None if kept is None else json.loads(kept)

    def entries(self, name: str) -> Iterator[tuple[Any, bytes]]:
        """(message, payload) of an image."""
        for message_type, raw, payload in self.images.get(name, ()):
            yield message_type.FromString(raw), payload

    def files(self, type_name: str) -> Iterator[tuple[FileId, Any]]:
        """(id, message) of the files of a type."""
        for entry, _ in self.entries("files"):
            types = entry.DESCRIPTOR.fields_by_name["type"].enum_type
            if types.values_by_number[entry.type].name == type_name:
                member = next(v for f, v in entry.ListFields() if f.name not in ("type", "id"))
                yield FileId(entry.id), member


def dump_context(**more: Any) -> DumpContext:  # noqa: ANN401
    """A context as a dump of tasks 41 and 42 gives it, with changes."""
    values: dict[str, Any] = {
        "tcp": TcpPolicy.REFUSE,
        "container": False,
        "ghost_limit_bytes": 1 << 20,
        "tasks": {1041: 41, 1042: 42},
        "owners": {1041: 41, 1042: 42},
    }
    return DumpContext(**(values | more))


def plan_context(*ids: int, **more: Any) -> PlanContext:  # noqa: ANN401
    """Files with these ids at service number 512 + id; task 41 has them at 2 + id."""
    values: dict[str, Any] = {
        "fds": {FileId(i): 512 + i for i in ids},
        "holders": {FileId(i): [Holder(task=41, fd=2 + i)] for i in ids},
        "spare_fd": 600,
    }
    return PlanContext(**(values | more))


def through_images(
    kind: FileKind[State], states: Mapping[FileId, State]
) -> tuple[Mapping[FileId, State], RecordedImages]:
    """What a kind makes of its own images, and these."""
    images = RecordedImages()
    kind.encode(states, images)
    return kind.decode(images), images


def described(kind: FileKind[State], states: Mapping[FileId, State], context: PlanContext) -> str:
    """The printed plan, late operations at its end."""
    lines = [op.describe() for op in kind.plan(states, context)]
    lines += [f"{late.task}: {late.op.describe()}" for late in kind.late(states, context)]
    return "\n".join(lines)
