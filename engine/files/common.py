# SPDX-License-Identifier: Apache-2.0
"""What the kinds of files share: flags, lines of fdinfo, signal owners, subjects, paths."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Any, Generic, NoReturn

from torpor.engine import asking
from torpor.engine.asking import Questions
from torpor.engine.errors import BadImage, Bug, Refused
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import FIONREAD, PID_END, POLLIN, POLLPRI
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    LateOp,
    Limit,
    PlanContext,
    State,
    refuse,
)
from torpor.engine.program.ops import Data, Op

AT_FDCWD = -100


class O:  # noqa: E742
    """Flags of open(2) on x86-64, as fdinfo and the images have them.

    Plain numbers: tests of them are made for each descriptor of a stopped tree, and those of an
    enum.IntFlag take twenty times as long.
    """

    WRONLY = 0o1
    RDWR = 0o2
    ACCMODE = 0o3
    CREAT = 0o100
    EXCL = 0o200
    NOCTTY = 0o400
    TRUNC = 0o1000
    APPEND = 0o2000
    NONBLOCK = 0o4000
    ASYNC = 0o20000
    DIRECT = 0o40000
    LARGEFILE = 0o100000
    DIRECTORY = 0o200000
    NOFOLLOW = 0o400000
    NOATIME = 0o1000000
    CLOEXEC = 0o2000000
    PATH = 0o10000000
    TMPFILE = 0o20000000
    """The bit of its own; open(2) wants it together with DIRECTORY."""


SETTABLE = O.APPEND | O.NONBLOCK | O.ASYNC | O.DIRECT | O.NOATIME
"""What F_SETFL can change."""


class F(IntEnum):
    """Commands of fcntl(2)."""

    DUPFD = 0
    GETFD = 1
    SETFD = 2
    SETFL = 4
    SETLK = 6
    SETOWN = 8
    SETSIG = 10
    GETSIG = 11
    SETOWN_EX = 15
    GETOWN_EX = 16
    GETOWNER_UIDS = 17
    OFD_SETLK = 37
    SETLEASE = 1024
    SETPIPE_SZ = 1031
    GETPIPE_SZ = 1032
    ADD_SEALS = 1033
    GET_SEALS = 1034


class FileType(IntEnum):
    """Type bits of st_mode."""

    NONE = 0
    FIFO = 0o010000
    CHARACTER = 0o020000
    DIRECTORY = 0o040000
    BLOCK = 0o060000
    REGULAR = 0o100000
    LINK = 0o120000
    SOCKET = 0o140000


def file_type(mode: int) -> int:
    """Type bits of a mode."""
    return mode & 0o170000


OWNER_OUTSIDE = Limit(
    case="signal-owner-outside",
    what="its signals go to a task outside of the tree (F_SETOWN)",
    remedy="checkpoint that task as well, or clear the owner with fcntl(fd, F_SETOWN, 0)",
)


DIRECTORY_OWNER = Limit(
    case="directory-notification",
    what="a directory with a signal owner: what F_NOTIFY watches for cannot be read back",
    remedy="use inotify in the program",
)
OWNER_KINDS = ("thread", "task", "group")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who gets SIGIO: ``kind`` F_OWNER_TID 0, PID 1, PGRP 2; ``pid`` inside, 0 for nobody."""

    kind: int = 0
    pid: int = 0
    signal: int = 0
    uid: int = 0
    euid: int = 0


NOBODY = Owner()
OWNER = asking.fcntl_bytes(F.GETOWN_EX, 8), asking.fcntl(F.GETSIG)
OWNED = Questions(*OWNER)
"""What `read_owner` asks, where there is none."""
QUEUED = asking.ioctl(FIONREAD), asking.POLL
"""What `is_quiet` asks."""


def has_no_owner(view: FdView) -> bool:
    """Whether nobody is the owner of a description."""
    raw = view.fcntl_bytes(F.GETOWN_EX, bytes(8))
    return raw is None or not any(raw[4:])


def is_quiet(view: FdView) -> bool:
    """Whether nothing waits in it to be read."""
    if view.poll_events() & (POLLIN | POLLPRI):
        return False
    return not any(view.ioctl(FIONREAD, bytes(4)))


def read_owner(view: FdView, context: DumpContext) -> Owner:
    """The owner of a description. Raises Refused when it is outside of the tree."""
    raw = view.fcntl_bytes(F.GETOWN_EX, bytes(8))
    if raw is None:
        return NOBODY
    kind, pid = struct.unpack("<ii", raw[:8])
    signal = view.fcntl(F.GETSIG)
    if not pid:
        return Owner(signal=signal)
    if file_type(view.st_mode) == FileType.DIRECTORY:
        raise refuse(DIRECTORY_OWNER, view.subject)
    if pid not in context.owners:
        raise refuse(OWNER_OUTSIDE, view.subject, f"owner is {OWNER_KINDS[kind]} {pid}")
    uids = view.fcntl_bytes(F.GETOWNER_UIDS, bytes(8)) or bytes(8)
    uid, euid = struct.unpack("<II", uids[:8])
    return Owner(kind=kind, pid=context.owners[pid], signal=signal, uid=uid, euid=euid)


def encode_owner(owner: Owner) -> Any:  # noqa: ANN401
    """CRIU's fown_entry."""
    return pb.fown_entry(
        uid=owner.uid, euid=owner.euid, signum=owner.signal, pid_type=owner.kind, pid=owner.pid
    )


def decode_owner(message: Any) -> Owner:  # noqa: ANN401
    """From CRIU's fown_entry."""
    if not 0 <= message.pid_type < len(OWNER_KINDS):
        bad_image("an owner of an unknown kind", "files.img", f"pid_type {message.pid_type}")
    if message.pid >= PID_END:
        bad_image("an owner that cannot be", "files.img", f"pid {message.pid}")
    if not (message.pid or message.signum or message.uid or message.euid or message.pid_type):
        return NOBODY  # as nearly always
    return Owner(
        kind=message.pid_type, pid=message.pid, signal=message.signum,
        uid=message.uid, euid=message.euid,
    )  # fmt: skip


def late_owners(owners: Mapping[FileId, Owner], context: PlanContext) -> list[LateOp]:
    """Set owners from a holder of each description, when all tasks and threads exist."""
    return [
        LateOp(task=context.holders[file_id][0].task, op=op, last=True)
        for file_id, owner in owners.items()
        if context.holders.get(file_id)
        for op in _set_owner(owner, context.holders[file_id][0].fd, context.uid)
    ]


def _set_owner(owner: Owner, fd: int, uid: int) -> Iterable[Op]:
    """The kernel keeps the ids of whoever sets an owner; so they are taken for the moment."""
    where = f"fd {fd}"
    is_other = owner.pid and (owner.uid, owner.euid) != (uid, uid)
    if is_other:
        yield Op(call="setresuid", args=(owner.uid, owner.euid, uid), subject=where,
                 note="ids of who has set its owner", remedy="restore with CAP_SETUID")  # fmt: skip
    if owner.pid:
        name = f"{OWNER_KINDS[owner.kind]} {owner.pid}"
        asked = Data(struct.pack("<ii", owner.kind, owner.pid), text=name)
        yield Op(call="fcntl", args=(fd, F.SETOWN_EX, asked), subject=where,
                 note="who gets its signals")  # fmt: skip
    if is_other:
        yield Op(call="setresuid", args=(uid, uid, uid), subject=where)
    if owner.signal:
        yield Op(call="fcntl", args=(fd, F.SETSIG, owner.signal), subject=where)


def status_flags(fd: int, flags: int, created_with: int, subject: str) -> list[Op]:
    """Set status flags that the call which created ``fd`` could not give."""
    wanted = flags & SETTABLE
    if wanted == created_with & SETTABLE:
        return []
    return [Op(call="fcntl", args=(fd, F.SETFL, wanted), subject=subject, note="status flags")]


def subject(context: PlanContext, file_id: FileId, name: str) -> str:
    """`fd 7 -> /data/log`, with the number that the first holder knows."""
    held = context.holders.get(file_id)
    return f"fd {held[0].fd} -> {name}" if held else name


def created(states: Mapping[FileId, State], context: PlanContext) -> dict[FileId, State]:
    """The states that become descriptors; the others are named for other reasons (exe, cwd)."""
    return {file_id: state for file_id, state in states.items() if file_id in context.fds}


def info_value(view: FdView, key: str) -> str | None:
    """Value of `key: value` in fdinfo."""
    prefix = f"{key}:"
    for line in view.info:
        if line.startswith(prefix):
            return line[len(prefix) :].strip()
    return None


def info_number(view: FdView, key: str, base: int = 10) -> int:
    """Number of `key: number` in fdinfo. Raises Bug when it is not there."""
    text = info_value(view, key)
    if text is None:
        raise Bug(f"fdinfo has no {key}", subject=view.subject, cause=f"{list(view.info)}")
    return int(text, base)


def path_bytes(path: str) -> bytes:
    """A path as images have it."""
    return path.encode("utf-8", "surrogateescape")


def path_from(raw: bytes, where: str) -> str:
    """A path from an image: absolute, without NUL. Raises BadImage."""
    path = raw.decode("utf-8", "surrogateescape")
    if not path.startswith("/") or "\0" in path:
        bad_image(f"{path!r} is not an absolute path", where)
    return path


def mapped(path: str, context: PlanContext) -> str:
    """The path after the caller's map of moved directories; the longest prefix wins."""
    for old in sorted(context.path_map, key=len, reverse=True):
        if path == old or path.startswith(old.rstrip("/") + "/"):
            rest = PurePosixPath(path).relative_to(old)
            return str(PurePosixPath(context.path_map[old]) / rest)
    return path


def bad_image(what: str, where: str, cause: str = "") -> NoReturn:
    """Raise BadImage with the remedy that fits all of them."""
    remedy = "take the images from an intact copy, or dump again"
    raise BadImage(what, subject=where, cause=cause, remedy=remedy)


class Base(Generic[State]):
    """What most kinds need not say: nothing asked in one go, nothing to check or to do late."""

    def questions(self, view: FdView) -> Questions | None:
        """None."""
        del view
        return None

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Answers to OWNER suffice for one without an owner."""
        del context
        return has_no_owner(view)

    def check(self, states: Mapping[FileId, State], context: DumpContext) -> Iterable[Refused]:
        """No refusals that need all descriptions."""
        del states, context
        return ()

    def late(self, states: Mapping[FileId, State], context: PlanContext) -> Sequence[LateOp]:
        """Nothing."""
        del states, context
        return ()
