# SPDX-License-Identifier: Apache-2.0
"""Ghosts: files that are open but have no name any more. Content travels in the images.

Facts:
- The kernel keeps the name that the file had (`/dir/name (deleted)`), its inode with st_nlink
  0, and its content; all can be read from outside (readlink, fstat, pread).
- A file that was created by O_TMPFILE keeps that bit in its flags, and may still be linked; one
  that was created and unlinked may not (linkat gives ENOENT).
- What cannot be set back: inode number, ctime, the number in the name of an O_TMPFILE.

How one comes back, without a condition in the program: it is written under a side name in its
directory and then renamed to the old name with RENAME_NOREPLACE. The result (0, or an error
when somebody has that name) is the argument of F_DUPFD, which gives a descriptor of the
directory only for 0; what goes through that descriptor happens only when the name was ours.
So a file that has taken the name is never touched.
Probed on v6.18: F_DUPFD with a negative number gives EINVAL, with an O_PATH descriptor it works.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from torpor.engine.files.common import AT_FDCWD, F, FileType, O, bad_image, file_type
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import DumpContext, FdView, ImageSink, ImageSource, Limit, refuse
from torpor.engine.program.ops import Data, Expect, Op, Slot

DELETED = " (deleted)"
BLOCK_BYTES = 4096
PIECE_BYTES = 1 << 20
RENAME_NOREPLACE = 1
AT_REMOVEDIR = 0x200

TOO_LARGE = Limit(
    case="ghost-too-large",
    what="an unlinked file is larger than the limit for ghosts",
    remedy="raise --ghost-limit, or have the program close or truncate the file",
)
NO_GHOST = Limit(
    case="ghost-type",
    what="an unlinked symbolic link, device or socket file is open",
    remedy="close it before the checkpoint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """``path`` is the old name; ``missing`` of its parent directories are gone too."""

    number: int
    path: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    chunks: tuple[tuple[int, bytes], ...] = ()
    missing: int = 0
    dev: int = 0
    ino: int = 0

    @property
    def is_directory(self) -> bool:
        """A directory that was removed while it was open."""
        return file_type(self.mode) == FileType.DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One description of a ghost: open flags, and the number it shall have."""

    fd: int
    flags: int
    subject: str


def take(view: FdView, context: DumpContext, path: str) -> Ghost:
    """The ghost of an unlinked file, read once for all its descriptions."""
    known: dict[tuple[int, int], Ghost] = context.cache.setdefault("ghosts", {})
    key = (view.st_dev, view.st_ino)
    if key not in known:
        known[key] = _read(view, context, path, len(known) + 1)
    return known[key]


def _read(view: FdView, context: DumpContext, path: str, number: int) -> Ghost:
    kind = file_type(view.st_mode)
    if kind not in (FileType.REGULAR, FileType.DIRECTORY, FileType.FIFO):
        raise refuse(NO_GHOST, view.subject)
    content = b""
    if kind == FileType.REGULAR:
        if view.st_size > context.ghost_limit_bytes:
            raise refuse(
                TOO_LARGE, view.subject,
                f"{view.st_size} bytes, the limit is {context.ghost_limit_bytes}",
            )  # fmt: skip
        content = view.file_content(context.ghost_limit_bytes)
    parents = [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "/"]
    missing = next((i for i, p in enumerate(parents) if view.path_stat(p)), len(parents))
    return Ghost(
        number=number, path=path, mode=view.st_mode, uid=view.st_uid, gid=view.st_gid,
        size=len(content), chunks=tuple(split(content)), missing=missing,
        dev=view.st_dev & 0xFFFFFFFF, ino=view.st_ino,
    )  # fmt: skip


def split(content: bytes) -> Iterable[tuple[int, bytes]]:
    """(offset, bytes) of what is not zero, in pieces of at most PIECE_BYTES."""
    zero = bytes(BLOCK_BYTES)
    start: int | None = None
    for offset in range(0, len(content), BLOCK_BYTES):
        block = content[offset : offset + BLOCK_BYTES]
        is_zero = block == zero[: len(block)]
        if start is not None and (is_zero or offset - start >= PIECE_BYTES):
            yield start, content[start:offset]
            start = None
        if start is None and not is_zero:
            start = offset
    if start is not None:
        yield start, content[start:]


def encode(ghost: Ghost, images: ImageSink) -> None:
    """ghost-file-N.img: the message, and chunks of a regular file."""
    name = f"ghost-file-{ghost.number:x}"
    entry = pb.ghost_file_entry(
        uid=ghost.uid, gid=ghost.gid, mode=ghost.mode, dev=ghost.dev, ino=ghost.ino
    )
    if file_type(ghost.mode) == FileType.REGULAR:
        entry.chunks, entry.size = True, ghost.size
    images.add(name, entry)
    for offset, data in ghost.chunks:
        images.add(name, pb.ghost_chunk_entry(off=offset, len=len(data)), data)
    if ghost.missing:
        images.extra("ghost", f"{ghost.number:x}", {"missing": ghost.missing})


def decode(number: int, path: str, images: ImageSource) -> Ghost:
    """Read ghost-file-N.img back. Raises BadImage."""
    name = f"ghost-file-{number:x}"
    entries = list(images.entries(name))
    if not entries:
        bad_image("is missing or empty", f"{name}.img")
    head, payload = entries[0]
    chunks = [(c.off, data) for c, data in entries[1:]]
    size = head.size
    if not head.chunks:
        chunks, size = list(split(payload)), len(payload)
    end = max((offset + len(data) for offset, data in chunks), default=0)
    if end > size:
        bad_image("a chunk lies behind the end of the file", f"{name}.img", f"{end} > {size}")
    extra = images.extra("ghost", f"{number:x}") or {}
    return Ghost(
        number=number, path=path, mode=head.mode, uid=head.uid, gid=head.gid, size=size,
        chunks=tuple(chunks), missing=int(extra.get("missing", 0)), dev=head.dev, ino=head.ino,
    )  # fmt: skip


def plan(ghost: Ghost, path: str, openings: Sequence[Opening], *, linkable: bool) -> list[Op]:
    """Create the file at ``path``, open it as often as asked, remove its name."""
    builder = _Builder(ghost, path)
    if linkable and len(openings) == 1 and openings[0].flags & O.ACCMODE:
        return builder.as_tmpfile(openings[0])
    return builder.as_unlinked(openings)


class _Builder:
    """Operations of one ghost. Its slots carry the ghost's number."""

    def __init__(self, ghost: Ghost, path: str) -> None:
        self.ghost = ghost
        name = PurePosixPath(path)
        self.folders = [str(p) for p in name.parents if str(p) != "/"][: ghost.missing][::-1]
        self.parent = Data.path(str(name.parent))
        self.base = Data.path(name.name)
        self.side = Data.path(f".torpor-ghost-{ghost.number:x}")
        self.what = f"{path}{DELETED}"
        self.ops: list[Op] = []

    def slot(self, name: str) -> Slot:
        return Slot(f"ghost{self.ghost.number:x}.{name}")

    def add(self, call: str, *args: int | Data | Slot, into: str = "", note: str = "",
            expect: Expect = Expect.OK, want: int = 0, remedy: str = "") -> None:  # fmt: skip
        self.ops.append(
            Op(call=call, args=args, subject=self.what, note=note, expect=expect, want=want,
               remedy=remedy, yields=self.slot(into) if into else None)
        )  # fmt: skip

    def as_tmpfile(self, opening: Opening) -> list[Op]:
        """An O_TMPFILE, which the program may still want to link."""
        self._folders()
        made = self.slot("file")
        access = opening.flags & O.ACCMODE
        self.add("openat", AT_FDCWD, self.parent, O.TMPFILE | O.DIRECTORY | access, 0o600,
                 into="file", remedy="the directory must exist and take O_TMPFILE")  # fmt: skip
        self._fill(made)
        self._attributes(made)
        self.add("dup3", made, opening.fd, 0, expect=Expect.EQUAL, want=opening.fd)
        self.add("close", made)
        if opening.flags & (O.APPEND | O.NONBLOCK | O.DIRECT | O.NOATIME):
            kept = opening.flags & (O.APPEND | O.NONBLOCK | O.DIRECT | O.NOATIME)
            self.add("fcntl", opening.fd, F.SETFL, kept)
        self._no_folders()
        return self.ops

    def as_unlinked(self, openings: Sequence[Opening]) -> list[Op]:
        """A file that was created, opened and unlinked."""
        self._folders()
        folder, at, made = self.slot("folder"), self.slot("at"), self.slot("file")
        any_ = Expect.ANY
        self.add("openat", AT_FDCWD, self.parent, O.PATH | O.DIRECTORY, 0, into="folder",
                 remedy="create the directory before the restore")  # fmt: skip
        self._create(folder)
        self._fill(made)
        self.add("renameat2", folder, self.side, folder, self.base, RENAME_NOREPLACE,
                 into="named", expect=any_, note="0 when the old name is free")  # fmt: skip
        self.add("fcntl", folder, F.DUPFD, self.slot("named"), into="at", expect=any_,
                 note="the directory, only when the file has its old name")  # fmt: skip
        for opening in openings:
            self._open(opening)
        self._attributes(made)
        removal = AT_REMOVEDIR if self.ghost.is_directory else 0
        self.add("unlinkat", at, self.base, removal, expect=any_)
        self.add("unlinkat", folder, self.side, removal, expect=any_)
        self.add("close", made)
        self.add("close", folder)
        self.add("close", at, expect=any_)
        self._no_folders()
        return self.ops

    def _create(self, folder: Slot) -> None:
        remedy = f"the directory must be writable and without {self.side.text}"
        kind = file_type(self.ghost.mode)
        flags = int(O.RDWR | O.CREAT | O.EXCL | O.NOFOLLOW)
        if kind == FileType.DIRECTORY:
            self.add("mkdirat", folder, self.side, 0o700, remedy=remedy)
            flags = int(O.DIRECTORY | O.NOFOLLOW)
        elif kind == FileType.FIFO:
            self.add("mknodat", folder, self.side, FileType.FIFO | 0o600, 0, remedy=remedy)
            flags = int(O.RDWR | O.NONBLOCK | O.NOFOLLOW)
        self.add("openat", folder, self.side, flags, 0o600, into="file", remedy=remedy)

    def _fill(self, made: Slot) -> None:
        remedy = "make room on the file system"
        for offset, data in self.ghost.chunks:
            self.add("pwrite64", made, Data(data), len(data), offset, expect=Expect.EQUAL,
                     want=len(data), remedy=remedy)  # fmt: skip
        if file_type(self.ghost.mode) == FileType.REGULAR and self.ghost.size:
            self.add("ftruncate", made, self.ghost.size)

    def _attributes(self, made: Slot) -> None:
        self.add("fchown", made, self.ghost.uid, self.ghost.gid,
                 remedy="restore with CAP_CHOWN, or as the user that owned the file")  # fmt: skip
        self.add("fchmod", made, self.ghost.mode & 0o7777)

    def _open(self, opening: Opening) -> None:
        """By whichever name it has; exactly one of the two calls succeeds."""
        one, other = self.slot("one"), self.slot("other")
        any_ = Expect.ANY
        self.add("openat", self.slot("at"), self.base, opening.flags, 0, into="one", expect=any_)
        self.add("openat", self.slot("folder"), self.side, opening.flags, 0, into="other",
                 expect=any_)  # fmt: skip
        for made in (one, other):
            self.add("dup3", made, opening.fd, 0, expect=any_)
            self.add("close", made, expect=any_)
        self.add("fcntl", opening.fd, F.GETFD, note=f"is open: {opening.subject}",
                 remedy="the file system must allow the flags it was opened with")  # fmt: skip

    def _folders(self) -> None:
        """Parents that were gone as well: created when they are not there."""
        for i, folder in enumerate(self.folders):
            self.add("mkdirat", AT_FDCWD, Data.path(folder), 0o700, into=f"made{i}",
                     expect=Expect.ANY)  # fmt: skip

    def _no_folders(self) -> None:
        """Remove those that we created."""
        if not self.folders:
            return
        self.add("openat", AT_FDCWD, Data.path("/"), O.PATH | O.DIRECTORY, 0, into="root")
        for i, folder in reversed(list(enumerate(self.folders))):
            self.add("fcntl", self.slot("root"), F.DUPFD, self.slot(f"made{i}"), into="at",
                     expect=Expect.ANY)  # fmt: skip
            self.add("unlinkat", self.slot("at"), Data.path(folder.lstrip("/")), AT_REMOVEDIR,
                     expect=Expect.ANY)  # fmt: skip
            self.add("close", self.slot("at"), expect=Expect.ANY)
        self.add("close", self.slot("root"))
