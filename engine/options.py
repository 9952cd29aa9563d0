# SPDX-License-Identifier: Apache-2.0
"""What a dump and a restore are asked to do: frozen options, and what they report back.

This page is the contract between the engine and its callers (the CLI, the node agent).
Nothing here imports more than the standard library.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from socket import socket

    from torpor.engine.images.pagefetch import Pool


class TcpPolicy(Enum):
    """What to do with a TCP connection whose other end is outside the tree."""

    CLOSE = "close"
    """Comes back closed, as if the peer had reset it (ECONNRESET, then EOF)."""
    CLOSE_ALL = "close-all"
    """As a closed socket, also when both ends are in the tree (CRIU's --tcp-close)."""
    REFUSE = "refuse"
    """The dump is refused while there is one."""
    KEEP = "keep"
    """Goes on: no packet passes until the restore, then it is as it was (--tcp-established)."""


class NetworkLock(Enum):
    """How the packets of kept connections are held back from the dump until the restore."""

    NFTABLES = "nftables"
    SKIP = "skip"
    """Not at all: the caller sees to it."""


class After(Enum):
    """What happens to the tasks once they have been dumped."""

    CONTINUE = "continue"
    STOP = "stop"
    """They are ended."""
    PAUSE = "pause"
    """They are left stopped, as by SIGSTOP."""


class MemoryWay(Enum):
    """How the memory of a tree is taken (docs/performance.md)."""

    AUTO = "auto"
    """As the plan finds it best."""
    FROZEN = "frozen"
    """Copied while the tasks stand still."""
    SNAPSHOT = "snapshot"
    """Forked while they stand still, and read from the copies when they run on."""
    PRECOPY = "pre-copy"
    """Copied in rounds while they run, until little is left; that is copied in the stop."""


class Lazy(Enum):
    """Whether large memory is filled when the restored tasks run already."""

    OFF = "off"
    ON = "on"
    AUTO = "auto"
    """When filling it before would take longer than a second."""


class ClockPolicy(Enum):
    """What CLOCK_MONOTONIC and CLOCK_BOOTTIME say in a restored tree."""

    AUTO = "auto"
    """Go on where the tasks saw them last, with the right to a time namespace."""
    CONTINUE = "continue"
    """That, or the restore fails."""
    MACHINE = "machine"
    """What they say on this machine."""


class CgroupMode(Enum):
    """What a restore does about control groups (`--manage-cgroups`)."""

    IGNORE = "ignore"
    """Tasks stay in the groups of the restoring program."""
    NONE = "none"
    """Groups must be there; nothing is set."""
    PROPS = "props"
    """Groups must be there; their settings are written."""
    SOFT = "soft"
    """Missing groups are made, with their settings."""
    FULL = "full"
    """As SOFT, and the settings of those that are there are written as well."""
    STRICT = "strict"
    """No group may be there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step of long work: ``phase`` is a fixed word, counts are 0 when unknown."""

    phase: str
    text: str = ""
    done: int = 0
    total: int = 0


ProgressFn = Callable[[Progress], None]


def no_progress(_: Progress) -> None:
    """Take no notice of progress."""


ReadFilter = Callable[[int, int], tuple[bytes, int]]
"""Thread (as seen from here), number of a seccomp filter of it (the first installed is 0) → its
program and flags. Raises an Error when it cannot be read."""


class Follower(Protocol):
    """Takes pages of images elsewhere while they are written (docs/adr/0022)."""

    def begin(self) -> None:
        """Images are begun, maybe not for the first time: what was told before is void."""

    def grown(self, name: str, fd: int, size_bytes: int, *, whole: bool = False) -> None:
        """So many bytes of a file (by its path in ``images_dir``) are final, nobody reads them.

        May take them out of the file, and their time. What it raises ends the dump.
        """

    def catch_up(self) -> None:
        """Return when all that was told of is safe; what is left to the stop waits for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreCopyRules:
    """When the rounds of a pre-copy end: by whichever comes first, or when they bring nothing."""

    pause_goal_s: float = 0.001
    """What was written since the last round would be copied in that time."""
    max_rounds: int = 8
    max_copies: float = 4.0
    """Bytes copied, in comparison with those of the first round."""
    max_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round of a pre-copy: ``dirty_bytes`` were written until its end."""

    number: int
    copied_bytes: int
    seconds: float
    dirty_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """One tree to dump.

    ``pid`` is the root of the tree as seen from here. ``images_dir`` must not exist or be
    a directory without images; with ``replace`` images may be there, and are taken away once the
    new ones are whole. ``freezer_cgroups`` are directories of a v1 freezer or of a v2
    cgroup which hold every task of the tree (and no task of ours): they are frozen before
    the tasks are stopped, so that no new task slips away. ``container`` says that the root
    is a container's init: its stdio may lead outside, its mounts are the runtime's, its
    own seccomp filters (``runtime_seccomp_filters`` of them) come back by the runtime.
    ``link_remap`` permits to give a name to an open file that has lost the one it was opened by.
    ``external`` are names of what the caller of the restore will replace (`tty[8800:1a]`).
    """

    pid: int
    images_dir: Path
    after: After = After.STOP
    tcp: TcpPolicy = TcpPolicy.REFUSE
    skip_in_flight: bool = False
    network_lock: NetworkLock = NetworkLock.NFTABLES
    shell_job: bool = False
    container: bool = False
    runtime_seccomp_filters: int = 0
    freezer_cgroups: tuple[Path, ...] = ()
    ghost_limit_bytes: int = 64 << 20
    link_remap: bool = False
    timeout_s: float = 60.0
    """For all of the dump."""
    stop_timeout_s: float = 10.0
    """For stopping the tasks."""
    external: frozenset[str] = frozenset()
    replace: bool = False
    hold: bool = False
    """The tasks stand still until the images are whole and `commit` has returned."""
    work_dir: Path | None = None
    """Where statistics go, if not into ``images_dir``."""
    parent: str = ""
    """Directory of an earlier dump, seen from ``images_dir``: pages that it has are left out."""
    cgroup_controllers: tuple[str, ...] = ()
    """Only these are kept, if any is named."""
    cgroup_settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Controller → files that are kept of its groups, in place of the usual ones."""
    half_pipes: bool = False
    """A pipe whose other end is outside may come back with one end only."""
    page_server: "socket | None" = None
    """Connection to a page server that gets the pages."""
    serve: "Callable[[Pool], None] | None" = None
    """Called when the images are whole, but for the pages of large memory, which it gives away; the
    tasks stand still until it returns. When it raises, they run on."""
    read_filter: ReadFilter | None = None
    """Of threads that run, for us who may not; None: nobody does it."""
    memory: MemoryWay = MemoryWay.AUTO
    """Where it does not fit, the plan takes another and says why (`DumpReport.memory_reason`)."""
    precopy: PreCopyRules = PreCopyRules()
    dedup: bool = False
    """Take from the parents the pages that this dump has anew."""
    follower: Follower | None = None
    """Has the pages as they are written; the rounds of a pre-copy of tasks that will be stopped
    then become directories inside, which it has before the stop. What it has need not be durable
    here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpReport:
    """What a dump did. Durations in seconds.

    ``frozen_s`` is the pause of the workload, from the stop until its state was taken; with
    `After.STOP` it never runs again.
    """

    images_dir: Path
    tasks: int
    threads: int
    descriptors: int
    memory_bytes: int
    image_bytes: int
    frozen_s: float
    total_s: float
    phases_s: Mapping[str, float]
    pause_s: Mapping[str, float] = field(default_factory=dict)
    """``frozen_s`` by step."""
    warnings: tuple[str, ...] = ()
    skipped_bytes: int = 0
    """Memory that an earlier dump has."""
    memory_way: MemoryWay = MemoryWay.FROZEN
    memory_reason: str = ""
    """Why that way."""
    rounds: tuple[Round, ...] = ()
    """Of a pre-copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverOptions:
    """Restore into the waiting init process of a container (DESIGN.md, section 7).

    ``pid`` is the placeholder as seen from here. ``choose_pid`` is called with the host pid
    of the placeholder and the pid wanted inside its pid namespace, right before a clone;
    None when the engine may use clone3's set_tid itself. ``stdio`` descriptors (0, 1, 2)
    of the placeholder replace whatever the old tasks had from outside. ``address_map`` leads
    from IP addresses of the old pod to those of the new one.
    """

    pid: int
    images_dir: Path
    choose_pid: Callable[[int, int], None] | None = None
    path_map: Mapping[str, str] = field(default_factory=dict)
    address_map: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    spare_images: bool = False
    """The images are a copy that nobody needs afterwards, and may be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """Restore a tree of the host from nothing: a new root task is created.

    It returns when the tree runs. A root that was not the leader of its session comes back in
    the session of the caller. With ``sibling`` the root is a child of our parent. ``at_stage`` is
    called with a stage and the root's pid, `post-restore` when all is made and nothing runs (what
    it raises gives the restore up), and `pre-resume` when there is no way back.
    With ``shell_job`` the terminal that we have as 0, 1 or 2 takes the place of the tree's.
    """

    images_dir: Path
    inherit: Mapping[str, int] = field(default_factory=dict)
    tcp_close: bool = False
    shell_job: bool = False
    timeout_s: float = 60.0
    cgroups: CgroupMode = CgroupMode.SOFT
    cgroup_roots: Mapping[str, str] = field(default_factory=dict)
    """Controller ("" for all others) → group that takes the place of the root task's."""
    sibling: bool = False
    leave_stopped: bool = False
    at_stage: Callable[[str, int], None] | None = None
    work_dir: Path | None = None
    """Where statistics go; None: there are none."""
    clocks: ClockPolicy = ClockPolicy.AUTO
    time_namespace: Path | None = None
    """One that is there already, for the tree to live in, in place of one of its own."""
    lazy: Lazy = Lazy.OFF
    """Pages that come later are not checked against their digest."""
    filled_by: "socket | None" = None
    """Connection to a process that is handed large memory to fill (`torpor.engine.lazy.handing`);
    it may have pages that the images have not."""
    check_files: bool = False
    """Open files must have the mode and size that they had, not only be long enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What a restore did. ``pid`` is the root's, as seen from here."""

    pid: int
    tasks: int
    threads: int
    memory_bytes: int
    total_s: float
    phases_s: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    lazy_bytes: int = 0
    """Memory that is filled while the tasks run."""
