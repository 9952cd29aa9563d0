# SPDX-License-Identifier: Apache-2.0
"""Ghosts: files that are open but whose name is gone. Content travels in the images.

Facts:
- The kernel keeps the name that the file had (`/dir/name (deleted)`), its inode with st_nlink
  0, and its content; all can be read from outside (readlink, fstat, pread).
- Only what lseek(SEEK_DATA) calls data is read and written: holes stay holes, and the limit
  counts data.
- A file with another name left is no copy but that very inode: it comes back by a hard link from
  the other name (``link``). With --link-remap that name is made at the dump, as CRIU does it, and
  removed by the restore; without, names are looked for near the old one, and nothing is left.
- A file that was created by O_TMPFILE keeps that bit in its flags, and may still be linked; one
  that was created and unlinked may not (linkat gives ENOENT).
- What cannot be set back: inode number, ctime, the number in the name of an O_TMPFILE, and whether
  an O_TMPFILE was made with O_EXCL (it may be linked then).

How one comes back: `revive.py`.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from torpor.engine.files.common import FileType, bad_image, file_type, path_bytes
from torpor.engine.files.magics import HUGETLBFS_MAGIC
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import DumpContext, FdView, ImageSink, ImageSource, Limit, refuse

DELETED = " (deleted)"
BLOCK_BYTES = 4096
PIECE_BYTES = 1 << 18
"""What one operation of a restore program can carry, and more."""
MICROSECOND_NS = 1000
LATEST_NS = 1 << 63
SECOND_NS = 1_000_000_000

TOO_LARGE = Limit(
    case="ghost-too-large",
    what="an unlinked file is larger than the limit for ghosts",
    remedy="raise --ghost-limit, or have the program close or truncate the file",
)
HUGE_GHOST = Limit(
    case="unlinked-huge-pages",
    what="an unlinked file of hugetlbfs, which cannot be written",
    remedy="use a memfd (MFD_HUGETLB) or anonymous memory (MAP_HUGETLB)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """``path`` is the old name; ``missing`` of its parent directories may be gone too.

    ``link`` is another name of the same inode: then nothing else is kept of it. ``times_ns`` are
    atime and mtime.
    """

    number: int
    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    chunks: tuple[tuple[int, bytes], ...] = ()
    missing: int = 0
    dev: int = 0
    ino: int = 0
    rdev: int = 0
    times_ns: tuple[int, int] | None = None
    target: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    link: str | None = None

    @property
    def type(self) -> int:
        """Type bits of the mode."""
        return file_type(self.mode)


def take(view: FdView, context: DumpContext, path: str) -> Ghost:
    """The ghost of an unlinked file, read once for all its descriptions."""
    return once(view, context, lambda number: _read(view, context, path, number))


def once(view: FdView, context: DumpContext, make: Callable[[int], Ghost]) -> Ghost:
    """One ghost for each inode; ``make`` gets its number."""
    known: dict[tuple[int, int], Ghost] = context.cache.setdefault("ghosts", {})
    key = (view.st_dev, view.st_ino)
    if key not in known:
        known[key] = make(len(known) + 1)
    return known[key]


def _read(view: FdView, context: DumpContext, path: str, number: int) -> Ghost:
    kind = file_type(view.st_mode)
    is_file = kind == FileType.REGULAR
    return Ghost(
        number=number, path=path, mode=view.st_mode, uid=view.st_uid, gid=view.st_gid,
        size=view.st_size if is_file else 0,
        chunks=_content(view, context) if is_file else (), missing=missing(view, path),
        dev=view.st_dev & 0xFFFFFFFF, ino=view.st_ino, rdev=view.st_rdev,
        times_ns=view.times_ns(), target=view.symlink_target() if kind == FileType.LINK else "",
        xattrs=view.xattrs(),
    )  # fmt: skip


def _content(view: FdView, context: DumpContext) -> tuple[tuple[int, bytes], ...]:
    if view.fs_magic == HUGETLBFS_MAGIC:
        raise refuse(HUGE_GHOST, view.subject)
    ranges = view.data_ranges()
    total = sum(end - start for start, end in ranges)
    if total > context.ghost_limit_bytes:
        raise refuse(
            TOO_LARGE, view.subject, f"{total} bytes, the limit is {context.ghost_limit_bytes}"
        )
    return tuple(
        piece
        for start, end in ranges
        for piece in pieces(start, view.read_range(start, end - start))
    )


def missing(view: FdView, path: str) -> int:
    """How many of the parent directories of a path are not there."""
    parents = [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "/"]
    return next((i for i, p in enumerate(parents) if view.path_stat(p)), len(parents))


def pieces(offset: int, data: bytes) -> Iterable[tuple[int, bytes]]:
    """(offset, bytes) of at most PIECE_BYTES each."""
    for start in range(0, len(data), PIECE_BYTES):
        yield offset + start, data[start : start + PIECE_BYTES]


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
    if ghost.type in (FileType.CHARACTER, FileType.BLOCK):
        entry.rdev = ghost.rdev & 0xFFFFFFFF
    if ghost.type == FileType.REGULAR:
        entry.chunks, entry.size = True, ghost.size
    if ghost.type == FileType.LINK:
        entry.symlnk_target = path_bytes(ghost.target)
    for time_ns, message in zip(ghost.times_ns or (), (entry.atim, entry.mtim), strict=False):
        message.tv_sec = time_ns // SECOND_NS
        message.tv_usec = time_ns % SECOND_NS // MICROSECOND_NS
    images.add(name, entry)
    for offset, data in ghost.chunks:
        images.add(name, pb.ghost_chunk_entry(off=offset, len=len(data)), data)
    images.extra("ghost", f"{ghost.number:x}", _extra(ghost))


def _extra(ghost: Ghost) -> dict[str, Any]:
    return {
        "missing": ghost.missing,
        "times_ns": ghost.times_ns,
        "xattrs": {name: b64encode(value).decode() for name, value in ghost.xattrs.items()},
    }


def decode(number: int, path: str, images: ImageSource) -> Ghost:
    """Read ghost-file-N.img back. Raises BadImage."""
    name = f"ghost-file-{number:x}"
    entries = list(images.entries(name))
    if not entries:
        bad_image("is missing or empty", f"{name}.img")
    head, payload = entries[0]
    chunks = [piece for c, data in entries[1:] for piece in pieces(c.off, data)]
    size = head.size
    if not head.chunks:
        chunks, size = list(split(payload)), len(payload)
    end = max((offset + len(data) for offset, data in chunks), default=0)
    if end > size:
        bad_image("a chunk lies behind the end of the file", f"{name}.img", f"{end} > {size}")
    extra = images.extra("ghost", f"{number:x}") or {}
    return Ghost(
        number=number, path=path, mode=head.mode, uid=head.uid, gid=head.gid, size=size,
        chunks=tuple(chunks), dev=head.dev, ino=head.ino, rdev=head.rdev,
        missing=int(extra.get("missing", len(PurePosixPath(path).parents) - 1)),
        times_ns=_times(head, extra),
        target=head.symlnk_target.decode("utf-8", "surrogateescape"),
        xattrs={key: b64decode(value) for key, value in (extra.get("xattrs") or {}).items()},
    )  # fmt: skip


def _times(head: Any, extra: Mapping[str, Any]) -> tuple[int, int] | None:  # noqa: ANN401
    exact = extra.get("times_ns")
    if exact:
        both = [int(exact[0]), int(exact[1])]
    elif head.HasField("atim") and head.HasField("mtim"):
        both = [t.tv_sec * SECOND_NS + t.tv_usec * MICROSECOND_NS for t in (head.atim, head.mtim)]
    else:
        return None
    if any(not -LATEST_NS <= time_ns < LATEST_NS for time_ns in both):
        raise ValueError(f"a file's time of {max(both, key=abs)} ns")
    return both[0], both[1]
