# SPDX-License-Identifier: Apache-2.0
"""What torpor cannot take: refused by name, with what to do about it. The last of the kinds.

Facts: the state of these lives in the kernel or a driver and cannot be read from outside, or not
be set back; each line of the table says which. The link or the device number tells them apart
(Documentation/admin-guide/devices.txt, v6.18).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Bug
from torpor.engine.files import terminal
from torpor.engine.files.common import Base, FileType, O, file_type
from torpor.engine.files.device import is_stateless
from torpor.engine.files.magics import MQUEUE_MAGIC
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    ImageSink,
    ImageSource,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Op

CLOSE = "close it before the checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a link looks like, or which device (major, minor) it is; minor None is any."""

    limit: Limit
    link: str = ""
    major: int | None = None
    minor: int | None = None


def _link(case: str, link: str, what: str, remedy: str = CLOSE) -> Case:
    return Case(link=link, limit=Limit(case=case, what=what, remedy=remedy))


def _device(case: str, major: int, minor: int | None, what: str, remedy: str = CLOSE) -> Case:
    return Case(major=major, minor=minor, limit=Limit(case=case, what=what, remedy=remedy))


CASES: Sequence[Case] = (
    _link("userfaultfd", r"anon_inode:\[userfaultfd\]", "a userfaultfd: its faults are waited for"),
    _link("perf", r"anon_inode:\[perf_event\]", "a performance counter",
          "stop profiling before the checkpoint"),
    _link("bpf-prog", r"anon_inode:bpf-prog", "a BPF program"),
    _link("bpf-other", r"anon_inode:\[?bpf", "a BPF link or iterator"),
    _link("kvm", r"anon_inode:kvm-", "a virtual machine (KVM)", "checkpoint inside of the machine"),
    _link("landlock", r"anon_inode:\[landlock-ruleset\]", "a landlock ruleset"),
    _link("seccomp-notify", r"anon_inode:seccomp notify", "a seccomp notifier"),
    _link("mount-api", r"anon_inode:\[(fscontext|mount)", "a file system being set up"),
    _link("sync-file", r"anon_inode:sync_file", "a fence of a graphics driver"),
    _link("dma-buf", r"/?dmabuf:|anon_inode:dmabuf", "memory of a device (dma-buf)"),
    _link("secret-memory", r"/secretmem \(deleted\)", "secret memory: nobody else may read it"),
    _link("anonymous", r"anon_inode:", "an anonymous inode that torpor does not know"),
    _device("dev-mem", 1, 1, "physical memory (/dev/mem)"),
    _device("memory-device", 1, None, "a memory device that torpor does not know"),
    _device("terminal-device", 5, None, "a terminal device that torpor does not know"),
    _device("fuse", 10, 229, "the server side of a FUSE file system",
            "unmount the file system before the checkpoint"),
    _device("kvm-device", 10, 232, "KVM (/dev/kvm)", "checkpoint inside of the machine"),
    _device("misc", 10, None, "a device with state in its driver"),
    _device("input", 13, None, "an input device"),
    _device("sound", 116, None, "a sound device"),
    _device("gpu-nvidia", 195, None, "a GPU", "checkpoint when the program has let go of the GPU"),
    _device("gpu", 226, None, "a GPU", "checkpoint when the program has let go of the GPU"),
)  # fmt: skip

OTHER_DEVICE = Limit(case="device", what="a device with state in its driver", remedy=CLOSE)
BLOCK = Limit(
    case="block-device",
    what="a block device",
    remedy="close it before the checkpoint, or use a volume with a file system",
)
QUEUE = Limit(
    case="message-queue-directory",
    what="the directory of POSIX message queues",
    remedy="close it before the checkpoint",
)
PATH_ONLY = Limit(
    case="path-only",
    what="an O_PATH descriptor of something that has no path (a pipe, a socket, a memfd)",
    remedy=CLOSE,
)
WITHOUT_PATH = re.compile(r"(pipe|socket):|/(memfd:|secretmem|anon_hugepage)")
LIMITS = (*(case.limit for case in CASES), OTHER_DEVICE, BLOCK, QUEUE, PATH_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """There is no state of what is refused."""


class UnknownKind(Base[Nothing]):
    """Refuses what is known to be impossible."""

    name = "refused"
    types: Sequence[str] = ()
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """Whether the table, or one of the rules behind it, has it."""
        return limit_of(view) is not None

    def collect(self, view: FdView, context: DumpContext) -> Nothing:
        """Raise Refused."""
        del context
        limit = limit_of(view)
        if limit is None:
            raise Bug("is not among what is refused", subject=view.subject)
        raise refuse(limit, view.subject)

    def encode(self, states: Mapping[FileId, Nothing], images: ImageSink) -> None:
        """Nothing."""
        del states, images

    def decode(self, images: ImageSource) -> Mapping[FileId, Nothing]:
        """Nothing."""
        del images
        return {}

    def plan(self, states: Mapping[FileId, Nothing], context: PlanContext) -> Sequence[Op]:
        """Nothing."""
        del states, context
        return ()


def limit_of(view: FdView) -> Limit | None:
    """Why a descriptor is refused, None when this table does not know it."""
    if view.flags & O.PATH:
        return PATH_ONLY if WITHOUT_PATH.match(view.link) else None
    kind = file_type(view.st_mode)
    if kind == FileType.BLOCK:
        return BLOCK
    if kind == FileType.CHARACTER:
        is_taken = is_stateless(view) or terminal.KIND.matches(view)
        return None if is_taken else _device_limit(view.st_rdev)
    if view.fs_magic == MQUEUE_MAGIC:
        return QUEUE if kind == FileType.DIRECTORY else None
    for case in CASES:
        if case.link and re.match(case.link, view.link) and not _is_known(view):
            return case.limit
    return None


def _is_known(view: FdView) -> bool:
    """Anonymous inodes that are kinds of their own."""
    names = (
        "eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd", "io_uring",
    )  # fmt: skip
    return view.link.removeprefix("anon_inode:").strip("[]") in names


def _device_limit(device: int) -> Limit:
    major = (device >> 8) & 0xFFF | (device >> 32) & ~0xFFF
    minor = device & 0xFF | (device >> 12) & 0xFFFFFF00
    for case in CASES:
        if case.major == major and case.minor in (None, minor):
            return case.limit
    return OTHER_DEVICE


KIND: FileKind[Nothing] = UnknownKind()
