# SPDX-License-Identifier: Apache-2.0
"""What `torpor show` knows of an image directory: plain data, for text and for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A descriptor of a task: its number, what it leads to, and how it was opened."""

    fd: int
    kind: str
    name: str
    detail: str = ""
    cloexec: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaKind:
    """All areas of a task of one kind."""

    kind: str
    areas: int
    mapped_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """An address space. ``parent_bytes`` are in the images of an earlier dump."""

    areas: int
    mapped_bytes: int
    stored_bytes: int
    parent_bytes: int
    kinds: Sequence[AreaKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A thread."""

    tid: int
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task. ``args`` is None when the images do not hold that memory."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    state: str
    comm: str
    exit_status: str = ""
    exe: str = ""
    args: Sequence[str] | None = None
    cwd: str = ""
    root: str = ""
    uid: int | None = None
    gid: int | None = None
    seccomp_filters: int = 0
    threads: Sequence[Thread] = ()
    descriptors: Sequence[Descriptor] = ()
    shares_descriptors_of: int | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Memory that tasks share and that has no file: its number and what is stored of it."""

    name: str
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who dumped, when and where. ``time`` is UTC; `approximate` when it is a file's."""

    tool: str
    time: str
    approximate: bool
    machine: Mapping[str, str] = field(default_factory=dict)
    uptime_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """How long the dump took, from stats-dump and what we keep beside it."""

    freezing_s: float
    frozen_s: float
    pages_written: int
    steps_s: Mapping[str, float] = field(default_factory=dict)
    """Of the time frozen; empty when another program has dumped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """An image directory. ``verified`` says what was checked of its digests."""

    path: str
    origin: Origin
    format_version: int
    architecture: str
    files: int
    size_bytes: int
    verified: str
    tasks: Sequence[Task]
    segments: Sequence[Segment]
    pause: Pause | None
    namespaces: Sequence[str]
    hostname: str | None
    tcp_close: bool
    warnings: Sequence[str]
