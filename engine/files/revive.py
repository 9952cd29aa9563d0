# SPDX-License-Identifier: Apache-2.0
"""How a file whose name is gone comes back: operations that make it, name it, open it, unname it.

A program has no conditions, and a file that has taken the name must stay. So the file is made under
a side name in its directory, which is renamed to the old one with RENAME_NOREPLACE; when somebody
has that name the two are exchanged, and exchanged back right after. The results (0, or an error)
are arguments of F_DUPFD, which gives a descriptor of the directory only for 0: what goes through
that descriptor happens only in that case. The name that the kernel tells of the file afterwards
(`/dir/name (deleted)`) is the one that it had when it was removed. A description keeps the name
that it was opened by, so one with another name is opened by that, while the file has both.
In the end it must have as many names as before (`_check_unnamed`).

Facts (probed on v6.18): F_DUPFD with a negative number gives EINVAL, with an O_PATH descriptor it
works. A file is opened again by /proc/self/fd/N whatever its name is, but not with O_NOFOLLOW.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TypedDict, Unpack

from torpor.engine.files.common import AT_FDCWD, SETTABLE, F, FileType, O
from torpor.engine.files.ghost import DELETED, SECOND_NS, Ghost
from torpor.engine.program.ops import Data, Expect, Op, Slot

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000
FUTEX_CMP_REQUEUE = 4
OWN_FD = "/proc/self/fd/"
NEEDS_PATH_ONLY = (FileType.LINK, FileType.SOCKET, FileType.CHARACTER, FileType.BLOCK)
REMAP_PREFIX = "link_remap."
STATX_NLINK, STATX_NLINK_AT, STATX_BYTES = 4, 16, 256
TIMESPECS = struct.Struct("<4q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One description of a ghost: open flags, and the number it shall have."""

    fd: int
    flags: int
    subject: str
    tmpfile: bool = False


def plan(ghost: Ghost, names: Mapping[str, Sequence[Opening]], spare_fd: int) -> list[Op]:
    """Create the file, open it by each name as often as asked, remove its names.

    ``spare_fd`` and the number after it are free for the moment.
    """
    path, *others = names
    openings = [one for opened in names.values() for one in opened]
    first = next((o for o in openings if o.tmpfile and o.flags & O.ACCMODE), None)
    if ghost.link is None and first is not None:
        return _Builder(ghost, path, spare_fd).as_tmpfile(first, openings)
    linked = replace(ghost, link=ghost.link or f"{OWN_FD}{spare_fd}")
    more: list[Op] = []
    for number, name in enumerate(others, 1):
        every = replace(linked, missing=len(PurePosixPath(name).parents) - 1)
        builder = _Builder(every, name, spare_fd + 1, f".{number}")
        more += builder.as_unlinked(names[name])
    ops = _Builder(ghost, path, spare_fd).as_unlinked(names[path], more)
    if ghost.link is not None and is_remap(ghost.link):
        ops.append(Op(call="unlinkat", args=(AT_FDCWD, Data.path(ghost.link), 0), subject=path,
                      expect=Expect.ANY, note="made at the checkpoint"))  # fmt: skip
    return ops


class _More(TypedDict, total=False):
    """What else an operation may have."""

    subject: str
    note: str
    want: int
    remedy: str
    undo: tuple[Op, ...]
    settles: bool


class _Builder:
    """Operations of one name of a ghost. Its slots carry the ghost's number and ``mark``."""

    def __init__(self, ghost: Ghost, path: str, spare_fd: int, mark: str = "") -> None:
        self.ghost, self.spare, self.mark = ghost, spare_fd, f"{ghost.number:x}{mark}"
        name = PurePosixPath(path)
        self.folders = [str(p) for p in name.parents if str(p) != "/"][: ghost.missing][::-1]
        self.parent = Data.path(str(name.parent))
        self.base = Data.path(name.name)
        self.side = Data.path(f".torpor-ghost-{self.mark}")
        self.what = f"{path}{DELETED}"
        self.ops: list[Op] = []

    def slot(self, name: str) -> Slot:
        return Slot(f"ghost{self.mark}.{name}")

    def add(self, call: str, *args: int | Data | Slot, into: str = "",
            expect: Expect = Expect.OK, **more: Unpack[_More]) -> None:  # fmt: skip
        made = self.slot(into) if into else None
        told: _More = {"subject": self.what, **more}
        self.ops.append(Op(call=call, args=args, expect=expect, yields=made, **told))

    def attempt(self, call: str, *args: int | Data | Slot, into: str = "",
                **more: Unpack[_More]) -> None:  # fmt: skip
        """An operation that may fail."""
        self.add(call, *args, into=into, expect=Expect.ANY, **more)

    def _back(self, call: str, *args: int | Data | Slot) -> tuple[Op, ...]:
        """How something is taken back."""
        return (Op(call=call, args=args, subject=self.what, expect=Expect.ANY),)

    def as_tmpfile(self, first: Opening, openings: Sequence[Opening]) -> list[Op]:
        """An O_TMPFILE, which the program may still want to link."""
        self._folders()
        made = self.slot("file")
        access = first.flags & O.ACCMODE
        self.add("openat", AT_FDCWD, self.parent, O.TMPFILE | O.DIRECTORY | access, 0o600,
                 into="file", remedy="the directory must exist and take O_TMPFILE")  # fmt: skip
        self._fill(made)
        self.add("dup3", made, first.fd, 0, expect=Expect.EQUAL, want=first.fd)
        for opening in openings:
            if opening is not first:
                self._reopen(opening, first.fd)
        self._attributes(made)
        self.add("close", made)
        if first.flags & SETTABLE & ~O.ASYNC:
            self.add("fcntl", first.fd, F.SETFL, first.flags & SETTABLE & ~O.ASYNC)
        self._no_folders()
        return self.ops

    def as_unlinked(self, openings: Sequence[Opening], more: Sequence[Op] = ()) -> list[Op]:
        """A file that was opened, and whose name is gone; ``more`` is done while it has one."""
        self._folders()
        folder, made = self.slot("folder"), self.slot("file")
        self.add("openat", AT_FDCWD, self.parent, O.PATH | O.DIRECTORY, 0, into="folder",
                 remedy="create the directory before the restore")  # fmt: skip
        self._create(folder)
        self._fill(made)
        self.add("dup3", made, self.spare, 0, expect=Expect.EQUAL, want=self.spare)
        by_name = [o for o in openings if o.flags & O.NOFOLLOW]
        for opening in openings:
            if opening not in by_name:
                self._reopen(opening, self.spare)
        self._attributes(made)
        self.ops += more
        self._unname(folder, made, by_name)
        for opening in openings:
            self.add("fcntl", opening.fd, F.GETFD, note=f"is open: {opening.subject}",
                     remedy="the file system must allow the flags it was opened with")  # fmt: skip
        self.add("close", self.spare)
        self.add("close", made)
        self.add("close", folder)
        self._no_folders()
        return self.ops

    def _create(self, folder: Slot) -> None:
        remedy = f"the directory must be writable and without {self.side.text}"
        kind, mode = self.ghost.type, self.ghost.mode
        path_only = int(O.PATH | O.NOFOLLOW)
        removal = AT_REMOVEDIR if kind == FileType.DIRECTORY else 0
        undo = self._back("unlinkat", folder, self.side, removal)
        flags = int(O.RDWR | O.CREAT | O.EXCL | O.NOFOLLOW)
        if self.ghost.link is not None:
            follow = AT_SYMLINK_FOLLOW if self.ghost.link.startswith(OWN_FD) else 0
            self._count_names(AT_FDCWD, Data.path(self.ghost.link),
                              0 if follow else AT_SYMLINK_NOFOLLOW, "before")  # fmt: skip
            self.add("linkat", AT_FDCWD, Data.path(self.ghost.link), folder, self.side, follow,
                     undo=undo,
                     remedy=f"{self.ghost.link} must be there as at the checkpoint")  # fmt: skip
            flags = path_only
        elif kind == FileType.DIRECTORY:
            self.add("mkdirat", folder, self.side, 0o700, remedy=remedy, undo=undo)
            flags = int(O.DIRECTORY | O.NOFOLLOW)
        elif kind == FileType.FIFO:
            self.add("mknodat", folder, self.side, FileType.FIFO | 0o600, 0, remedy=remedy,
                     undo=undo)  # fmt: skip
            flags = int(O.RDWR | O.NONBLOCK | O.NOFOLLOW)
        elif kind == FileType.LINK:
            self.add("symlinkat", Data.path(self.ghost.target), folder, self.side, remedy=remedy,
                     undo=undo)  # fmt: skip
            flags = path_only
        elif kind in NEEDS_PATH_ONLY:
            self.add("mknodat", folder, self.side, mode, self.ghost.rdev, remedy=remedy,
                     undo=undo)  # fmt: skip
            flags = path_only
        self.add("openat", folder, self.side, flags, 0o600, into="file", remedy=remedy,
                 undo=undo if flags & O.CREAT else ())  # fmt: skip

    def _fill(self, made: Slot) -> None:
        if self.ghost.type != FileType.REGULAR or self.ghost.link is not None:
            return
        for offset, data in self.ghost.chunks:
            self.add("pwrite64", made, Data(data), len(data), offset, expect=Expect.EQUAL,
                     want=len(data), remedy="make room on the file system")  # fmt: skip
        if self.ghost.size:
            self.add("ftruncate", made, self.ghost.size)

    def _attributes(self, made: Slot) -> None:
        """Owner, mode, times; after it was opened, for they may forbid that."""
        ghost = self.ghost
        if ghost.link is not None:
            return
        self.add("fchownat", made, Data.path(""), ghost.uid, ghost.gid, AT_EMPTY_PATH,
                 remedy="restore with CAP_CHOWN, or as the user that owned the file")  # fmt: skip
        if ghost.type in NEEDS_PATH_ONLY and ghost.type != FileType.LINK:
            by_path = Data.path(f"/proc/self/fd/{self.spare}")
            self.add("fchmodat", AT_FDCWD, by_path, ghost.mode & 0o7777)
        elif ghost.type != FileType.LINK:
            self.add("fchmod", made, ghost.mode & 0o7777)
            for name, value in ghost.xattrs.items():
                self.add("fsetxattr", made, Data.path(name), Data(value), len(value), 0,
                         remedy="the file system must take extended attributes")  # fmt: skip
        if ghost.times_ns is not None:
            both = [part for t in ghost.times_ns for part in divmod(t, SECOND_NS)]
            self.attempt("utimensat", made, Data.path(""), Data(TIMESPECS.pack(*both)),
                         AT_EMPTY_PATH)  # fmt: skip

    def _unname(self, folder: Slot, made: Slot, by_name: Sequence[Opening]) -> None:
        """Give it the old name, open it by that where it must be, remove the name."""
        named, swapped = self.slot("named"), self.slot("swapped")
        ours, theirs, rest = self.slot("ours"), self.slot("theirs"), self.slot("rest")
        removal = AT_REMOVEDIR if self.ghost.type == FileType.DIRECTORY else 0
        self.attempt("renameat2", folder, self.side, folder, self.base, RENAME_NOREPLACE,
                     into="named", note="0 when the old name is free",
                     undo=self._back("renameat2", folder, self.base, folder, self.side,
                                     RENAME_NOREPLACE))  # fmt: skip
        self.attempt("renameat2", folder, self.side, folder, self.base, RENAME_EXCHANGE,
                     into="swapped", note="0 when somebody has it",
                     undo=self._back("renameat2", folder, self.side, folder, self.base,
                                     RENAME_EXCHANGE))  # fmt: skip
        self.attempt("fcntl", folder, F.DUPFD, named, into="ours")
        self.attempt("fcntl", folder, F.DUPFD, swapped, into="theirs")
        self.add("fcntl", folder, F.DUPFD, 0, into="rest", note="for the side name")
        self.attempt("fcntl", made, F.DUPFD, swapped, into="blind")
        self.attempt("dup3", self.slot("blind"), rest, 0, note="that name is not ours after a swap")
        for opening in by_name:
            for at, name in ((ours, self.base), (theirs, self.base), (rest, self.side)):
                self.attempt("openat", at, name, opening.flags, 0, into="one")
                self.attempt("dup3", self.slot("one"), opening.fd, 0)
                self.attempt("close", self.slot("one"))
        self.attempt("unlinkat", ours, self.base, removal)
        self.attempt("unlinkat", theirs, self.base, removal)
        self.attempt("renameat2", theirs, self.side, theirs, self.base, RENAME_NOREPLACE)
        self.attempt("unlinkat", rest, self.side, removal)
        self._check_unnamed(made)
        for made_here in ("ours", "theirs", "rest", "blind"):
            self.attempt("close", self.slot(made_here))

    def _check_unnamed(self, made: Slot) -> None:
        """That no name we gave it is left: what removes them may fail, nobody knows which is.

        Two numbers are compared by futex(2), which gives EAGAIN where they differ.
        """
        remedy = "let nobody else rename in that directory during the restore"
        if self.ghost.link is None:
            self._count_names(made, Data.path(""), AT_EMPTY_PATH, "links", expect=Expect.EQUAL,
                              note="names that are left", settles=True, remedy=remedy)  # fmt: skip
            return
        word = Data.room(8)
        self._count_names(made, Data.path(""), AT_EMPTY_PATH, "links", note="names that are left")
        self.add("@store64", word, self.slot("links"))
        self.add("futex", word, FUTEX_CMP_REQUEUE, 0, 0, word, self.slot("before"),
                 note="as many as before", settles=True, remedy=remedy)  # fmt: skip

    def _count_names(self, at: int | Slot, name: Data, flags: int, into: str,
                     expect: Expect = Expect.OK, **more: Unpack[_More]) -> None:  # fmt: skip
        told = Data.room(STATX_BYTES)
        self.add("statx", at, name, flags, STATX_NLINK, told)
        self.add("@load32", told, STATX_NLINK_AT, into=into, expect=expect, **more)

    def _reopen(self, opening: Opening, source: int) -> None:
        self.add("openat", AT_FDCWD, Data.path(f"/proc/self/fd/{source}"),
                 opening.flags & ~int(O.ASYNC) | O.NOCTTY, 0, into="one",
                 note=opening.subject, remedy="the file system must allow the flags it was opened "
                 "with, and /proc must be mounted")  # fmt: skip
        self.add("dup3", self.slot("one"), opening.fd, 0, expect=Expect.EQUAL, want=opening.fd)
        self.add("close", self.slot("one"))

    def _folders(self) -> None:
        """Parents that were gone as well: created when they are not there."""
        for i, folder in enumerate(self.folders):
            self.attempt("mkdirat", AT_FDCWD, Data.path(folder), 0o700, into=f"made{i}",
                         subject=folder,
                         undo=self._back("unlinkat", AT_FDCWD, Data.path(folder),
                                         AT_REMOVEDIR))  # fmt: skip

    def _no_folders(self) -> None:
        """Remove those that we created."""
        if not self.folders:
            return
        self.add("openat", AT_FDCWD, Data.path("/"), O.PATH | O.DIRECTORY, 0, into="root")
        for i, folder in reversed(list(enumerate(self.folders))):
            self.attempt("fcntl", self.slot("root"), F.DUPFD, self.slot(f"made{i}"), into="at")
            self.attempt("unlinkat", self.slot("at"), Data.path(folder.lstrip("/")), AT_REMOVEDIR)
            self.attempt("close", self.slot("at"))
        self.add("close", self.slot("root"))


def is_remap(path: str) -> bool:
    """Whether a name was made by a dump with --link-remap, and is to be removed again."""
    return PurePosixPath(path).name.startswith(REMAP_PREFIX)
